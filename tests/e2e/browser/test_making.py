"""Tasks are made in the page from images, from words and from both, however the files come."""

from __future__ import annotations

import csv
import io
import signal
import zipfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from service.demo.alphabet import drawing
from tests.e2e.browser.chromium import PNG, drop, fill, made, make, make_example, paste, row, upload
from tests.e2e.browser.conftest import SLOW
from tests.e2e.processes import Service, serve
from tests.service import centroids

ZEBRA, HORSE = "Black and white stripes and an upright mane.", "A plain brown coat, “hooves”, and no stripes."


def test_made_from_chosen_images(page: Page, service: Service) -> None:
    page.goto(service.url)
    for k in range(2):
        fill(page, k + 1, f"letter {k}", images=(drawing(k, 0), drawing(k, 1)))
    expect(page.locator("#summary")).to_have_text("2 classes · 4 images · 0 descriptions")
    make(page)
    task = service.http.get(f"/tasks/{made(page)}").json()
    assert [(c["name"], c["n_images"]) for c in task["classes"]] == [("letter 0", 2), ("letter 1", 2)]
    expect(page.get_by_role("heading", level=1)).to_have_text("letter 0, letter 1")
    expect(page.get_by_role("heading", level=1)).to_be_focused()


def test_made_from_words_alone_or_told_why_not(page: Page, service: Service) -> None:
    page.goto(service.url)
    fill(page, 1, "zebra", ZEBRA)
    fill(page, 2, "horse", HORSE)
    with page.expect_response("**/tasks") as answered:
        make(page)
    if answered.value.ok:
        task = service.http.get(f"/tasks/{made(page)}").json()
        assert [c["description"] for c in task["classes"]] == [ZEBRA, HORSE]
    else:
        expect(page.locator("#classes-error")).to_have_text(answered.value.json()["detail"])


def test_made_from_images_and_words(page: Page, service: Service) -> None:
    task_id = make_example(page, service.url, "from pictures and words")
    task = service.http.get(f"/tasks/{task_id}").json()
    assert all(c["description"] and c["n_images"] for c in task["classes"])
    for c in task["classes"]:
        expect(page.get_by_role("row", name=c["name"])).to_contain_text(c["description"])


def test_images_are_dropped_and_pasted_and_taken_out(page: Page, service: Service) -> None:
    page.goto(service.url)
    first = row(page, 1)
    drop(first.locator(".zone"), [("one.png", drawing(0, 0), PNG), ("two.png", drawing(0, 1), PNG)])
    paste(first.get_by_label("Name"), [("three.png", drawing(0, 2), PNG)])
    expect(first.locator(".thumbs li")).to_have_count(3)
    first.get_by_role("button", name="Remove two.png").click()
    expect(first.get_by_role("button", name="Remove three.png")).to_be_focused()
    drop(page.get_by_role("heading", level=1), [("four.png", drawing(1, 0), PNG)])
    expect(row(page, 2).locator(".thumbs li")).to_have_count(1)
    first.get_by_role("button", name="Remove all").click()
    expect(first.locator(".thumbs li")).to_have_count(0)


def test_an_image_pasted_beside_every_zone_goes_to_a_class_and_no_further(page: Page, service: Service) -> None:
    page.goto(service.url)
    paste(page.get_by_role("heading", level=1), [("one.png", drawing(0, 0), PNG)])
    expect(row(page, 1).locator(".thumbs li")).to_have_count(1)
    expect(page.locator("#many-note")).to_be_empty()
    expect(page.locator("#many-zone")).to_be_hidden()


def test_text_that_comes_with_a_picture_of_it_is_pasted_as_text(page: Page, service: Service) -> None:
    """As Word, Excel and PowerPoint copy it; a file manager gives a file's name as plain text, and means the file."""
    page.goto(service.url)
    first, picture = row(page, 1), [("image.png", drawing(0, 0), PNG)]
    copied = {"text/plain": ZEBRA, "text/html": f"<p>{ZEBRA}</p>"}
    for label in ("Name", "Description"):
        assert paste(first.get_by_label(label), picture, copied)  # the browser puts it into the field
    assert not paste(first.get_by_label("Name"), picture, {"text/plain": "image.png"})
    expect(first.locator(".thumbs li")).to_have_count(1)
    assert not paste(first.get_by_role("heading"), picture, copied)  # no field that could take the text
    expect(first.locator(".thumbs li")).to_have_count(2)


def test_many_classes_from_a_folder_a_zip_and_a_csv(page: Page, service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "letters"
    for k in range(3):
        (folder / f"letter {k}").mkdir(parents=True)
        for hand in range(2):
            (folder / f"letter {k}" / f"{hand}.png").write_bytes(drawing(k, hand))
    (folder / "letter 0" / "notes.txt").write_text("no image")
    page.goto(service.url)
    page.locator("#many summary").click()
    page.locator("#make").get_by_label("Choose a folder").set_input_files(folder)
    expect(page.locator("#many-note")).to_contain_text("3 classes: 6 images, 0 descriptions. 1 other file left out.")
    page.get_by_label("Choose a ZIP or CSV").set_input_files([zip_file(tmp_path), csv_file(tmp_path)])
    expect(page.locator("#many-note")).to_contain_text("2 classes: 1 image, 2 descriptions.")
    expect(page.locator("#summary")).to_have_text("4 classes · 7 images · 2 descriptions")
    expect(row(page, 2).get_by_label("Description")).to_have_value('Said "b", twice,\nand again.')
    expect(row(page, 4).get_by_label("Name")).to_have_value("new by csv")


def zip_file(folder: Path) -> Path:
    path = folder / "more.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more/new by csv/1.png", drawing(3, 0))
        archive.writestr("__MACOSX/more/new by csv/1.png", b"not an image")
    return path


def csv_file(folder: Path) -> Path:
    text = io.StringIO()
    csv.writer(text).writerows(
        [["name", "description"], ["letter 1", 'Said "b", twice,\nand again.'], ["new by csv", "New."]]
    )
    path = folder / "descriptions.csv"
    path.write_text(text.getvalue(), encoding="utf-8-sig")
    return path


def test_a_csv_with_semicolons_is_one_too(page: Page, service: Service) -> None:
    page.goto(service.url)
    page.locator("#many summary").click()
    files = {"heading.csv": "name;description\r\nzebra;A horse, striped.\r\n", "none.csv": '"okapi";"Brown; shy."\n'}
    page.get_by_label("Choose a ZIP or CSV").set_input_files(
        [upload(name, text.encode(), "text/csv") for name, text in files.items()]
    )
    expect(page.locator("#many-note")).to_contain_text("2 classes: 0 images, 2 descriptions.")
    for number, name, description in ((1, "zebra", "A horse, striped."), (2, "okapi", "Brown; shy.")):
        expect(row(page, number).get_by_label("Name")).to_have_value(name)
        expect(row(page, number).get_by_label("Description")).to_have_value(description)


def test_a_csv_with_a_row_without_a_name_is_refused_whole(page: Page, service: Service) -> None:
    page.goto(service.url)
    page.locator("#many summary").click()
    text = 'name,description\r\nzebra,"Two\r\nlines."\r\n\r\n,Of nothing.\r\n'
    page.get_by_label("Choose a ZIP or CSV").set_input_files([upload("a.csv", text.encode(), "text/csv")])
    expect(page.locator("#many-note")).to_have_text("Row 4 of a.csv has no name; give it one, or take the row out.")
    expect(page.locator("#summary")).to_be_empty()


def test_large_photographs_are_scaled_down_before_they_are_sent(page: Page, service: Service) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(centroids.photograph(1, size=1500))).save(buffer, "PNG", compress_level=0)
    assert buffer.tell() > 6_000_000
    page.goto(service.url)
    fill(page, 1, "large", images=(buffer.getvalue(),))
    fill(page, 2, "small", images=(centroids.photograph(2),))
    with page.expect_request("**/tasks") as sent:
        make(page)
    assert len(sent.value.post_data_buffer or b"") < 500_000
    made(page)


def test_what_was_entered_is_still_there_on_the_way_back(page: Page, service: Service) -> None:
    page.goto(service.url)
    fill(page, 1, "zebra", ZEBRA, (drawing(0, 0),))
    page.get_by_role("link", name="Classifiers").click()
    expect(page.get_by_role("heading", level=1, name="Classifiers")).to_be_focused()
    page.go_back()
    expect(row(page, 1).get_by_label("Name")).to_have_value("zebra")
    page.get_by_role("button", name="Six invented letters").click()
    page.get_by_role("button", name="Cancel").click()
    expect(row(page, 1).locator(".thumbs li")).to_have_count(1)


# --- while it is made


def test_progress_is_shown_as_it_happens(page: Page, unsure: Service) -> None:
    page.goto(unsure.url)
    for k in range(2):
        fill(page, k + 1, f"letter {k}", images=(drawing(k, 0),))
    page.locator("#options summary").click()
    page.get_by_label("Meta-model", exact=True).fill("slow")
    make(page)
    expect(page.locator(".steps [aria-current]")).to_have_text("Writing the network")
    expect(page.get_by_role("heading", name="Try it")).to_be_hidden()
    task_id = made(page)
    expect(page.locator(".steps")).to_be_hidden()
    assert unsure.http.get(f"/tasks/{task_id}").json()["meta_model"] == "slow"


def test_a_service_that_is_killed_and_started_again_is_found_again(page: Page, tmp_path: Path) -> None:
    centroids.meta_model(tmp_path / "meta-models", name="slow", n_loops=SLOW)
    settings = {"state_dir": tmp_path / "state", "meta_models": tmp_path / "meta-models"}
    with serve(**settings) as service:
        page.goto(service.url)
        for k in range(2):
            fill(page, k + 1, f"letter {k}", images=(drawing(k, 0),))
        make(page)
        expect(page.locator(".steps [aria-current]")).to_have_text("Writing the network")
        with page.expect_event("requestfailed"):
            service.stop(signal.SIGKILL)
        with page.expect_event("requestfailed"):
            pass
    with serve(**settings) as again:
        page.route("**/tasks/**", lambda route: route.continue_(url=route.request.url.replace(service.url, again.url)))
        made(page)
        expect(page.locator("[data-part=failure]")).to_be_hidden()
        page.unroute_all(behavior="wait")


def test_a_task_that_is_deleted_while_it_is_made_shows_no_progress(page: Page, unsure: Service) -> None:
    body = centroids.task_json({f"letter {k}": drawing(k, 1) for k in range(2)}, generator="slow")
    task_id = unsure.http.post("/tasks", json=body, headers={"Prefer": "respond-async"}).json()["id"]
    page.goto(f"{unsure.url}/#/tasks/{task_id}")
    expect(page.locator(".steps [aria-current]")).to_have_text("Writing the network")
    unsure.http.delete(f"/tasks/{task_id}")
    expect(page.locator("[data-part=failure]")).to_contain_text("deleted while it was being made")
    expect(page.locator("[data-part=progress]")).to_be_hidden()


def test_a_task_that_fails_says_why(page: Page, unsure: Service) -> None:
    page.goto(unsure.url)
    for k in range(2):
        fill(page, k + 1, f"letter {k}", images=(drawing(k, 0),))
    page.locator("#options summary").click()
    page.get_by_label("Meta-model", exact=True).fill("failing")
    make(page)
    expect(page.locator("[data-part=facts]")).to_contain_text("failed")
    task = unsure.http.get(f"/tasks/{page.url.rpartition('/')[2]}").json()
    expect(page.locator("[data-part=failure]")).to_have_text(task["error"])
    page.get_by_role("link", name="Back to the form").click()
    for k in range(2):  # nothing is to be given again
        expect(page.get_by_role("group", name=f"Class {k + 1}", exact=True).get_by_role("textbox").first).to_have_value(
            f"letter {k}"
        )
        expect(page.get_by_role("button", name=f"Remove letter {k} 0.png")).to_be_visible()
