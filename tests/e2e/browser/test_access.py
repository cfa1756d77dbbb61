"""For everyone: by keyboard and screen reader, on a phone, in the dark, with keys, in a browser that forbids a lot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from service.demo.alphabet import drawing
from tests.e2e.browser.chromium import asked, fill, made, make, make_example, matrix, queries, upload
from tests.e2e.processes import Service, serve

PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
LOOKS: dict[str, dict[str, Any]] = {"light": {}, "dark": {"color_scheme": "dark"}, "phone": PHONE}


def start(page: Page) -> None:
    expect(page.locator("#examples button")).to_have_count(3)


def refused(page: Page) -> None:
    fill(page, 1, "one", images=(drawing(0, 0),))
    fill(page, 2, "one", images=(b"not an image",))
    make(page)
    expect(page.locator("#make .error:visible")).to_have_count(1)


def filled(page: Page) -> None:
    page.get_by_role("button", name="Six invented letters").click()
    page.get_by_role("button", name="Replace").click()
    expect(page.locator(".thumbs img")).to_have_count(12)
    for name in ("#many", "#options"):
        page.locator(f"{name} summary").click()


def answered(page: Page) -> None:
    make(page)
    made(page)
    page.get_by_role("button", name="unseen images").click()
    expect(page.locator("#status")).to_contain_text("36 images")


def explained(page: Page) -> None:
    page.evaluate(EXPLAIN, EXPLANATION)


def listed(page: Page) -> None:
    page.get_by_role("link", name="Classifiers").first.click()
    page.locator("#tasks").get_by_role("button", name="Delete").first.click()  # the task before has one, too
    expect(page.get_by_role("dialog")).to_be_visible()


WALK = [start, refused, filled, answered, explained, listed]
"""Each state follows from the one before."""
EXPLANATION = {
    "label": "zebra",
    "probability": 0.9,
    "words": {
        "zebra": [
            {"text": "stripes", "start": 10, "end": 17, "weight": 0.8},
            {"text": "horse", "start": 2, "end": 7, "weight": -0.2},
        ]
    },
    "saliency": {"width": 2, "height": 2, "values": [[1.0, 0.0], [0.0, -0.5]]},
    "notes": ["The network sees 28 x 28 pixels."],
}
EXPLAIN = """async (answer) => {
    const { explanation } = await import("/assets/explain.js");
    const { adaptationTable } = await import("/assets/adaptation.js");
    const task = { classes: [{ name: "zebra", description: "A horse 🦓 stripes." }] };
    const card = document.querySelector(".answer");
    card.append(...explanation(answer, task, card.querySelector(".picture")));
    const layers = [{ name: "conv1", type: "Conv", relative_change: 0.02 }];
    document.querySelector("[data-part=layers]").replaceChildren(adaptationTable(layers));
    document.querySelector("[data-part=adaptation]").hidden = false;
}"""


@pytest.mark.parametrize("look", LOOKS)
def test_every_state_is_accessible_and_no_wider_than_the_screen(chromium: Browser, service: Service, look: str) -> None:
    page = chromium.new_page(**LOOKS[look])
    page.goto(service.url)
    for state in WALK:
        state(page)
        found = Axe().run(page)
        assert found.violations_count == 0, f"{state.__name__}: {found.generate_report()}"
        width, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= inner, state.__name__
    page.context.close()


def test_a_camera_is_offered_where_there_may_be_one(chromium: Browser, page: Page, service: Service) -> None:
    page.goto(service.url)
    expect(page.locator(".row .camera").first).to_be_hidden()
    phone = chromium.new_page(**PHONE)
    phone.goto(service.url)
    camera = phone.get_by_role("group", name="Class 1", exact=True).get_by_label("Take a photo")
    camera.set_input_files([upload("photo.png", drawing(0, 0))])
    expect(phone.locator(".thumbs li")).to_have_count(1)
    assert camera.get_attribute("capture") == "environment"
    phone.context.close()


def test_everything_is_done_by_keyboard(page: Page, service: Service) -> None:
    page.on("filechooser", lambda chooser: None)  # caught from here on, not only once the key is on its way
    page.goto(service.url)
    expect(page.locator("#examples button")).to_have_count(3)
    for k in range(2):
        tab_to(page, f'[aria-label="Class {k + 1}"] [data-field=name]')
        page.keyboard.type(f"letter {k}")
        page.keyboard.press("Tab")
        page.keyboard.type("A description.")
        page.keyboard.press("Tab")
        with page.expect_file_chooser() as opened:
            page.keyboard.press("Space")
        opened.value.set_files([upload("1.png", drawing(k, 0))])
    tab_to(page, "#make-button")
    page.keyboard.press("Enter")
    task_id = made(page)
    tab_to(page, "#try-files")
    with page.expect_file_chooser() as opened:
        page.keyboard.press("Space")
    opened.value.set_files([upload("2.png", drawing(0, 1))])
    expect(page.locator(".answer")).to_have_count(1)
    page.get_by_role("heading", level=1).focus()
    tab_to(page, "[data-part=actions] .quiet")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    assert service.http.get(f"/tasks/{task_id}").status_code == 404


def tab_to(page: Page, selector: str, *, most: int = 60) -> None:
    """Press Tab until that element has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} is not reached by {most} tabs")


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(context: object, page: Page, tmp_path: Path) -> None:
    keys = json.dumps({"a-key-for-this-test": "tester"})
    with serve(state_dir=tmp_path, api_keys=keys) as service:
        page.goto(f"{service.url}/#/tasks")
        detail = service.http.get("/tasks").json()["detail"]
        expect(page.locator("#key-error")).to_have_text(detail)
        expect(page.locator("#key-field")).to_be_focused()
        page.keyboard.type("a-key-for-this-test")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_be_hidden()
        expect(page.locator("#list-state")).to_contain_text("No classifier yet")
        page.reload()
        expect(page.locator("#key-field")).to_have_value("a-key-for-this-test")
        task_id = make_example(page, f"{service.url}/#/", "Six invented letters")
        with page.expect_download() as downloaded:
            page.get_by_role("button", name="Download model.onnx").click()
        assert downloaded.value.path().stat().st_size > 1000
        expect(page.get_by_role("region", name="curl")).to_contain_text("$CLASSMITH_API_KEY")
        page.get_by_role("button", name="Forget it").click()
        expect(page.locator("#key-error")).to_have_text(detail)
        assert page.evaluate("sessionStorage.length") == 0
        assert service.http.get(f"/tasks/{task_id}").status_code == 401


def test_a_key_that_no_header_can_carry_is_refused_beside_its_field(page: Page, tmp_path: Path) -> None:
    with serve(state_dir=tmp_path, api_keys=json.dumps({"a-key": "tester"})) as service:
        page.goto(f"{service.url}/#/tasks")
        field = page.locator("#key-field")
        expect(field).to_be_focused()
        field.fill("a-key")
        page.keyboard.press("Enter")
        expect(page.locator("#list-state")).to_contain_text("No classifier yet")
        for copied in ("\u201ca-key\u201d", "a-\u200bkey"):
            field.fill(copied)
            page.keyboard.press("Enter")
            expect(page.locator("#key-error")).to_contain_text("visible ASCII")
            expect(field).to_have_attribute("aria-invalid", "true")
            expect(field).to_be_focused()
            expect(page.locator("#list-error")).to_be_hidden()
            page.reload()
            expect(field).to_have_value("a-key")


def test_it_works_where_storage_is_forbidden(chromium: Browser, service: Service) -> None:
    page = chromium.new_page()
    page.add_init_script(
        """for (const name of ["sessionStorage", "localStorage", "indexedDB"])
            Object.defineProperty(window, name, { get() { throw new DOMException("no", "SecurityError"); } });"""
    )
    task_id = make_example(page, service.url, "from pictures and words")
    page.get_by_role("button", name="unseen images").click()
    expect(page.locator("#status")).to_contain_text("24 images")
    n_answers = sum(len(asked(service, task_id, images)) for images in queries("scenes").values())
    assert sum(matrix(page).values()) == n_answers
    page.context.close()


def test_no_script_or_style_runs_but_the_pages_own(chromium: Browser, service: Service) -> None:
    policy = service.http.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    page = chromium.new_page()
    page.goto(service.url)
    with page.expect_event("console", lambda message: message.type == "error"):
        page.evaluate(
            """() => {
                const script = document.createElement("script");
                try { script.text = "window.intruder = true"; } catch { script.append("window.intruder = true"); }
                document.head.append(script);
            }"""
        )
    assert page.evaluate("window.intruder === undefined")
    page.context.close()
