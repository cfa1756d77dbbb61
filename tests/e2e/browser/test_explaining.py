"""What carried a decision: words, saliency and adaptation are drawn as given, and shown where the API offers them."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.browser.chromium import make_example, queries, try_images, upload
from tests.e2e.processes import Service

MARKED = """async ([text, marks]) => {
    const { markedText } = await import("/assets/explain.js");
    const line = document.createElement("p");
    line.append(...markedText(text, marks, 1));
    return [...line.querySelectorAll("mark")].map((mark) => [mark.firstChild.data, mark.className, mark.title]);
}"""
PIXELS = """async (saliency) => {
    const { saliencyMap } = await import("/assets/explain.js");
    const map = saliencyMap(saliency);
    return [map.getAttribute("aria-label"), [...map.getContext("2d").getImageData(0, 0, 2, 2).data]];
}"""


def offered(service: Service, call: str) -> bool:
    return f"/tasks/{{task_id}}/{call}" in service.http.get("/openapi.json").json()["paths"]


def test_words_are_marked_where_their_characters_are(page: Page, service: Service) -> None:
    page.goto(service.url)
    text = "A 🦓 has stripes, no spots."
    marks = [
        {"start": text.index(word), "end": text.index(word) + len(word), "weight": weight, "text": word}
        for word, weight in {"spots": -0.5, "stripes": 1.0, "has": 0.00031}.items()
    ]
    beyond = {"start": 20, "end": 200, "weight": 1.0, "text": "?"}
    found = page.evaluate(MARKED, [text, [*marks, beyond]])
    assert found == [["has", "for", "+0.0003"], ["stripes", "for", "+1.00"], ["spots", "against", "\u22120.50"]]


def test_a_saliency_map_has_a_pixel_for_each_value(page: Page, service: Service) -> None:
    page.goto(service.url)
    label, pixels = page.evaluate(PIXELS, {"width": 2, "height": 2, "values": [[0.0, 2.0], [-1.0, 0.05]]})
    nothing, strong, against, faint = (pixels[i : i + 4] for i in range(0, 16, 4))
    assert nothing[3] == faint[3] == 0
    assert strong[3] > against[3] > 0
    assert strong[0] > strong[2]
    assert against[2] > against[0]
    assert "upper right" in label


def test_a_decision_is_explained(page: Page, service: Service) -> None:
    if not offered(service, "explain"):
        pytest.skip("this service offers no explanations yet")
    make_example(page, service.url, "from pictures and words")
    try_images(page, [upload("new.jpg", queries("scenes")["a forest"][0], "image/jpeg")])
    with page.expect_response("**/explain") as answered:
        page.get_by_role("button", name="Why").click()
    answer = answered.value.json()
    expect(page.locator(".why")).to_contain_text(answer["label"])
    expect(page.locator(".saliency")).to_have_count(1 if answer["saliency"] else 0)
    expect(page.locator(".why mark")).to_have_count(sum(map(len, (answer["words"] or {}).values())))
    for note in answer.get("notes", []):
        expect(page.locator(".why")).to_contain_text(note)


def test_adaptation_is_plotted(page: Page, service: Service) -> None:
    if not offered(service, "adaptation"):
        pytest.skip("this service offers no adaptation yet")
    with page.expect_response("**/adaptation") as answered:
        make_example(page, service.url, "from pictures and words")
    layers = answered.value.json()["layers"]
    expect(page.locator(".adaptation tbody th")).to_have_text([layer["name"] for layer in layers])


def test_what_the_service_does_not_offer_is_not_shown(page: Page, service: Service) -> None:
    make_example(page, service.url, "Six invented letters")
    page.get_by_role("button", name="unseen images").click()
    expect(page.locator("#status")).to_contain_text("36 images")
    assert page.get_by_role("button", name="Why").count() == (12 if offered(service, "explain") else 0)
    if not offered(service, "adaptation"):
        expect(page.locator("[data-part=adaptation]")).to_be_hidden()
