"""A real headless Chromium, and what users do in the page: fill in, drop, paste, make, try."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, FilePayload, Locator, Page, expect, sync_playwright

from service.demo import examples
from tests.e2e.processes import Service

PNG = "image/png"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
File = tuple[str, bytes, str]
"""Name, content, media type."""


def executable() -> str | None:
    """The system's Chromium, or None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of the system's; it fetches nothing of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=["--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def drop(zone: Locator, files: list[File]) -> None:
    """Drop files on an element, as from a file manager."""
    zone.dispatch_event("drop", {"dataTransfer": _transfer(zone.page, files)})


def paste(field: Locator, files: list[File], texts: dict[str, str] | None = None) -> bool:
    """Paste files, and texts by their media types, while the focus is in an element; whether the page leaves it be."""
    left: bool = field.evaluate(
        """(element, transfer) => element.dispatchEvent(
            new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true}))""",
        _transfer(field.page, files, texts),
    )
    return left


def row(page: Page, number: int) -> Locator:
    return page.get_by_role("group", name=f"Class {number}", exact=True)


def upload(name: str, data: bytes, media_type: str = PNG) -> FilePayload:
    """A file for an input."""
    return {"name": name, "mimeType": media_type, "buffer": data}


def fill(page: Page, number: int, name: str, description: str = "", images: tuple[bytes, ...] = ()) -> None:
    found = row(page, number)
    found.get_by_label("Name").fill(name)
    found.get_by_label("Description").fill(description)
    if images:
        files = [upload(f"{name} {i}.png", data) for i, data in enumerate(images)]
        found.get_by_label("Choose images").set_input_files(files)
        expect(found.locator(".thumbs li")).to_have_count(len(files))


def make(page: Page) -> None:
    page.get_by_role("button", name="Make the classifier").click()


def made(page: Page) -> str:
    """The id of the task that is shown, once it is ready."""
    expect(page.get_by_role("heading", name="Try it")).to_be_visible()
    return page.url.rpartition("/")[2]


def make_example(page: Page, url: str, title: str) -> str:
    page.goto(url)
    page.get_by_role("button", name=title).click()
    expect(page.get_by_role("button", name="Make the classifier")).to_be_focused()
    make(page)
    return made(page)


def try_images(page: Page, files: list[Any]) -> None:
    page.locator("#task").get_by_label("Choose images").set_input_files(files)


def queries(name: str) -> dict[str, list[bytes]]:
    """Class -> unseen images, of an example."""
    (example,) = (found for found in examples.listing() if found["name"] == name)
    return {c["name"]: [content(query) for query in c["queries"]] for c in example["classes"]}


def content(name: str) -> bytes:
    found = examples.image(name)
    assert found
    return found[0]


def asked(service: Service, task_id: str, images: list[bytes]) -> list[dict[str, Any]]:
    """What the API itself answers."""
    parts = [("image", ("1", image, PNG)) for image in images]
    answers: list[dict[str, Any]] = service.http.post(f"/tasks/{task_id}/predict", files=parts).json()["predictions"]
    return answers


def matrix(page: Page) -> dict[tuple[str, str], int]:
    """(class, answer) -> count, as shown when all images are classified."""
    expect(page.locator("[data-part=tally]")).not_to_contain_text("Classifying")
    texts = "(table) => [...table.rows].map((row) => [...row.cells].map((cell) => cell.innerText))"
    (_, *columns), *lines = page.locator(".matrix").evaluate(texts)
    return {
        (name, column): int(n) for name, *counts in lines for column, n in zip(columns, counts, strict=True) if int(n)
    }


def _transfer(page: Page, files: list[File], texts: dict[str, str] | None = None) -> object:
    encoded = [[name, base64.b64encode(data).decode(), media_type] for name, data, media_type in files]
    return page.evaluate_handle(
        """([files, texts]) => {
            const transfer = new DataTransfer();
            for (const [type, text] of Object.entries(texts)) transfer.setData(type, text);
            for (const [name, data, type] of files) {
                const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
                transfer.items.add(new File([bytes], name, {type}));
            }
            return transfer;
        }""",
        [encoded, texts or {}],
    )
