"""Pictures of the page in each of its states, for the documentation.

python -m tests.e2e.screenshots [FOLDER]       writes docs/screenshots/*.png; needs a Chromium on the PATH
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from service.demo.alphabet import drawing
from tests.e2e.browser.chromium import chromium, fill, make, make_example, queries, try_images, upload
from tests.e2e.processes import ROOT, serve
from tests.service import centroids, prototypes

FOLDER = ROOT / "docs" / "screenshots"
WIDE: dict[str, Any] = {"viewport": {"width": 1120, "height": 860}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
N_COLOURS = 128
TALLEST = 1_900
State = Callable[[Page, str], None]


def start(page: Page, url: str) -> None:
    """An empty form."""
    page.goto(url)
    expect(page.locator("#examples button")).to_have_count(3)


def filled(page: Page, url: str) -> None:
    """An example, ready to be made."""
    start(page, url)
    page.get_by_role("button", name="from pictures and words").click()
    expect(page.locator(".thumbs img")).to_have_count(12)
    page.evaluate("scrollTo(0, 0)")


def refused(page: Page, url: str) -> None:
    """A file that is no image, said beside it."""
    start(page, url)
    fill(page, 1, "zebra", "Black and white stripes and an upright mane.", (drawing(0, 0), b"not an image"))
    fill(page, 2, "horse", "A plain brown coat and no stripes.", (drawing(1, 0),))
    make(page)
    expect(page.locator("#make .error:visible")).to_have_count(1)


def progress(page: Page, url: str) -> None:
    """A classifier while it is made."""
    start(page, url)
    for k in range(2):
        fill(page, k + 1, f"letter {k}", images=(drawing(k, 0),))
    page.locator("#options summary").click()
    page.get_by_label("Meta-model", exact=True).fill("slow")
    make(page)
    expect(page.locator(".steps [aria-current]")).to_have_text("Writing the network")


def ready(page: Page, url: str) -> None:
    """A classifier, not tried yet."""
    make_example(page, url, "from pictures and words")


def answers(page: Page, url: str) -> None:
    """Answers, some of them "I don't know", and the confusion matrix."""
    make_example(page, url, "Six invented letters")
    page.get_by_role("button", name="unseen images").click()
    expect(page.locator("#status")).to_contain_text("36 images")


def explained(page: Page, url: str) -> None:
    """What carried a decision; the service has to offer it."""
    make_example(page, url, "from pictures and words")
    try_images(page, [upload("forest.jpg", queries("scenes")["a forest"][0], "image/jpeg")])
    page.get_by_role("button", name="Why").click()
    expect(page.locator(".why")).not_to_be_empty()


def listed(page: Page, url: str) -> None:
    """All classifiers."""
    page.goto(f"{url}/#/tasks")
    expect(page.locator(".task").first).to_be_visible()


def main() -> int:
    """Take all of them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        place = Path(temporary)
        centroids.meta_model(place / "slow", name="slow", n_loops=100 * prototypes.SLOW_LOOPS)
        with serve(state_dir=place / "state") as service:
            for state in (start, filled, refused, ready, answers, listed):
                take(browser, state, service.url, folder / f"{state.__name__}.png")
            if "/tasks/{task_id}/explain" in service.http.get("/openapi.json").json()["paths"]:
                take(browser, explained, service.url, folder / "explained.png")
            for state in (start, answers):
                take(browser, state, service.url, folder / f"{state.__name__}-dark.png", color_scheme="dark")
            for state in (filled, answers):
                take(browser, state, service.url, folder / f"{state.__name__}-phone.png", **PHONE)
        with serve(state_dir=place / "slow-state", meta_models=place / "slow") as service:
            take(browser, progress, service.url, folder / "progress.png")
    print(f"{folder}: {sum(path.stat().st_size for path in folder.glob('*.png')) / 1e6:.2f} MB")  # noqa: T201
    return 0


def take(browser: Browser, state: State, url: str, path: Path, **look: Any) -> None:
    """One picture, with as few colours as it needs."""
    page = browser.new_page(**{**WIDE, "reduced_motion": "reduce", **look})
    state(page, url)
    page.evaluate("scrollTo(0, 0)")
    width, height = page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
    page.set_viewport_size({"width": width, "height": min(TALLEST, height)})
    image = Image.open(io.BytesIO(page.screenshot()))
    image.convert("RGB").quantize(N_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    page.context.close()


if __name__ == "__main__":
    sys.exit(main())
