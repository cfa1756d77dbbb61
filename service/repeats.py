"""Images that are sent more than once: what is refused, and what their author is told. Equal pixels are one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from models.errors import ImpossibleTask
from models.metamodel import Manifest
from models.task import ClassSpec, digest_of
from service.descriptions import listed


def check_images(classes: Sequence[ClassSpec], manifest: Manifest) -> tuple[str, ...]:
    """Raise ImpossibleTask where two classes have the same images and no other words that are read: nothing differs.

    Else notes: which classes hold an image more than once, and which hold one that another class holds, too.
    """
    digests = [[digest_of([image.tobytes()]) for image in spec.images] for spec in classes]
    seen: dict[tuple[frozenset[str], str], int] = {}
    for i, (spec, own) in enumerate(zip(classes, digests, strict=True)):
        if not own:
            continue
        words = spec.description.casefold() if manifest.accepts_descriptions else ""
        first = seen.setdefault((frozenset(own), words), i)
        if first != i:
            remedy = "add images that tell them apart" + (", or say what does" if manifest.accepts_descriptions else "")
            message = f"Classes {classes[first].name!r} and {spec.name!r} have the same images; {remedy}."
            raise ImpossibleTask(message, where=f"classes[{i}].images")
    return _notes(classes, digests)


def _notes(classes: Sequence[ClassSpec], digests: Sequence[Sequence[str]]) -> tuple[str, ...]:
    n_holders = Counter(digest for own in digests for digest in set(own))
    shared = [spec for spec, own in zip(classes, digests, strict=True) if any(n_holders[digest] > 1 for digest in own)]
    repeated = [spec for spec, own in zip(classes, digests, strict=True) if len(set(own)) < len(own)]
    notes = [f"{listed(shared)} have images in common, which cannot tell them apart."] if shared else []
    notes += [f"The images of {listed(repeated)} hold repeats, which add nothing new."] if repeated else []
    return tuple(notes)
