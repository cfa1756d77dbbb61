"""Images in the forms people have them -> the bytes of image files. Files are read one by one, when they are sent."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from service.client.errors import UnusableInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PillowImage

ImageLike: TypeAlias = Union[str, PathLike[str], bytes, "NDArray[np.uint8]", "PillowImage"]
"""A path, a pattern of paths or a folder; a file's bytes; uint8 pixels (H, W), (H, W, 1), (H, W, 3); a Pillow image."""
Images: TypeAlias = ImageLike | Iterable[ImageLike]
"""One image or several; an array (N, H, W, C) is N images."""
Single: TypeAlias = Union[Path, bytes, "NDArray[np.uint8]", "PillowImage"]

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")
CHANNELS = (1, 3, 4)
LARGE_BYTES = 500_000
"""Files over this are scaled down before they are sent: no network here looks at that many pixels."""
LONGEST_SIDE = 1024
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
DEEP_MODES = ("I", "F")
"""Numbers of 32 bits: which of them is white only their maker knows."""


def expanded(images: Images) -> list[Single]:
    """Every single image, in order: patterns and folders as their files, in the order of their names.

    Raises UnusableInput where a pattern matches nothing, a folder has no images, or something is no image at all.
    """
    return list(_expand(images))


def encoded(image: Single) -> bytes:
    """The bytes of an image file: a file's own, pixels as PNG; raises UnusableInput."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return read(image)
    return _png(_as_pillow(image) if _is_array(image) else image)


def fit_to_send(data: bytes, large_bytes: int | None) -> bytes:
    """An image file, scaled down to 1024 pixels a side where it has more than ``large_bytes`` (None: never).

    So that a request holds dozens of photographs as cameras make them. What cannot be opened stays as it is: the
    service says what is wrong with it.
    """
    if large_bytes is None or len(data) <= large_bytes:
        return data
    from PIL import Image, ImageOps, UnidentifiedImageError

    from models.preprocess import to_8_bits

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if max(opened.size) <= LONGEST_SIDE:
                return data
            opened.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # a JPEG may be small enough by this alone
            image = to_8_bits(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return data
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    return _png(image) if "A" in image.getbands() or "transparency" in image.info else _jpeg(image)


def read(path: Path) -> bytes:
    """A file's bytes; raises UnusableInput."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableInput(f"{path} cannot be read ({error.strerror}).") from error


def class_folders(folder: str | PathLike[str]) -> dict[str, list[Path]]:
    """Class name -> its images, of a folder with a folder of images for each class; raises UnusableInput.

    Hidden folders and files, whose names begin with a dot, are those of some program.
    """
    root = Path(os.path.expanduser(folder))
    if not root.is_dir():
        raise UnusableInput(f"{root} is not a folder; give a folder with one folder of images for each class.")
    found = {below.name: image_files(below) for below in _shown(root) if below.is_dir()}
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise UnusableInput(f"{root} has no JPEG, PNG or WebP files in folders named after their classes.")
    return found


def image_files(folder: Path) -> list[Path]:
    """The JPEG, PNG and WebP files right in a folder, in the order of their names; hidden ones are left out."""
    return [path for path in _shown(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]


def _shown(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UnusableInput(f"{folder} cannot be read ({error.strerror}).") from error


def _expand(images: Any) -> Iterator[Single]:
    if isinstance(images, str | PathLike):
        yield from _paths(os.fspath(images))
    elif isinstance(images, bytes | bytearray | memoryview):
        yield bytes(images)
    elif _is_pillow(images):
        yield _of_known_depth(images)
    elif _is_array(images):
        yield from _arrays(images)
    elif isinstance(images, Iterable) and not isinstance(images, dict):
        for image in images:
            yield from _expand(image)
    else:
        kinds = "a path, a file's bytes, a Pillow image or an array of uint8"
        raise UnusableInput(f"A {type(images).__name__} is not an image; give {kinds}, or several of these.")


def _paths(text: str) -> Iterator[Path]:
    path = Path(os.path.expanduser(text))  # what is nobody's home stays as it is
    if os.path.isdir(path):
        files = image_files(path)
        if not files:
            raise UnusableInput(f"The folder {path} has no JPEG, PNG or WebP files right in it.")
        yield from files
    elif os.path.exists(path):
        yield path
    else:
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]
        if not matches:
            what = "No file matches" if glob.has_magic(text) else "There is no file"
            raise UnusableInput(f"{what} {text}; check the name, and the folder it starts from.")
        yield from matches


def _of_known_depth(image: PillowImage) -> PillowImage:
    """The image itself; raises UnusableInput where its numbers are no pixels. A PNG has 16 bits, also as an "I"."""
    if image.mode in DEEP_MODES and image.format != "PNG":
        remedy = "scale it to 0 .. 255 and convert it with .convert('L')"
        raise UnusableInput(f"A Pillow image has 8 or 16 bits, not the 32 of mode {image.mode!r}; {remedy}.")
    return image


def _arrays(array: NDArray[Any]) -> Iterator[Single]:
    """One image or a batch; three dimensions are one image where the last can be channels."""
    if array.dtype == object:
        yield from _expand(list(array.flat))
        return
    if array.dtype.name != "uint8":
        remedy = "scale it to 0 .. 255 and convert it with .astype('uint8')"
        raise UnusableInput(f"An image array holds uint8, not {array.dtype}; {remedy}.")
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS)
    is_batch = (array.ndim == 4 and array.shape[3] in CHANNELS) or (array.ndim == 3 and not is_image)
    if not (is_image or is_batch) or 0 in array.shape:
        shapes = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a batch of these"
        raise UnusableInput(f"An image array has the shape {shapes}, not {array.shape}.")
    yield from iter(array) if is_batch else (array,)


def _is_array(value: object) -> bool:
    return hasattr(type(value), "__array_interface__") and hasattr(value, "dtype")


def _is_pillow(value: object) -> bool:
    return hasattr(type(value), "__array_interface__") and hasattr(value, "getbands")  # its own would read the file


def _as_pillow(array: Any) -> PillowImage:
    import numpy as np
    from PIL import Image  # the client starts without either

    pixels = np.ascontiguousarray(array)
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def _jpeg(image: PillowImage) -> bytes:
    buffer = io.BytesIO()
    (image if image.mode in ("L", "RGB") else image.convert("RGB")).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _png(image: Any) -> bytes:
    """Upright, as a file of it would be seen: a PNG has no note of the camera's turn."""
    from PIL import ImageOps

    from models.preprocess import to_8_bits

    try:
        upright = to_8_bits(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError) as error:  # a file that Pillow has opened, and only now reads
        raise UnusableInput(f"A Pillow image cannot be read ({error}).") from error
    buffer = io.BytesIO()
    (upright if upright.mode in PNG_MODES else upright.convert("RGB")).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
