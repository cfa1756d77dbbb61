"""A classifier in the page: tried, measured, taken away, found again, deleted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from service.demo.alphabet import drawing
from tests.e2e.browser.chromium import PNG, asked, drop, made, make_example, matrix, queries, try_images, upload
from tests.e2e.processes import Service
from tests.service import centroids


def test_an_image_is_answered_with_ranked_bars(page: Page, service: Service) -> None:
    task_id = make_example(page, service.url, "Six invented letters")
    image = queries("letters")["lovee"][0]
    (answer,) = asked(service, task_id, [image])
    try_images(page, [upload("new.png", image)])
    card = page.locator(".answer")
    expect(card.locator(".verdict strong")).to_have_text("I don\u2019t know" if answer["abstain"] else answer["label"])
    ranked = sorted(answer["probabilities"], key=lambda name: -answer["probabilities"][name])
    card.locator("summary").click()
    expect(card.locator(".bars .name")).to_have_text(ranked)
    widths = card.locator(".fill").evaluate_all("fills => fills.map((fill) => parseFloat(fill.style.width))")
    assert widths == pytest.approx([100 * answer["probabilities"][name] for name in ranked], abs=1e-3)


def test_what_the_classifier_does_not_know_is_shown_as_such(page: Page, unsure: Service) -> None:
    task_id = make_example(page, unsure.url, "Six invented letters")
    image = next(
        image
        for images in queries("letters").values()
        for image in images
        if asked(unsure, task_id, [image])[0]["abstain"]
    )
    drop(page.locator("[data-part=zone]"), [("strange.png", image, PNG)])
    expect(page.locator(".answer .verdict")).to_contain_text("I don\u2019t know closest: ")
    expect(page.locator("[data-part=tally]")).to_have_text("1 image · 1 “I don\u2019t know”")
    page.get_by_label("Show", exact=True).select_option("wrong ones")
    expect(page.locator(".answer")).to_have_count(0)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_class_folders_give_a_confusion_matrix(page: Page, service: Service, tmp_path: Path, kind: str) -> None:
    task_id = make_example(page, service.url, "Six invented letters")
    images = queries("letters")
    if kind == "folder":
        for name, found in images.items():
            (tmp_path / "new" / name.upper()).mkdir(parents=True)
            for i, image in enumerate(found):
                (tmp_path / "new" / name.upper() / f"{i}.png").write_bytes(image)
        page.locator("#task").get_by_label("Choose a folder").set_input_files(tmp_path / "new")
    else:
        with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:  # stored, not deflated
            for name, found in images.items():
                for i, image in enumerate(found):
                    archive.writestr(f"{name}/{i}.png", image)
        try_images(page, [tmp_path / "new.zip"])
    expect(page.locator("[data-part=tally]")).to_contain_text(f"{sum(map(len, images.values()))} images")
    assert matrix(page) == expected_matrix(service, task_id, images)


def test_of_names_that_differ_in_case_the_exact_one_counts(page: Page, unsure: Service, tmp_path: Path) -> None:
    names = ["zebra", "Zebra", "Okapi"]
    body = centroids.task_json({name: drawing(k, 0) for k, name in enumerate(names)})
    page.goto(f"{unsure.url}/#/tasks/{unsure.http.post('/tasks', json=body).json()['id']}")
    made(page)
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
        for name, n_images in {"zebra": 1, "Zebra": 2, "ZEBRA": 3, "okapi": 4}.items():
            for i in range(n_images):
                archive.writestr(f"{name}/{i}.png", drawing(0, i + 1))
    try_images(page, [tmp_path / "new.zip"])
    expect(page.locator("[data-part=tally]")).to_contain_text("10 images")
    counts = dict.fromkeys(names, 0)
    for (name, _), n_images in matrix(page).items():
        counts[name] += n_images
    assert counts == {"zebra": 1, "Zebra": 2, "Okapi": 4}  # ZEBRA may be either


def expected_matrix(service: Service, task_id: str, images: dict[str, list[bytes]]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for name, shown in images.items():
        for answer in asked(service, task_id, shown):
            pair = name, "I don\u2019t know" if answer["abstain"] else answer["label"]
            found[pair] = found.get(pair, 0) + 1
    return found


def test_an_image_that_is_refused_stops_no_other(page: Page, service: Service) -> None:
    make_example(page, service.url, "Six invented letters")
    images = [drawing(0, 5), b"no image", drawing(1, 5), drawing(2, 5)[:200]]
    try_images(page, [upload(f"{i}.png", image) for i, image in enumerate(images)])
    expect(page.locator("[data-part=tally]")).to_contain_text("2 not classified")
    cards = page.locator(".answer")
    expect(cards).to_have_count(4)
    expect(cards.nth(1).locator(".error")).to_contain_text("JPEG, PNG")
    expect(cards.nth(3).locator(".error")).to_contain_text("truncated or corrupt")
    expect(cards.nth(2).locator(".bars").first).to_be_visible()


def test_examples_are_tried_with_images_it_has_not_seen(page: Page, service: Service) -> None:
    task_id = make_example(page, service.url, "from pictures and words")
    page.get_by_role("button", name="unseen images").click()
    expect(page.locator("#status")).to_contain_text("24 images")
    assert matrix(page) == expected_matrix(service, task_id, queries("scenes"))
    expect(page.locator(".answer")).to_have_count(12)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".answer")).to_have_count(24)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".answer, .matrix")).to_have_count(0)


@pytest.mark.parametrize("status", [429, 503])
def test_a_service_that_is_too_busy_is_asked_again_when_it_said(page: Page, service: Service, status: int) -> None:
    make_example(page, service.url, "Six invented letters")
    asked_at: list[float] = []

    def busy_once(route: Route) -> None:
        asked_at.append(time.monotonic())
        if len(asked_at) == 1:
            route.fulfill(status=status, headers={"Retry-After": "1"}, json={"status": status, "detail": "Too busy."})
        else:
            route.continue_()

    page.route("**/predict", busy_once)
    try_images(page, [upload(f"{i}.png", drawing(i, 5)) for i in range(3)])
    expect(page.locator(".answer .verdict")).to_have_count(3)
    expect(page.locator("[data-part=tally]")).to_contain_text("3 images")
    assert asked_at[1] - asked_at[0] >= 1
    assert len(asked_at) == 2


@pytest.mark.parametrize(("told", "n_tries"), [("0", 4), ("3600", 1), (None, 1)])
def test_a_service_that_stays_too_busy_is_not_asked_for_ever(
    page: Page, service: Service, told: str | None, n_tries: int
) -> None:
    make_example(page, service.url, "Six invented letters")
    asked_for: list[str] = []
    headers = {"Retry-After": told} if told else {}

    def busy(route: Route) -> None:
        asked_for.append(route.request.url)
        route.fulfill(status=429, headers=headers, json={"status": 429, "detail": "Too busy."})

    page.route("**/predict", busy)
    try_images(page, [upload("0.png", drawing(0, 5))])
    expect(page.locator("[data-part=tally]")).to_have_text("1 image · 1 not classified")
    expect(page.locator(".answer .error")).to_have_text("Too busy.")
    assert len(asked_for) == n_tries


# --- taking away, finding again, deleting


def test_the_model_is_downloaded(page: Page, service: Service) -> None:
    task_id = make_example(page, service.url, "Six invented letters")
    with page.expect_download() as downloaded:
        page.get_by_role("button", name="Download model.onnx").click()
    assert downloaded.value.suggested_filename == "model.onnx"
    assert downloaded.value.path().read_bytes() == service.http.get(f"/tasks/{task_id}/model.onnx").content


def test_the_snippets_are_copied_and_run(page: Page, service: Service, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    task_id = make_example(page, service.url, "from pictures and words")
    image = queries("scenes")["a forest"][0]
    (tmp_path / "photo.jpg").write_bytes(image)
    (answer,) = asked(service, task_id, [image])
    page.get_by_role("button", name="Copy curl").click()
    expect(page.locator("#status")).to_have_text("Copied")
    curl = page.evaluate("navigator.clipboard.readText()")
    found = subprocess.run(["sh", "-c", curl], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert json.loads(found.stdout)["predictions"] == [answer]
    code = page.get_by_role("region", name="Python").inner_text()
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert found.stdout.split() == [*answer["label"].split(), str(answer["probability"]), str(answer["abstain"])]


def test_more_tasks_come_page_by_page_also_after_one_was_deleted(page: Page, unsure: Service) -> None:
    for name in ("oldest", "older", "newest"):
        unsure.http.post("/tasks", json=centroids.task_json({f"{name} {k}": drawing(k, 3) for k in range(2)}))
    page.route("**/tasks?limit=100", lambda route: route.continue_(url=route.request.url.replace("100", "1")))
    page.goto(f"{unsure.url}/#/tasks")
    expect(page.locator(".task")).to_have_count(1)
    page.get_by_role("button", name="Delete newest").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".task")).to_have_count(0)
    for name in ("older", "oldest"):
        page.get_by_role("button", name="Show more").click()
        expect(page.locator(".task").last).to_contain_text(name)
    expect(page.locator(".task")).to_have_count(2)


def test_a_page_of_tasks_is_asked_for_once_however_often_it_is_wanted(page: Page, unsure: Service) -> None:
    for name in ("one", "two", "three"):
        unsure.http.post("/tasks", json=centroids.task_json({f"paged {name} {k}": drawing(k, 4) for k in range(2)}))
    n_tasks = len(unsure.http.get("/tasks").json()["tasks"])
    held: list[Route] = []
    page.route("**/tasks?limit=100", lambda route: route.continue_(url=route.request.url.replace("100", "1")))
    page.route("**/tasks?*after=*", lambda route: held.append(route))
    page.goto(f"{unsure.url}/#/tasks")
    page.get_by_role("button", name="Show more").dblclick()
    page.get_by_label("Search").press_sequentially("paged")
    page.route("**/tasks?*after=*", lambda route: route.continue_())
    for route in held:
        route.continue_()
    expect(page.locator("#list-state")).to_have_text(f"3 of {n_tasks} classifiers")
    expect(page.locator(".task")).to_have_count(3)


def test_what_was_typed_in_the_search_is_searched_for_on_the_way_back(page: Page, unsure: Service) -> None:
    for name in ("one", "two"):
        unsure.http.post("/tasks", json=centroids.task_json({f"typed {name} {k}": drawing(k, 6) for k in range(2)}))
    n_tasks = len(unsure.http.get("/tasks").json()["tasks"])
    page.route("**/tasks?limit=100", lambda route: route.continue_(url=route.request.url.replace("100", "1")))
    page.goto(f"{unsure.url}/#/tasks")
    page.get_by_label("Search").fill("typed one")
    expect(page.locator("#list-state")).to_have_text(f"1 of {n_tasks} classifiers")
    page.get_by_role("link", name="New").click()
    with page.expect_response("**/tasks?*after=*"):
        page.get_by_role("link", name="Classifiers").click()
    expect(page.get_by_label("Search")).to_have_value("typed one")
    expect(page.locator("#list-state")).to_have_text(f"1 of {n_tasks} classifiers")
    expect(page.locator(".task")).to_have_count(1)


def test_a_list_that_could_not_be_had_says_so_only_until_it_can(page: Page, unsure: Service) -> None:
    for name in ("one", "two"):
        unsure.http.post("/tasks", json=centroids.task_json({f"again {name} {k}": drawing(k, 5) for k in range(2)}))
    page.route("**/tasks?limit=100", lambda route: route.continue_(url=route.request.url.replace("100", "1")))
    page.route("**/tasks?*after=*", lambda route: route.abort(), times=1)
    page.goto(f"{unsure.url}/#/tasks")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#list-error")).to_contain_text("The service does not answer")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".task")).to_have_count(2)
    expect(page.locator("#list-error")).to_be_hidden()


def test_tasks_are_found_opened_and_deleted(page: Page, unsure: Service) -> None:
    names = ["okapi", "tapir", "dugong"]
    bodies = [centroids.task_json({f"{name} {k}": drawing(k, 0) for k in range(2)}) for name in names]
    ids = [unsure.http.post("/tasks", json=body).json()["id"] for body in bodies]
    page.goto(f"{unsure.url}/#/tasks")
    page.get_by_label("Search").fill("TAPIR centroids")
    expect(page.locator(".task")).to_have_count(1)
    page.get_by_role("link", name="tapir 0").click()
    made(page)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert unsure.http.get(f"/tasks/{ids[1]}").status_code == 200
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Classifiers")
    assert unsure.http.get(f"/tasks/{ids[1]}").status_code == 404
    page.get_by_label("Search").fill("dugong")
    page.get_by_role("button", name="Delete dugong").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".task")).to_have_count(0)
    assert unsure.http.get(f"/tasks/{ids[2]}").status_code == 404
    page.goto(f"{unsure.url}/#/tasks/{ids[2]}")
    expect(page.locator("[data-part=failure]")).to_contain_text(unsure.http.get(f"/tasks/{ids[2]}").json()["detail"])
