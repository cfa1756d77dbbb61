"""A meta-model folder is loaded whole and unaltered, or refused with what is wrong and what to do about it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from models import metamodel
from models.errors import InvalidMetaModel, Unavailable
from models.metamodel import MetaModel, TensorSpec
from tests.service import tiny


@pytest.fixture
def written(tmp_path: Path) -> MetaModel:
    return tiny.meta_model(tmp_path / "tiny")


def edit_manifest(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_what_was_written_is_loaded(written: MetaModel) -> None:
    loaded = metamodel.load(written.folder)
    assert loaded == written
    assert loaded.name == "tiny"
    assert set(loaded.manifest.files) == {"skeleton.onnx", "base.safetensors"}
    assert loaded.base.keys() == {"conv0.weight", "conv0.bias"}
    assert all(tensor.dtype == np.float32 for tensor in loaded.base.values())
    assert loaded.read("skeleton.onnx") == (loaded.folder / "skeleton.onnx").read_bytes()


def test_the_manifest_is_written_last(written: MetaModel) -> None:
    """Its time is the latest, so that a copy which stops midway, in the order of writing, has no manifest."""
    times = {path.name: path.stat().st_mtime_ns for path in written.folder.iterdir()}
    assert times["manifest.json"] == max(times.values())


@pytest.mark.parametrize("file", ["skeleton.onnx", "base.safetensors"])
def test_an_altered_file_is_refused(written: MetaModel, file: str) -> None:
    path = written.folder / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidMetaModel, match=rf"{file} was changed .* export or copy it again"):
        metamodel.load(written.folder)


@pytest.mark.parametrize("file", ["skeleton.onnx", "base.safetensors"])
def test_a_half_written_file_is_refused(written: MetaModel, file: str) -> None:
    path = written.folder / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidMetaModel, match=rf"{file} .* export or copy it again"):
        metamodel.load(written.folder)


@pytest.mark.parametrize("file", ["skeleton.onnx", "base.safetensors"])
def test_a_missing_file_is_refused(written: MetaModel, file: str) -> None:
    (written.folder / file).unlink()
    with pytest.raises(InvalidMetaModel, match=rf"lacks {file}.*half written or copied; export or copy it again"):
        metamodel.load(written.folder)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="this system has no users to be")
def test_a_folder_that_may_not_be_entered_is_refused(written: MetaModel) -> None:
    """As ``lost+found`` is at the root of a mounted volume."""
    written.folder.chmod(0o000)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(InvalidMetaModel, match="cannot be read: Permission denied"):
            metamodel.load(written.folder)
    finally:
        if root:
            os.seteuid(0)
        written.folder.chmod(0o755)


@pytest.mark.parametrize("file", ["skeleton.onnx", "base.safetensors"])
def test_a_file_that_changed_since_it_was_loaded_is_not_read(written: MetaModel, file: str) -> None:
    path = written.folder / file
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(Unavailable, match=rf"{file} of tiny was changed since it was loaded .* restart the service"):
        written.read(file)
    path.unlink()
    with pytest.raises(Unavailable, match=f"{file} of tiny was changed"):
        written.read(file)


def test_shared_weights_are_those_that_were_loaded(written: MetaModel) -> None:
    early, late = written, metamodel.load(written.folder)
    base = early.base
    files = {name: written.read(name) for name in written.manifest.files}
    doubled = save({name: 2 * tensor for name, tensor in base.items()})
    newer = metamodel.write(written.folder, written.manifest, {**files, "base.safetensors": doubled})
    assert early.base is base
    with pytest.raises(Unavailable, match=r"base\.safetensors of tiny was changed"):
        late.weights_before_tasks()
    np.testing.assert_array_equal(newer.base["conv0.bias"], 2 * base["conv0.bias"])


def test_a_folder_without_a_manifest_is_refused(written: MetaModel, tmp_path: Path) -> None:
    (written.folder / "manifest.json").unlink()
    with pytest.raises(InvalidMetaModel, match=r"no manifest.json.*half written; export it again"):
        metamodel.load(written.folder)
    with pytest.raises(InvalidMetaModel, match="no manifest"):
        metamodel.load(tmp_path / "nowhere")


@pytest.mark.parametrize("length", [0, 1, 100, -3])
def test_a_half_written_manifest_is_refused(written: MetaModel, length: int) -> None:
    path = written.folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InvalidMetaModel, match=r"not a manifest of format 1.*export it again"):
        metamodel.load(written.folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(format=2), "format"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.pop("max_classes"), "max_classes"),
        (lambda m: m.update(temperature=0), "temperature"),
        (lambda m: m.update(abstain_below=2), "abstain_below"),
        (lambda m: m.update(accepts_unlabeled=False, unlabeled_sharpness=2.0), "unlabeled_sharpness"),
        (lambda m: m.update(name="Has Spaces"), "name"),
        (lambda m: m["tensors"].update(x={"shape": [1], "source": "elsewhere"}), "tensors.x.source"),
        (lambda m: m["preprocess"].update(channels=2), "preprocess.channels"),
    ],
)
def test_a_manifest_of_another_shape_is_refused_with_the_field(
    written: MetaModel, change: Callable[[dict[str, object]], object], says: str
) -> None:
    edit_manifest(written.folder, change)
    with pytest.raises(InvalidMetaModel, match=f"{says}.*export it again"):
        metamodel.load(written.folder)


def test_a_manifest_from_before_descriptions_reads_images_only(written: MetaModel) -> None:
    added = ("accepts_images", "accepts_descriptions", "text_encoder")
    edit_manifest(written.folder, lambda manifest: [manifest.pop(name) for name in added])
    manifest = metamodel.load(written.folder).manifest
    assert (manifest.accepts_images, manifest.accepts_descriptions, manifest.text_encoder) == (True, False, None)


@pytest.mark.parametrize(
    "change",
    [
        {"accepts_images": False},
        {"accepts_descriptions": True},
        {"text_encoder": "all-minilm-l6-v2"},
    ],
)
def test_a_manifest_that_does_not_say_what_it_reads_is_refused(written: MetaModel, change: dict[str, object]) -> None:
    edit_manifest(written.folder, lambda manifest: manifest.update(change))
    with pytest.raises(InvalidMetaModel, match="is not a manifest"):
        metamodel.load(written.folder)


def test_the_digest_names_the_content(written: MetaModel, tmp_path: Path) -> None:
    again = tiny.meta_model(tmp_path / "elsewhere")
    assert again.digest == written.digest
    (again.folder / "evaluation.json").write_text("{}")
    (again.folder / "CARD.md").write_text("# tiny")
    assert metamodel.load(again.folder).digest == written.digest
    manifest = written.manifest.model_copy(update={"temperature": 3.0})
    files = {name: written.read(name) for name in written.manifest.files}
    assert metamodel.write(tmp_path / "other", manifest, files).digest != written.digest


def test_writing_again_replaces_the_folder(written: MetaModel) -> None:
    (written.folder / "CARD.md").write_text("# an older one's")
    manifest = written.manifest.model_copy(update={"summary": "A newer one."})
    files = {name: written.read(name) for name in written.manifest.files}
    newer = metamodel.write(written.folder, manifest, files)
    assert newer.manifest.summary == "A newer one."
    assert {path.name for path in written.folder.iterdir()} == {"manifest.json", *files}
    assert [path.name for path in written.folder.parent.iterdir()] == ["tiny"]


def test_files_beside_the_meta_model_do_not_change_its_digest(written: MetaModel) -> None:
    files = {name: written.read(name) for name in written.manifest.files}
    again = metamodel.write(written.folder, written.manifest, files, beside={"evaluation.json": b"{}"})
    assert again.digest == written.digest
    assert again.read("evaluation.json") == b"{}"


def test_a_write_that_fails_leaves_what_was_there(written: MetaModel) -> None:
    with pytest.raises(FileNotFoundError):
        metamodel.write(written.folder, written.manifest, {"no such folder/x": b""})
    assert metamodel.load(written.folder) == written
    assert [path.name for path in written.folder.parent.iterdir()] == ["tiny"]


def test_all_folders_are_found_by_name_and_hidden_ones_are_left_alone(written: MetaModel) -> None:
    parent = written.folder.parent
    for hidden in (".tiny.draft", "_old"):
        (parent / hidden).mkdir()
    (parent / "README").write_text("no folder")
    shutil.copytree(written.folder, parent / "a-copy")
    assert metamodel.load_all(parent).keys() == {"tiny"}
    assert metamodel.load_all(parent / "nowhere") == {}
    (parent / "half-written").mkdir()
    with pytest.raises(InvalidMetaModel, match="half-written"):
        metamodel.load_all(parent)


def test_removing_a_meta_model_removes_its_folder(written: MetaModel) -> None:
    metamodel.remove(written)
    assert not written.folder.exists()


def test_shapes_follow_the_number_of_classes() -> None:
    spec = TensorSpec(shape=("n_classes", 8), source="bundle")
    assert spec.shape_for(5) == (5, 8)
    assert TensorSpec(shape=(4, 3, 3, 3), source="base").shape_for(5) == (4, 3, 3, 3)


def test_every_shipped_meta_model_is_whole() -> None:
    shipped = metamodel.load_all(metamodel.ZOO)
    if not shipped:
        pytest.skip("no meta-model is in models/zoo")
    for name, meta_model in shipped.items():
        assert meta_model.folder.name == name
        assert {"generator.onnx", "skeleton.onnx", "base.safetensors"} <= set(meta_model.manifest.files)
        sources = {tensor: spec.source for tensor, spec in meta_model.manifest.tensors.items()}
        adapted = {tensor for tensor, source in sources.items() if source == "adapted"}
        wanted = {tensor for tensor, source in sources.items() if source == "base"} | adapted
        wanted |= {f"{tensor}.basis" for tensor in adapted} | {f"{t.rpartition('.')[0]}.gamma" for t in adapted}
        assert meta_model.base.keys() == wanted
