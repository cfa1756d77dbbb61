"""What is wrong is said in the service's own words, beside the field at fault, and nothing entered is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from service.demo.alphabet import drawing
from tests.e2e.browser.chromium import PNG, drop, fill, made, make, make_example, row, try_images
from tests.e2e.processes import Service, serve

LETTERS = (drawing(0, 0), drawing(1, 0))
N_TOO_MANY = 65


def fill_two(page: Page, first: tuple[bytes, ...] = LETTERS[:1], second: tuple[bytes, ...] = LETTERS[1:]) -> None:
    fill(page, 1, "one", images=first)
    fill(page, 2, "two", images=second)


def same_name(page: Page) -> Locator:
    fill_two(page)
    row(page, 2).get_by_label("Name").fill("one")
    return row(page, 2).locator("[data-error=name]")


def no_name(page: Page) -> Locator:
    fill_two(page)
    row(page, 1).get_by_label("Name").fill("")
    return row(page, 1).locator("[data-error=name]")


def long_description(page: Page) -> Locator:
    fill_two(page)
    row(page, 2).get_by_label("Description").fill("stripes " * 300)
    return row(page, 2).locator("[data-error=description]")


def no_image(page: Page) -> Locator:
    fill_two(page, second=(LETTERS[1], b"not an image"))
    return row(page, 2).locator(".zone .error")


def cut_image(page: Page) -> Locator:
    fill_two(page, first=(LETTERS[0][:200],))
    return row(page, 1).locator(".zone .error")


def too_many_images(page: Page) -> Locator:
    fill_two(page, second=LETTERS[1:] * N_TOO_MANY)
    return row(page, 2).locator(".zone .error")


def one_class(page: Page) -> Locator:
    fill(page, 2, "alone", images=LETTERS)
    return page.locator("#classes-error")


def nothing_at_all(page: Page) -> Locator:
    return page.locator("#classes-error")


def unknown_meta_model(page: Page) -> Locator:
    fill_two(page)
    page.locator("#options summary").click()
    page.get_by_label("Meta-model", exact=True).fill("no-such")
    return page.locator("#generator-error")


def broken_unlabelled_image(page: Page) -> Locator:
    fill_two(page)
    page.locator("#options summary").click()
    drop(page.locator("#unlabeled"), [("broken.png", LETTERS[0][:150], PNG)])
    return page.locator("#unlabeled .error")


def test_the_meta_models_there_are_can_be_chosen(page: Page, service: Service) -> None:
    page.goto(service.url)
    page.locator("#options summary").click()
    offered = page.locator("#generators option")
    expect(offered).to_have_count(1)
    page.get_by_label("Meta-model", exact=True).focus()
    expect(offered).not_to_have_count(1)
    names = offered.evaluate_all("options => options.map((option) => option.value)")
    assert names[:3] == ["auto", "cifar-fs", "n3-mobilenet"]


MISTAKES = [
    same_name, no_name, long_description, no_image, cut_image, too_many_images, one_class, nothing_at_all,
    unknown_meta_model, broken_unlabelled_image,
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_named_beside_its_field(page: Page, service: Service, mistake: Callable[[Page], Locator]) -> None:
    page.goto(service.url)
    place = mistake(page)
    with page.expect_response("**/tasks") as answered:
        make(page)
    assert not answered.value.ok
    problem = answered.value.json()
    expect(place).to_be_visible()
    expect(place).to_contain_text(problem["errors"][0]["detail"])
    expect(page.locator("#make .error:visible")).to_have_count(1)
    expect(page.locator("#status")).to_have_text(problem["detail"])


def test_the_field_at_fault_has_the_focus_and_its_error_goes_when_it_is_mended(page: Page, service: Service) -> None:
    page.goto(service.url)
    place = same_name(page)
    make(page)
    field = row(page, 2).get_by_label("Name")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    assert field.get_attribute("aria-describedby") == place.get_attribute("id")
    field.fill("other")
    expect(place).to_be_hidden()
    make(page)
    made(page)


def test_the_image_at_fault_is_marked_and_can_be_taken_out(page: Page, service: Service) -> None:
    page.goto(service.url)
    no_image(page)
    make(page)
    expect(row(page, 2).locator(".at-fault")).to_have_count(1)
    expect(row(page, 2).get_by_role("button", name="Remove two 1.png")).to_be_focused()
    page.keyboard.press("Enter")
    make(page)
    made(page)


def test_a_damaged_zip_is_said_to_be_one(page: Page, service: Service, tmp_path: Path) -> None:
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04" + bytes(500))
    make_example(page, service.url, "Six invented letters")
    try_images(page, [tmp_path / "half.zip"])
    expect(page.locator("[data-part=try-error]")).to_have_text("half.zip is not a whole ZIP archive; make it again.")


def test_an_unknown_task_and_a_service_that_is_gone_are_said_to_be_so(page: Page, tmp_path: Path) -> None:
    with serve(state_dir=tmp_path) as service:
        page.goto(f"{service.url}/#/tasks/{'0' * 32}")
        detail = service.http.get(f"/tasks/{'0' * 32}").json()["detail"]
        expect(page.locator("[data-part=failure]")).to_have_text(detail)
        page.goto(f"{service.url}/#/")
        fill_two(page)
        service.stop()
    make(page)
    expect(page.locator("#make-error")).to_contain_text("The service does not answer")
    page.get_by_role("link", name="Classifiers").click()
    expect(page.locator("#list-error")).to_contain_text("The service does not answer")


@pytest.mark.parametrize("task_id", ["..", "%2e%2e", "0" * 31, "<b>"])
def test_an_address_that_names_no_task_is_said_to_be_one(page: Page, service: Service, task_id: str) -> None:
    page.goto(f"{service.url}/#/tasks/{task_id}")
    expect(page.locator("[data-part=failure]")).to_have_text("There is no such classifier; check the address.")


def test_examples_that_cannot_be_had_are_not_offered(page: Page, service: Service) -> None:
    page.route("**/examples", lambda route: route.fulfill(status=503, json={"title": "Unavailable"}))
    page.goto(service.url)
    expect(page.locator("#rows .row")).to_have_count(2)
    expect(page.locator("#examples")).to_be_hidden()


def test_an_example_whose_images_cannot_be_had_changes_nothing_and_says_so(page: Page, service: Service) -> None:
    page.goto(service.url)
    example = page.get_by_role("button", name="Six invented letters")
    expect(example).to_be_visible()
    page.route("**/examples/*", lambda route: route.fulfill(status=503, json={"detail": "Come back later."}))
    example.click()
    expect(page.locator("#make-error")).to_have_text("Come back later.")
    expect(page.locator("#make-error")).to_be_in_viewport()
    expect(page.locator("#rows .row")).to_have_count(2)
    page.unroute("**/examples/*")
    example.click()
    expect(page.locator(".thumbs img")).to_have_count(12)
    expect(page.locator("#make-error")).to_be_hidden()


def test_unseen_images_that_cannot_be_had_are_said_to_be_so(page: Page, service: Service) -> None:
    make_example(page, service.url, "Six invented letters")
    page.route("**/examples/*", lambda route: route.abort())
    page.get_by_role("button", name="unseen images").click()
    expect(page.locator("[data-part=try-error]")).to_contain_text("The service does not answer")
