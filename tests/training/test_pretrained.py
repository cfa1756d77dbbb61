"""A base is read from whatever was trained before, to the last bit that was kept; what is none is refused by name."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.numpy import save
from torch import nn

from models import metamodel
from models.export_n3 import NETWORK, base_tensors
from models.methods.n3 import N3
from models.nn.bases import TENSORFLOW_MOBILENET, Base, BaseSpec, Classifier, fold, unfolded
from tests.models import small_n3
from tests.models.small_n3 import BASE, pixels
from training import checkpoint
from training.checkpoint import CheckpointError
from training.configs import n3, word_baselines
from training.data.folders import DataError, data_root
from training.pretrained import IMAGENET_MOBILENET, classifier_rows, origin, read_base

ORIGIN = {"pretrained": "", "dataset": "tiny-imagenet", "train_data_digest": "ba9876543210"}
SHIPPED = "models/zoo/n3-mobilenet"


@pytest.fixture(scope="module")
def made() -> N3:
    return small_n3.model()


@pytest.fixture
def folder(made: N3, tmp_path: Path) -> Path:
    """Of an exported N3, without the graphs, which no base is read from; and what it tells of its base."""
    _write(tmp_path / "small-n3", made)
    spec = {"architecture": BASE.architecture, "size": BASE.size}
    _tell(tmp_path / "small-n3", {"config": {"model": {"base": spec}}, "base": ORIGIN})
    return tmp_path / "small-n3"


def _write(folder: Path, made: N3, **changes: object) -> None:
    metamodel.write(folder, small_n3.manifest(made, **changes), {"base.safetensors": save(base_tensors(made))})


def _tell(folder: Path, training: dict[str, object]) -> None:
    (folder / "evaluation.json").write_text(json.dumps({"training": training}))


def _used(network: nn.Module) -> nn.Module:
    """The network, its normalisations as if they had met data."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


# --- an exported N3


def test_the_base_of_an_exported_n3_is_what_it_was_before_any_task(made: N3, folder: Path) -> None:
    """Its gammas, codes and projection left alone: the base's own weights, each rounded to half precision."""
    read = read_base(str(folder), BASE).network.state_dict()
    assert made.layers, "of which the gammas must not be seen"
    for name, tensor in made.target.base.network.state_dict().items():
        assert torch.equal(read[name], tensor.half().float()), name


def test_it_takes_images_of_another_size(folder: Path) -> None:
    base = read_base(str(folder), replace(BASE, size=48))
    assert base(pixels(1, size=48)).shape == (1, base.n_features)


def test_it_tells_what_its_base_has_met(folder: Path) -> None:
    assert origin(str(folder)) == ORIGIN


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (BaseSpec("resnet18", 32), r"has a squeezenet1_1, of another architecture than the config's base \(resnet18\)"),
        (replace(BASE, pixel_mean=(0.5, 0.5, 0.5)), "of another pixel_mean than"),
        (replace(BASE, same_padding=True), "of another same_padding than"),
    ],
    ids=["architecture", "pixels", "padding"],
)
def test_one_that_the_config_does_not_mean_is_refused(folder: Path, other: BaseSpec, named: str) -> None:
    with pytest.raises(DataError, match=named):
        read_base(str(folder), other)


def test_weights_that_are_not_what_it_tells_are_refused(folder: Path) -> None:
    _tell(folder, {"config": {"model": {"base": {"architecture": "resnet18", "size": 32}}}, "base": ORIGIN})
    with pytest.raises(DataError, match="has no weights of a resnet18"):
        read_base(str(folder), BaseSpec("resnet18", 32))


def _lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _change_weights(folder: Path) -> None:
    path = folder / "base.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _lose_evaluation(folder: Path) -> None:
    (folder / "evaluation.json").unlink()


def _tell_nothing(folder: Path) -> None:
    _tell(folder, {})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "There is no base .*small-n3; give the folder of an exported N3"),
        (_lose_manifest, "has no manifest.json.* give the folder of an exported N3"),
        (_change_weights, "was changed after the export"),
        (_lose_evaluation, "lacks an evaluation.json .* copy it whole"),
        (_tell_nothing, "lacks an evaluation.json that tells of its base"),
    ],
    ids=["missing", "no manifest", "changed", "no evaluation", "tells nothing"],
)
def test_a_folder_that_is_none_is_refused_with_a_remedy(folder: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(folder)
    for read in (lambda: read_base(str(folder), BASE), lambda: origin(str(folder))):
        with pytest.raises(DataError, match=said):
            read()


def test_a_meta_model_without_a_base_is_refused(made: N3, tmp_path: Path) -> None:
    _write(tmp_path / "small", made, method="hypertransformer")
    with pytest.raises(DataError, match="is of hypertransformer, which has no base; give the folder"):
        read_base(str(tmp_path / "small"), BASE)


def test_the_base_that_ships_is_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    own = n3.CONFIGS["own"]()
    assert (own.base, own.model.base) == (SHIPPED, TENSORFLOW_MOBILENET)
    assert word_baselines.OWN.base == SHIPPED
    base, shipped = read_base(own.base, own.model.base), metamodel.load(metamodel.ZOO / "n3-mobilenet").base
    for name, tensor in base.network.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), shipped[NETWORK + name])
    assert origin(own.base)["pretrained"] == "imagenet-mobilenet"


# --- a checkpoint of `training fit base`


def _checkpoint(path: Path, model: Classifier, spec: BaseSpec, **header: object) -> str:
    config = {"base": vars(spec), "pretrained": "", "dataset": "tiny-imagenet"}
    facts = {"method": "base", "config": config, "n_classes": 3, "train_data_digest": "ba9876543210"}
    checkpoint.save(path, model, None, {**facts, **header})
    return str(path)


@pytest.mark.parametrize("same_padding", [False, True])
def test_a_base_trained_from_scratch_is_folded(tmp_path: Path, same_padding: bool) -> None:
    spec = BaseSpec("mobilenet_v2", 32, same_padding=same_padding)
    model = Classifier(spec, 3)
    _used(model)
    source = _checkpoint(tmp_path / "checkpoint.safetensors", model, spec)
    base, images = read_base(source, spec), pixels(2)
    with torch.no_grad():
        expected = model.features(images)
        torch.testing.assert_close(base(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert origin(source) == ORIGIN


def test_a_base_trained_on_from_a_folded_one_is_as_it_is(tmp_path: Path) -> None:
    model = Classifier(BASE, 3, folded=True)
    config = {"base": vars(BASE), "pretrained": "imagenet-mobilenet", "dataset": "tiny-imagenet"}
    source = _checkpoint(tmp_path / "checkpoint.safetensors", model, BASE, config=config)
    read = read_base(source, BASE).network.state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in model.network.state_dict().items())
    assert origin(source)["pretrained"] == "imagenet-mobilenet"


def test_a_checkpoint_that_is_no_such_base_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(CheckpointError, match="does not exist; run `training fit` first"):
        read_base(str(path), BASE)
    source = _checkpoint(path, Classifier(BASE, 3), BASE)
    with pytest.raises(CheckpointError, match="is a squeezenet1_1, no resnet18"):
        read_base(source, BaseSpec("resnet18", 32))
    _checkpoint(path, Classifier(BASE, 3), BASE, method="n3")
    with pytest.raises(CheckpointError, match="is no base network; `training fit base` makes one"):
        read_base(source, BASE)


# --- ImageNet's


def test_torchvisions_weights_are_folded_without_their_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hub's answer is a made-up network of the same names: nothing is downloaded."""
    whole = _used(torchvision.models.resnet18(weights=None))
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: whole)
    base, images = read_base("torchvision", BaseSpec("resnet18", 32)), torch.randn(2, 3, 32, 32)
    plain, _ = unfolded("resnet18")
    plain.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("fc.")})
    with torch.no_grad():
        torch.testing.assert_close(base.network(images), fold(plain)(images))
        torch.testing.assert_close(base.network(images).flatten(1), plain.eval()(images), rtol=1e-3, atol=1e-4)
    assert origin("torchvision") == {"pretrained": "torchvision", "dataset": "imagenet", "train_data_digest": None}


def test_torchvisions_weights_that_cannot_be_fetched_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a proxy that is not there, then where a file was cut short."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    folder = tmp_path / "hub" / "checkpoints"
    said = rf"of resnet18 could not be fetched or read .*https://\S+/resnet18-\S+\.pth yourself into {folder}"
    with pytest.raises(DataError, match=said):
        read_base("torchvision", BaseSpec("resnet18", 32))
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    (folder / name).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(DataError, match=said):
        read_base("torchvision", BaseSpec("resnet18", 32))


def test_torchvisions_googlenet_wants_its_own_pixels() -> None:
    with pytest.raises(DataError, match=r"pixels of mean and deviation 0\.5"):
        read_base("torchvision", BaseSpec("googlenet", 64))


@pytest.fixture
def mobilenet() -> Path:
    """The file of ImageNet's MobileNetV2; skips where it is not at hand."""
    path = data_root() / "weights" / IMAGENET_MOBILENET
    if not path.is_file():
        pytest.skip(f"no {IMAGENET_MOBILENET} below CLASSMITH_DATASETS")
    return path


def test_tensorflows_mobilenet_is_copied_layer_by_layer(mobilenet: Path) -> None:
    """Entry by entry, depthwise layers (1, h, w, O), and others (O, h, w, I)."""
    base = read_base("imagenet-mobilenet", TENSORFLOW_MOBILENET)
    with np.load(mobilenet) as arrays, torch.no_grad():
        for number, layer in enumerate(base.convolutions.values()):
            stored = arrays[f"L{number:02}_w"]
            first, last = (stored[..., 0], stored[..., -1]) if layer.groups > 1 else (stored[0], stored[-1])
            for own, theirs in ((layer.weight[0], first), (layer.weight[-1], last)):
                moved = theirs if layer.groups > 1 else theirs.transpose(2, 0, 1)[None]
                np.testing.assert_array_equal(own.numpy()[None].squeeze(), moved.astype(np.float32).squeeze())
            assert layer.bias is not None
            np.testing.assert_array_equal(layer.bias.numpy(), arrays[f"L{number:02}_b"].astype(np.float32))
    assert number == 51


def test_its_classification_layer_reads_its_features(mobilenet: Path) -> None:
    weight, bias = classifier_rows()
    assert weight.shape == (1000, Base(TENSORFLOW_MOBILENET).n_features)
    assert bias.shape == (1000,)
    with np.load(mobilenet) as arrays:
        np.testing.assert_array_equal(bias, arrays["L52_b"][1:].astype(np.float32))


def test_without_its_file_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    for read in (classifier_rows, lambda: read_base("imagenet-mobilenet", TENSORFLOW_MOBILENET)):
        with pytest.raises(DataError, match=f"No {IMAGENET_MOBILENET} below .*set CLASSMITH_DATASETS"):
            read()
