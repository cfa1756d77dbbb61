"""What `training data` fetches from the network; a data set is whole, or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tarfile import TarError
from zipfile import BadZipFile

from training.data.folders import DataError


def fetch(url: str, folder: Path, md5: str | None = None) -> None:
    """Download an archive with torchvision and unpack it into ``folder``; raises DataError where that fails."""
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(url, str(folder), md5=md5)
    except (OSError, RuntimeError, EOFError, BadZipFile, TarError) as error:  # EOFError: gzip, cut short
        archive, why = folder / PurePosixPath(url).name, " ".join(str(error).split())
        rest = f"remove {archive} and try again"  # torchvision takes what is there for whole
        by_hand = "download it there yourself and try again"
        raise DataError(f"{url} could not be fetched and unpacked ({why}); {rest}, or {by_hand}.") from error


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder``, which becomes it at the end; what an interrupted attempt left is removed."""
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)
