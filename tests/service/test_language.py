"""Only what is surely another language is called one, and English needs no detector."""

from __future__ import annotations

import pytest

from service.language import NAMES, LanguageDetector

ZEBRA = "A horse-like animal whose whole body is covered with stripes, and the mane stands upright."


@pytest.fixture(scope="module")
def detector() -> LanguageDetector:
    return LanguageDetector()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ZEBRA, None),
        ("okapi", None),
        ("long tail", None),
        ("A bell pepper is a type of Capsicum annuum.", None),
        ("small brown bird, white belly, short tail", None),
        ("Un pantalon de la marque The North Face, bleu et gris, large et assez long, avec deux poches.", "French"),
        ("Un animal rayé noir et blanc qui vit en Afrique.", "French"),
        ("Зебра - полосатое животное чёрного и белого цвета", "Russian"),  # noqa: RUF001
        ("斑马是一种黑白条纹的动物", "Chinese"),
        ("二本", None),
    ],
)
def test_only_what_is_surely_another_language_is_called_one(
    detector: LanguageDetector, text: str, language: str | None
) -> None:
    assert detector.foreign(text) == language


def test_plain_english_and_short_texts_leave_the_model_unread() -> None:
    unread = LanguageDetector()
    for text in (ZEBRA, "okapi", "long tail"):
        assert unread.foreign(text) is None
    assert not unread.is_read
    assert unread.foreign("Ein sehr hoher und schmaler Turm aus Glas.") == "German"
    assert unread.is_read


def test_the_detector_knows_every_language_it_is_asked_for(detector: LanguageDetector) -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert detector.foreign("Ein sehr hoher und schmaler Turm aus Glas.") == "German"
    assert {"en", *NAMES} <= set(LanguageIdentifier.from_model_file(MODEL_FILE).labels)
