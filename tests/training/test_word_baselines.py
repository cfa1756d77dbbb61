"""What N3 is compared with learns, resumes bit for bit, and is measured on the tasks that N3 is measured on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import metamodel
from models.nn.bases import Base
from models.task import class_text
from models.text import Encoders
from tests.training import described, small
from training import checkpoint, described_tasks, word_peers
from training.checkpoint import CheckpointError
from training.cli import main
from training.columns import COMPARISON, described_columns
from training.configs import word_baselines as configs
from training.configs.word_baselines import CONFIGS, Method
from training.data import DATASETS, descriptions
from training.data.descriptions import ClassTexts
from training.data.folders import DataError, ImageSet
from training.episodes import Episode, EpisodeShape, sample
from training.pretrained import read_base
from training.recipes.word_baselines import fit, load_peer
from training.word_features import FEATURES, _save, base_features, pooled
from training.word_peers import Answer, compare, data_of, load

METHODS: tuple[Method, ...] = get_args(Method)
STEPWISE: tuple[Method, ...] = ("text2model", "pdcnn-fc-conv", "megazsl")


@pytest.fixture(scope="module")
def texts(cloths: Path) -> dict[str, ClassTexts]:
    return descriptions.read_descriptions(descriptions.beside(cloths))


@pytest.fixture(scope="module")
def train(cloths: Path) -> ImageSet:
    return DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE)[0]


@pytest.fixture(scope="module")
def unseen(cloths: Path) -> ImageSet:
    return DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE)[1]


@pytest.fixture(scope="module")
def runs(
    cloth_base: Path, train: ImageSet, texts: dict[str, ClassTexts], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A trained run of each method."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        fit(described.peer(method, cloth_base), train, folder / method, small.CPU, texts=texts)
    return {method: folder / method for method in METHODS}


# --- training


def test_every_method_tells_its_training_classes_apart(
    runs: dict[str, Path], train: ImageSet, texts: dict[str, ClassTexts]
) -> None:
    """Ten-way, chance being 10 %; of texts that were drawn anew."""
    loaded = [load(run) for run in runs.values()]
    (column,) = compare(loaded, train, texts, runs["linear"].parent, n_episodes=3, progress=False)["columns"]
    assert column["shape"]["n_way"] == 10
    assert set(column["accuracy"]) == {"linear", "text2model", "pdcnn_fc", "pdcnn_fc_conv", "megazsl"}
    assert {name: own["mean"] for name, own in column["accuracy"].items() if own["mean"] < 2 * column["chance"]} == {}


@pytest.mark.parametrize("method", STEPWISE)
def test_a_stopped_and_resumed_run_ends_with_the_same_weights(
    method: Method, cloth_base: Path, train: ImageSet, texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    """Bit for bit, optimizer state included."""
    config = described.peer(method, cloth_base, n_steps=5)
    for name, stops in (("whole", [None]), ("parts", [2, None])):
        for stop in stops:
            fit(config, train, tmp_path / name, small.CPU, texts=texts, stop_after=stop)
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert any(name.startswith("optimizer/") for name in whole)
    entries = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 5]


def test_a_finished_run_is_not_trained_further(
    runs: dict[str, Path], cloth_base: Path, train: ImageSet, texts: dict[str, ClassTexts]
) -> None:
    before = (runs["text2model"] / "checkpoint.safetensors").read_bytes()
    fit(described.peer("text2model", cloth_base), train, runs["text2model"], small.CPU, texts=texts)
    assert (runs["text2model"] / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(("changes", "named"), [({"seed": 1}, "seed"), ({"learning_rate": 1.0}, "learning_rate")])
def test_a_run_that_was_begun_otherwise_does_not_go_on(
    changes: dict[str, float],
    named: str,
    runs: dict[str, Path],
    cloth_base: Path,
    train: ImageSet,
    texts: dict[str, ClassTexts],
) -> None:
    config = described.peer("text2model", cloth_base, **changes)
    with pytest.raises(CheckpointError, match=f"another {named}; start a new run folder"):
        fit(config, train, runs["text2model"], small.CPU, texts=texts)


def test_a_run_does_not_go_on_with_other_images(
    runs: dict[str, Path], cloth_base: Path, unseen: ImageSet, texts: dict[str, ClassTexts]
) -> None:
    with pytest.raises(CheckpointError, match="another train_data_digest"):
        fit(described.peer("text2model", cloth_base), unseen, runs["text2model"], small.CPU, texts=texts)


def test_a_class_without_text_stops_a_run(
    cloth_base: Path, train: ImageSet, texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    some = {name: own for name, own in texts.items() if name != train.class_names[0]}
    with pytest.raises(DataError, match=train.class_names[0]):
        fit(described.peer("linear", cloth_base), train, tmp_path / "run", small.CPU, texts=some)


def test_a_loaded_run_answers_as_the_trained_one(
    cloth_base: Path, train: ImageSet, texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    trained = fit(described.peer("pdcnn-fc", cloth_base, n_steps=2), train, tmp_path / "run", small.CPU, texts=texts)
    loaded, header = load_peer(tmp_path / "run" / "checkpoint.safetensors")
    assert loaded.config == trained.config
    assert header["step"] == 2
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in trained.state_dict().items())


def test_a_checkpoint_of_something_else_is_refused(cloth_base: Path, runs: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="is not of this version's word baselines"):
        load_peer(cloth_base)
    with pytest.raises(CheckpointError, match="is of base, which reads no words"):
        load(cloth_base.parent)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_config_names_convolutions_of_its_base(name: str) -> None:
    config = CONFIGS[name]()
    assert name.endswith(config.method)
    assert config.maps in Base(config.base_spec).convolutions


# --- features


def test_features_are_computed_once(cloth_base: Path, train: ImageSet, tmp_path: Path) -> None:
    config = described.peer("pdcnn-fc-conv", cloth_base)
    base = read_base(config.base, config.base_spec)
    one = base_features(config, base, train, tmp_path, small.CPU)
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    other = base_features(config, base, train, tmp_path, small.CPU)
    assert kept.stat().st_mtime_ns == before
    assert one.maps is not None
    assert other.maps is not None
    np.testing.assert_array_equal(one.raw, other.raw)
    np.testing.assert_array_equal(one.maps, other.maps)
    with torch.no_grad():
        np.testing.assert_allclose(base(torch.from_numpy(train.pixels[:3])).numpy(), one.raw[:3], rtol=1e-4, atol=1e-5)
    base.convolutions["features.12.squeeze"].weight.data += 0.1
    base_features(config, base, train, tmp_path, small.CPU)
    assert len(list(tmp_path.iterdir())) == 2  # another base has other features


def test_features_are_saved_whole_by_each_of_two_that_write_them_together(tmp_path: Path) -> None:
    path = tmp_path / "features" / "raw.npz"

    class WhileAnotherSaves:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            _save(path, {"raw": np.ones(3, np.float32)})
            return np.ones(3, np.float32)

    _save(path, {"raw": WhileAnotherSaves()})  # type: ignore[dict-item]
    with np.load(path) as arrays:
        assert arrays["raw"].tolist() == [1, 1, 1]
    assert list(path.parent.iterdir()) == [path]


def test_features_that_fail_to_be_saved_leave_nothing(tmp_path: Path) -> None:
    class Full:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        _save(tmp_path / "raw.npz", {"raw": np.ones(3, np.float32), "maps": Full()})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_maps_are_what_the_named_convolution_reads(cloth_base: Path, train: ImageSet, tmp_path: Path) -> None:
    config = described.peer("pdcnn-fc-conv", cloth_base)
    base = read_base(config.base, config.base_spec)
    found = base_features(config, base, train, tmp_path, small.CPU)
    assert found.maps is not None
    assert found.maps.shape[:2] == (len(train.pixels), base.convolutions[config.maps].in_channels)
    with pytest.raises(DataError, match="has no convolution 'nowhere'"):
        base_features(replace(config, maps="nowhere"), base, train, tmp_path, small.CPU)


def test_documents_are_pooled_to_unit_vectors() -> None:
    tokens = np.array([[3, 0], [1, 4]], np.float16)
    np.testing.assert_allclose(pooled([tokens], "max"), [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(pooled([tokens], "mean"), [[2 / 8**0.5, 2 / 8**0.5]], rtol=1e-6)


# --- measuring


def test_columns_go_as_far_as_the_images_do_each_once(train: ImageSet, unseen: ImageSet) -> None:
    """Ten classes of seven images, then two of them: no column of ten classes or fewer is cut."""
    words, five_way = (EpisodeShape(10, 0, 7), 1000), [(EpisodeShape(5, 1, 5), 1000), (EpisodeShape(5, 5, 2), 1000)]
    assert described_columns(train, 1000, shots=True) == [words, *five_way]
    assert described_columns(train, 1000, shots=False) == [words]
    assert described_columns(unseen, 20, shots=False) == [(EpisodeShape(2, 0, 7), 20)]


@pytest.mark.parametrize("n_classes", [11, 16, 40, 50])
def test_a_column_of_more_classes_asks_about_as_many_images_as_one_of_ten(n_classes: int) -> None:
    labels = np.repeat(np.arange(n_classes), 10)
    names = tuple(f"class {k}" for k in range(n_classes))
    images = ImageSet(np.zeros((len(labels), 2, 2, 3), np.uint8), labels, names, names)
    (ten, n_ten), (all_, n_all) = described_columns(images, 1000, shots=False)
    assert (ten.n_way, all_.n_way, n_ten) == (10, min(40, n_classes), 1000)
    n_asked = [shape.n_images * n for shape, n in ((ten, n_ten), (all_, n_all))]
    assert n_asked[0] - all_.n_images < n_asked[1] <= n_asked[0]
    assert [n for _, n in described_columns(images, 2, shots=False)] == [2, 2]  # fewer have no interval


def test_the_tasks_documents_and_images_are_those_of_n3(
    runs: dict[str, Path], unseen: ImageSet, texts: dict[str, ClassTexts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a task of ``described_tasks.evaluate`` would be made of, drawn as it draws it."""
    met: list[tuple[list[str], list[int]]] = []

    def record(*_: object) -> Answer:
        def answer(documents: list[str], episode: Episode) -> np.ndarray:
            met.append((documents, episode.query.tolist()))
            return episode.query_labels

        return answer

    monkeypatch.setattr(word_peers, "_answer", record)
    (column,) = compare([load(runs["linear"])], unseen, texts, runs["linear"].parent, n_episodes=4, progress=False)[
        "columns"
    ]
    subject = described_tasks.Subject.__new__(described_tasks.Subject)
    subject.images, subject.texts = unseen, descriptions.in_order(unseen.class_names, texts)
    shape = EpisodeShape(**column["shape"])
    for number, (documents, query) in enumerate(met):
        rng = np.random.default_rng([0, number])
        episode = sample(unseen, shape, rng)
        specs = described_tasks._specs(subject, episode, described_tasks.Words(), rng)
        assert (documents, query) == ([class_text(s.name, s.description) for s in specs], episode.query.tolist())
    assert len(met) == column["n_episodes"] == 4
    assert column["accuracy"]["linear"] == {"mean": 100.0, "ci95": 0.0}


def test_seeds_are_counted_together_and_shown_apart(
    runs: dict[str, Path], cloth_base: Path, train: ImageSet, unseen: ImageSet, texts: dict[str, ClassTexts]
) -> None:
    folder = runs["linear"].parent
    for seed in (1, 2):
        fit(described.peer("pdcnn-fc", cloth_base, seed=seed), train, folder / f"fc-{seed}", small.CPU, texts=texts)
    loaded = [load(path) for path in (runs["pdcnn-fc"], folder / "fc-1", folder / "fc-2")]
    measured = compare(loaded, unseen, texts, folder, n_episodes=2, progress=False)
    for column in measured["columns"]:
        by_seed = column["by_seed"]["pdcnn_fc"]
        assert set(by_seed) == {0, 1, 2}
        assert column["accuracy"]["pdcnn_fc"]["mean"] == pytest.approx(
            np.mean([figure["mean"] for figure in by_seed.values()]), abs=0.02
        )
    assert [run["config"]["seed"] for run in measured["runs"]] == [0, 1, 2]
    with pytest.raises(DataError, match="Two runs of pdcnn_fc have the same seed"):
        data_of([*loaded, loaded[0]])


def test_runs_of_different_kinds_are_not_compared(runs: dict[str, Path]) -> None:
    one, header = load(runs["linear"])
    for name in ("train_data_digest", "base_digest"):
        with pytest.raises(DataError, match="differ in data, base or text encoder"):
            data_of([(one, header), (one, {**header, name: "another"})])


def test_a_base_that_was_trained_again_is_noticed(
    runs: dict[str, Path], unseen: ImageSet, texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    model, header = load(runs["linear"])
    with pytest.raises(DataError, match="is no longer what the runs were trained on"):
        compare([(model, {**header, "base_digest": "older"})], unseen, texts, tmp_path, n_episodes=2, progress=False)


def test_a_query_is_answered_on_its_own(
    runs: dict[str, Path], unseen: ImageSet, texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    encoder = Encoders().get("all-minilm-l6-v2")
    episode = sample(unseen, EpisodeShape(2, 0, 3), np.random.default_rng(0))
    documents = [class_text(texts[unseen.class_names[k]].name, "") for k in episode.classes]
    for run in runs.values():
        answer = word_peers._answer(*load(run), unseen, encoder, run.parent)
        together = answer(documents, episode)
        for i in range(len(episode.query)):
            alone = replace(episode, query=episode.query[i : i + 1], query_labels=episode.query_labels[i : i + 1])
            assert answer(documents, alone).tolist() == [together[i]]


def test_an_n3_is_measured_on_its_own_embeddings(
    cloth_run: Path, runs: dict[str, Path], unseen: ImageSet, texts: dict[str, ClassTexts]
) -> None:
    model, header = load(cloth_run)
    static = {**header, "config": {**header["config"], "embeddings": "static"}}
    loaded = [load(runs["linear"]), (model, header), (model, static)]
    assert data_of(loaded) == ("tiny-imagenet", described.SIZE)
    measured = compare(loaded, unseen, texts, runs["linear"].parent, n_episodes=2, progress=False)
    adapted = "N3, features.12.squeeze, features.12.expand1x1 adapted"
    names = ["linear", adapted, f"{adapted}, static embeddings"]
    assert [run["method"] for run in measured["runs"]] == names
    alone = [f"{name}: its classification layer alone" for name in names[1:]]
    assert [list(column["accuracy"]) for column in measured["columns"]] == [[*names, *alone]] * len(measured["columns"])


def test_an_n3_answers_as_its_export_does(
    cloth_run: Path, cloth_zoo: Path, unseen: ImageSet, texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    network = described_tasks.Subject(metamodel.load(cloth_zoo / "cloths"), unseen, texts)
    answer = word_peers._answer(*load(cloth_run), unseen, Encoders().get("all-minilm-l6-v2"), tmp_path)
    rng = np.random.default_rng(3)
    episode = sample(unseen, EpisodeShape(2, 0, 7), rng)
    specs = described_tasks._specs(network, episode, described_tasks.Words(), rng)
    logits = network.network(network.write(specs))(episode.query)
    clear = np.abs(logits[:, 0] - logits[:, 1]) > 0.01
    documents = [class_text(spec.name, spec.description) for spec in specs]
    assert clear.sum() > 3
    assert answer(documents, episode)[clear].tolist() == logits.argmax(-1)[clear].tolist()


# --- the commands


def test_the_commands_train_resume_and_compare(
    cloths: Path, cloth_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = described.peer("text2model", cloth_base, n_steps=3)
    monkeypatch.setitem(configs.CONFIGS, "tiny-text2model", lambda: config)
    run, out = tmp_path / "text2model", tmp_path / "figures" / "peers.json"
    common = ["fit", "word-baselines", "--config", "tiny-text2model", "--images", str(cloths), "--device", "cpu"]
    for steps in ("2", "3"):
        assert main([*common, "--run", str(run), "--steps", steps]) == 0
    assert checkpoint.read_header(run / "checkpoint.safetensors")["step"] == 3
    assert f"training compare-words {run} --out FILE" in capsys.readouterr().out
    assert (tmp_path / FEATURES).is_dir()
    compared = ["compare-words", str(run), "--images", str(cloths), "--episodes", "2", "--out", str(out)]
    assert main(compared) == 0
    measured = json.loads(out.read_text())
    assert measured["command"] == f"training compare-words {run} --images {cloths} --episodes 2 --seed 0"
    assert measured["base"]["train_data_digest"] == measured["train_data_digest"]
    assert measured["runs"][0]["steps"] == 3
    more = shutil.copytree(cloths, tmp_path / "cloths")
    shutil.copytree(more / "plain red", more / "a new class")  # which shifts who validates
    assert main(["compare-words", str(run), "--images", str(more), "--out", str(out)]) == 2
    assert "trained on other images" in capsys.readouterr().err
    assert main(["compare-words", str(cloth_base.parent), "--out", str(out)]) == 2
    assert "reads no words" in capsys.readouterr().err


def test_an_export_keeps_the_comparison_that_has_its_run(
    cloths: Path,
    cloth_run: Path,
    cloth_zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(described_tasks, "CALIBRATION", (EpisodeShape(2, 0, 2),))
    folder = shutil.copytree(cloth_zoo / "cloths", tmp_path / "cloths")
    table, export = folder / COMPARISON, ["export", str(cloth_run), "--to", str(folder), "--images", str(cloths)]
    compared = ["compare-words", str(cloth_run), "--images", str(cloths), "--episodes", "2", "--seed", "0"]
    assert main([*compared, "--out", str(table)]) == 0
    (folder / "CARD.md").write_text("of the former weights")
    before = table.read_text()
    assert main(export) == 0
    assert table.read_text() == before
    assert not (folder / "CARD.md").exists()
    assert "dropped" not in capsys.readouterr().out

    table.write_text("half a tab")
    assert main(export) == 2
    assert "holds no comparison" in capsys.readouterr().err
    assert table.exists()
