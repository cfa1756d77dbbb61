"""What `training data` fetches from the network; a data set is whole, or not there."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tarfile import TarError
from zipfile import BadZipFile

from training.data.folders import DataError


def fetch(url: str, folder: Path, md5: str | None = None) -> None:
    """Download an archive with torchvision and unpack it into ``folder``; raises DataError where that fails.

    What it holds appears there when all of it is unpacked, in place of what is there by the same name.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    archive = folder / PurePosixPath(url).name
    try:
        partial = _empty_beside(archive)
        download_and_extract_archive(url, str(folder), str(partial), md5=md5)
        for member in sorted(partial.iterdir()):
            _take_place(member, folder / member.name)
        partial.rmdir()
    except (OSError, RuntimeError, EOFError, BadZipFile, TarError, zlib.error) as error:  # EOFError: gzip, cut short
        why = " ".join(str(error).split())
        rest = f"remove {archive} and try again"  # torchvision takes what is there for whole
        by_hand = "download it there yourself and try again"
        raise DataError(f"{url} could not be fetched and unpacked ({why}); {rest}, or {by_hand}.") from error


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder``, which becomes it at the end; what an interrupted attempt left is removed."""
    partial = _empty_beside(folder)
    yield partial
    partial.rename(folder)


def _empty_beside(path: Path) -> Path:
    partial = path.with_name(f"{path.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def _take_place(new: Path, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    new.replace(path)
