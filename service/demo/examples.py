"""The page's examples: tasks to make at one click, and images that their classifiers have not seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from service.demo import alphabet, scenes

N_QUERIES = 6
"""Images of each class that the classifier has not seen."""
LETTERS = (0, 1, 2, 3, 4, 5)
SCENES = {
    "sea": ("the sea", "Open water to the horizon: blue waves with pale crests under a light sky."),
    "forest": ("a forest", "Dense dark green fir trees, standing one behind the other, under a grey sky."),
    "desert": ("a desert", "Bare yellow and brown sand dunes in bright sun, under a wide blue sky."),
    "city": ("a city at night", "Dark tall buildings with rows of small lit yellow windows, under a black sky."),
}


@dataclass(frozen=True)
class ExampleClass:
    """A class of an example. ``kind``: what ``image`` draws of it."""

    kind: str
    name: str
    description: str = ""


@dataclass(frozen=True)
class ExampleTask:
    """A task and its unseen images. ``n_shots``: images shown of each class; the unseen follow in number."""

    name: str
    title: str
    images: str
    n_shots: int
    classes: tuple[ExampleClass, ...]


_letters = tuple(ExampleClass(str(c), alphabet.character_name(c)) for c in LETTERS)
_scenes = tuple(ExampleClass(kind, name, text) for kind, (name, text) in SCENES.items())
EXAMPLES = (
    ExampleTask("letters", "Six invented letters, from two drawings of each", "letters", 2, _letters),
    ExampleTask("scenes", "Four landscapes, from pictures and words", "scenes", 3, _scenes),
    ExampleTask("words", "Four landscapes, from words alone", "scenes", 0, _scenes),
)


def listing() -> list[dict[str, Any]]:
    """All examples as JSON values; images by their names below ``examples/``."""
    return [
        {
            "name": example.name,
            "title": example.title,
            "classes": [
                {
                    "name": c.name,
                    "description": c.description,
                    "images": _names(example, c, 0, example.n_shots),
                    "queries": _names(example, c, example.n_shots, example.n_shots + N_QUERIES),
                }
                for c in example.classes
            ],
        }
        for example in EXAMPLES
    ]


@lru_cache(maxsize=128)
def image(name: str) -> tuple[bytes, str] | None:
    """Bytes and media type of an image in the listing, by its name; None where there is none of that name."""
    collection, _, rest = name.partition("-")
    kind, _, number = rest.partition(".")[0].rpartition("-")
    if name not in _all_names():
        return None
    if collection == "letters":
        return alphabet.drawing(int(kind), int(number)), "image/png"
    return scenes.picture(kind, int(number)), "image/jpeg"


@lru_cache(maxsize=1)
def _all_names() -> frozenset[str]:
    return frozenset(name for task in listing() for c in task["classes"] for name in [*c["images"], *c["queries"]])


def _names(example: ExampleTask, shown: ExampleClass, first: int, last: int) -> list[str]:
    suffix = "png" if example.images == "letters" else "jpg"
    return [f"{example.images}-{shown.kind}-{number}.{suffix}" for number in range(first, last)]
