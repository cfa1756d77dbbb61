"""Archives fetched from a server on loopback: unpacked, refused with what to do, and never half a data set."""

from __future__ import annotations

import gzip
import http.server
import json
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from torchvision.datasets import CIFAR100, Omniglot
from torchvision.datasets.utils import calculate_md5

from service.demo.alphabet import drawing
from training.cli import main
from training.data import archives, awa2, cifar_fs, cub, imagenet_text, omniglot, tiny_imagenet, zero_shot
from training.data.folders import DataError


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder served on loopback."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


def test_an_archive_is_fetched_and_unpacked(site: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = site
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        archive.writestr("set/classes.txt", "1 antelope\n")
    archives.fetch(f"{url}/set.zip", tmp_path / "data")
    assert zero_shot.read_table(tmp_path / "data" / "set" / "classes.txt") == {"1": "antelope"}
    (tmp_path / "data" / "set" / "left.txt").touch()
    archives.fetch(f"{url}/set.zip", tmp_path / "data")
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == ["classes.txt", "set", "set.zip"]


@pytest.mark.parametrize(("data_set", "folder"), [(awa2, "Animals_with_Attributes2"), (cub, "CUB_200_2011")])
def test_what_an_interrupted_unpacking_left_is_no_data_set(
    site: tuple[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch, data_set: ModuleType, folder: str
) -> None:
    url, served = site
    with zipfile.ZipFile(served / "set.zip", "w") as archive:
        for name in ("JPEGImages/antelope/1.jpg", "images/1/1.jpg", "classes.txt"):
            archive.writestr(f"{folder}/{name}", b"1 antelope")
    monkeypatch.setattr(data_set, "URL", f"{url}/set.zip")
    monkeypatch.setattr(data_set, "MD5", None, raising=False)

    def interrupted(archive: zipfile.ZipFile, to: str) -> None:
        archive.extract(archive.namelist()[0], to)
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(zipfile.ZipFile, "extractall", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data_set.download(root)
    with pytest.raises(DataError, match="run `training data"):
        data_set.source()
    for _ in range(2):
        assert data_set.download(root) == data_set.source()
    assert (data_set.source() / "classes.txt").read_text() == "1 antelope"


def test_an_archive_that_cannot_be_had_says_what_to_do(site: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = site
    with pytest.raises(DataError, match=rf"none\.zip could not be fetched .*404.*remove {tmp_path}/none\.zip and"):
        archives.fetch(f"{url}/none.zip", tmp_path)
    (folder / "spoilt.zip").write_bytes(b"other bytes")
    with pytest.raises(DataError, match=r"could not be fetched .*corrupted.*download it there yourself"):
        archives.fetch(f"{url}/spoilt.zip", tmp_path, md5="0" * 32)
    with pytest.raises(DataError, match="could not be fetched"):
        archives.fetch(f"{url}/set.zip", folder / "spoilt.zip")  # a file is no place for it


@pytest.mark.parametrize("name", ["half.zip", "half.tgz", "half.tar"])
def test_half_an_archive_is_to_be_removed_before_the_next_attempt(
    site: tuple[str, Path], tmp_path: Path, name: str
) -> None:
    url, folder = site
    whole = {"half.zip": b"PK\x03\x04", "half.tgz": gzip.compress(bytes(4000)), "half.tar": b"cut short"}
    (folder / name).write_bytes(whole[name][:20])
    with pytest.raises(DataError, match=rf"could not be .*unpacked .*remove {tmp_path}/data/{name} and try again"):
        archives.fetch(f"{url}/{name}", tmp_path / "data")


def test_a_flipped_bit_in_an_archive_is_told(tmp_path: Path) -> None:
    """Of one that is there already, and has no checksum of its own."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/classes.txt", np.random.default_rng(0).bytes(2000).hex())
    spoilt = bytearray(path.read_bytes())
    spoilt[100] ^= 0xFF
    path.write_bytes(spoilt)
    with pytest.raises(DataError, match=rf"could not be .*unpacked .*decompressing.*remove {path} and try again"):
        archives.fetch("http://127.0.0.1:9/set.zip", tmp_path)


@pytest.mark.parametrize("name", ["omniglot", "cifar-fs", "tiny-imagenet"])
def test_without_a_network_a_download_is_one_line(
    site: tuple[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    url, _ = site
    monkeypatch.setattr(Omniglot, "download_url_prefix", url)
    monkeypatch.setattr(CIFAR100, "url", f"{url}/cifar-100-python.tar.gz")
    monkeypatch.setattr(tiny_imagenet, "URL", f"{url}/tiny-imagenet-200.zip")
    assert main(["data", name]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")]
    assert "could not be fetched and unpacked" in line
    assert f"remove {root / name}" in line
    assert not (root / name / "images").exists()


def test_omniglot_can_be_asked_for_twice(site: tuple[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, folder = site
    with zipfile.ZipFile(folder / "images_background.zip", "w") as archive:
        archive.writestr("images_background/alphabet/character01/1.png", drawing(0, 0))
    monkeypatch.setattr(Omniglot, "download_url_prefix", url)
    monkeypatch.setitem(Omniglot.zips_md5, "images_background", calculate_md5(folder / "images_background.zip"))
    assert main(["data", "omniglot"]) == 0
    assert main(["data", "omniglot"]) == 0
    assert omniglot.load("all").class_names == ("alphabet/character01",)


def test_what_an_interrupted_download_left_is_no_data_set(
    site: tuple[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = site
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        for k, wnid in enumerate(("n01", "n02")):
            archive.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_0.JPEG", drawing(k, 0))
    monkeypatch.setattr(tiny_imagenet, "URL", f"{url}/tiny-imagenet-200.zip")

    def interrupted(image: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny_imagenet.download(root)
    with pytest.raises(DataError, match="run `training data tiny-imagenet`"):
        tiny_imagenet.source()
    (root / "tiny-imagenet" / "images.partial" / "n99").mkdir(parents=True)
    for _ in range(2):
        assert tiny_imagenet.download(root) == tiny_imagenet.source()
        assert tiny_imagenet.load("all").class_names == ("n01", "n02")
    assert not (root / "tiny-imagenet" / "images.partial").exists()


def test_cifar_100_becomes_class_folders(site: tuple[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one image each to train on and to test with, packed as CIFAR-100 is."""
    url, folder = site
    made = {
        "meta": {"fine_label_names": ["apple", "bear"]},
        "train": {"data": np.full((1, 3072), 9, np.uint8), "fine_labels": [1]},
        "test": {"data": np.full((1, 3072), 8, np.uint8), "fine_labels": [0]},
    }
    for name, content in made.items():
        (folder / name).write_bytes(pickle.dumps(content))
        facts = {**CIFAR100.meta, "md5": None} if name == "meta" else [[name, None]]
        monkeypatch.setattr(CIFAR100, name if name == "meta" else f"{name}_list", facts)
    with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as archive:
        for name in made:
            archive.add(folder / name, f"cifar-100-python/{name}")
    monkeypatch.setattr(CIFAR100, "url", f"{url}/cifar-100-python.tar.gz")
    monkeypatch.setattr(CIFAR100, "tgz_md5", None)
    for _ in range(2):
        assert cifar_fs.download(root) == cifar_fs.source()
    images = cifar_fs.load("all")
    assert images.class_names == ("apple", "bear")
    assert images.pixels[:, 0, 0, 0].tolist() == [8, 9]


@pytest.mark.parametrize("split", [None, "{", '["train"]', '{"validation": []}', '{"train": 3}'])
def test_cifar_fs_says_where_its_split_comes_from(root: Path, split: str | None) -> None:
    path = root / "cifar-fs" / "images" / "apple" / "1.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(drawing(0, 0))
    if split is not None:
        (root / "cifar-fs" / "split.json").write_text(split)
    assert cifar_fs.load("all").class_names == ("apple",)
    with pytest.raises(DataError, match=r"split\.json does not say what is for train .*; write \{.*Bertinetto"):
        cifar_fs.load("train")
    (root / "cifar-fs" / "split.json").write_text(json.dumps({"train": ["apple"]}))
    assert cifar_fs.load("train").class_names == ("apple",)


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"train": ["apple", "bear"], "validation": ["bear"]}, "train of .* and validation of .* share 'bear'; leave"),
        ({"train": ["apple"], "validation": ["bears"]}, "validation of .* names 'bears', .*is 'bears' 'bear'"),
        ({"train": [1], "validation": ["bear"]}, "train of .* names '1'.*classes are called 'apple', 'bear'"),
        ({"train": "apple", "validation": ["bear"]}, "train of .* names 'a', 'e', 'l' and 1 more"),
    ],
)
def test_cifar_fs_trains_on_no_class_that_validates(root: Path, part: str, split: object, said: str) -> None:
    for k, name in enumerate(("apple", "bear")):
        path = root / "cifar-fs" / "images" / "things" / name / "1.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(drawing(k, 0))
    (root / "cifar-fs" / "split.json").write_text(json.dumps(split))
    with pytest.raises(DataError, match=said):
        cifar_fs.load(part)
    (root / "cifar-fs" / "split.json").write_text('{"train": ["apple"], "validation": ["bear"], "test": ["not here"]}')
    assert cifar_fs.load("validation").class_names == ("things/bear",)


@pytest.mark.parametrize("text", ["{", "[]", '{"n01": "a fish"}', '{"n01": {}}', '{"n01": {"index": "fish"}}'])
def test_texts_of_imagenet_need_an_index(root: Path, text: str) -> None:
    path = root / "imagenet-text" / "descriptions.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(DataError, match=r"descriptions\.json does not say which class each text is of .*; write \{"):
        imagenet_text.class_indices()
    path.write_text('{"n01": {"index": 3}}')
    assert imagenet_text.class_indices() == {"n01": 3}
