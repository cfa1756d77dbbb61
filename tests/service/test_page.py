"""What browsers get: the page's files, whole and fresh, under a policy that lets nothing else run; and the examples."""

from __future__ import annotations

import io
import re
from importlib import resources

import pytest
from PIL import Image

from service.api import page
from service.demo import examples, scenes
from tests.service.live import Live, problem

WEB = resources.files("service") / "web"
SCRIPTS = sorted(file.name for file in WEB.iterdir() if file.name.endswith(".js"))
MARKUP_FROM_TEXT = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_served_with_all_that_it_imports(service: Live, script: str) -> None:
    response = service.http.get(f"/assets/{script}")
    assert response.headers["content-type"].startswith("text/javascript")
    for name in re.findall(r'from "\./([^"]+)"', response.text):
        assert service.http.get(f"/assets/{name}").status_code == 200, name


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_text_becomes_markup(script: str) -> None:
    assert not MARKUP_FROM_TEXT.search((WEB / script).read_text("utf-8"))


def test_the_page_may_load_and_run_its_own_files_only(service: Live) -> None:
    policy = dict(part.strip().split(" ", 1) for part in page.STRICT.split(";"))
    assert service.http.get("/").headers["content-security-policy"] == page.STRICT
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"


def test_without_scripts_the_page_says_how_to_go_on(service: Live) -> None:
    (instead,) = re.findall(r"<noscript>(.*?)</noscript>", service.http.get("/").text, re.DOTALL)
    assert instead.count("curl http://localhost:8000/tasks") == 3


def test_a_file_is_sent_again_only_when_it_changed(service: Live) -> None:
    first = service.http.get("/assets/style.css")
    assert first.headers["cache-control"] == "no-cache"
    again = service.http.get("/assets/style.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert service.http.get("/assets/style.css", headers={"If-None-Match": '"other"'}).content == first.content


def test_every_image_of_the_examples_is_there(service: Live) -> None:
    for example in service.http.get("/examples").json():
        assert len(example["classes"]) >= 2
        for shown in example["classes"]:
            assert shown["description"] or shown["images"]
            assert not set(shown["images"]) & set(shown["queries"])
            for name in [*shown["images"], *shown["queries"]]:
                response = service.http.get(f"/examples/{name}")
                with Image.open(io.BytesIO(response.content)) as image:
                    assert f"image/{image.format.lower()}" == response.headers["content-type"]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["nope", "letters-0-99.png", "scenes-sea-0.png", "scenes-moon-0.jpg", "..%2Fapp.py"])
def test_an_unknown_example_is_not_found(service: Live, name: str) -> None:
    problem(service.http.get(f"/examples/{name}"), 404)


def test_scenes_are_repeatable_and_differ() -> None:
    pictures = {(kind, number): scenes.picture(kind, number) for kind in scenes.SCENES for number in range(3)}
    assert len(set(pictures.values())) == len(pictures)
    assert all(scenes.picture(*which) == data for which, data in pictures.items())
    assert scenes.contact_sheet(2).size == (2 * scenes.SIZE, len(scenes.SCENES) * scenes.SIZE)


def test_a_name_leads_to_one_image_only() -> None:
    names = [n for e in examples.listing() for c in e["classes"] for n in [*c["images"], *c["queries"]]]
    assert len({examples.image(name) for name in names}) == len(set(names))
