"""The report page has every section, stands by itself, shows the figures of evaluation.json, says what it lacks."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from models import metamodel
from models.methods.hypertransformer import HyperTransformer, HyperTransformerConfig
from models.preprocess import PreprocessSpec
from tests.training import described, small
from training import ablations, page, plots, probes
from training.accuracy_plots import MIN_SPAN, Scores, accuracy_by_channels, accuracy_by_shots, label_of
from training.cli import main
from training.configs.hypertransformer import Config
from training.data import DATASETS
from training.data.descriptions import beside, read_descriptions
from training.data.folders import DataError, read_images
from training.episodes import EpisodeShape
from training.evaluate import evaluate
from training.export import export
from training.published import PUBLISHED
from training.recipes.hypertransformer import fit
from training.recipes.word_baselines import fit as fit_baseline
from training.report import write
from training.subjects import Images, Options
from training.word_peers import compare, load

TINY = HyperTransformerConfig(
    channels=4,
    n_conv_layers=2,
    n_generated_layers=3,
    max_classes=12,
    n_transformer_layers=1,
    n_heads=2,
    token_dim=16,
    label_dim=8,
    image_embedding_dim=16,
    activation_embedding_dim=8,
)
SHAPE = EpisodeShape(n_way=3, n_shot=1, n_query=1, n_unlabeled=1)
N_TASKS = 12


@dataclass(frozen=True)
class Place:
    """Files as the commands leave them: drawings, a run, a zoo with one evaluated meta-model, and a further column."""

    images: Path
    run: Path
    zoo: Path
    column: Path

    @property
    def evaluation(self) -> dict[str, Any]:
        evaluation: dict[str, Any] = json.loads((self.zoo / "tiny" / "evaluation.json").read_text())
        return evaluation

    def options(self) -> Options:
        return Options(Images(self.images), n_tasks=N_TASKS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("report")
    made = Place(root / "drawings", root / "run", root / "zoo", root / "column.json")
    _draw(made.images)
    train, validation = DATASETS["omniglot"].split(made.images)
    config = Config(TINY, "omniglot", ((1.0, SHAPE),), EpisodeShape(2, 1, 1), n_steps=2, images_per_step=18)
    fit(config, train, validation, made.run, small.CPU, own_images=True, validate_every=1)
    meta_model = export(made.run, made.zoo / "tiny", images=made.images)
    everything = read_images(made.images, meta_model.manifest.preprocess)
    columns = [
        evaluate(meta_model, everything, EpisodeShape(3, n_shot, 2), n_episodes=3, progress=False) for n_shot in (1, 2)
    ]
    evaluation = {**made.evaluation, "columns": columns}
    (made.zoo / "tiny" / "evaluation.json").write_text(json.dumps(evaluation))
    grouped = replace(everything, groups=("signs",) * everything.n_classes)
    further = evaluate(
        meta_model, grouped, EpisodeShape(2, 1, 2), within_group=True, n_episodes=2, seed=3, progress=False
    )
    made.column.write_text(json.dumps(further))
    return made


@pytest.fixture(scope="module")
def peers(cloths: Path, cloth_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `training compare-words`, of one run, on all classes."""
    folder, texts = tmp_path_factory.mktemp("peers"), read_descriptions(beside(cloths))
    train, _ = DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE)
    fit_baseline(described.peer("linear", cloth_base), train, folder / "linear", small.CPU, texts=texts)
    images = read_images(cloths, PreprocessSpec(described.SIZE, 3, "crop"))
    compared = compare([load(folder / "linear")], images, texts, folder, n_episodes=3, progress=False)
    (folder / "peers.json").write_text(json.dumps(compared))
    return folder / "peers.json"


@pytest.fixture(scope="module")
def whole(place: Place, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page with everything it can show."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write(place.zoo, path, place.options(), runs=[place.run], columns=[place.column], progress=False)
    return path.read_text()


def _draw(folder: Path) -> None:
    """Twelve classes of six drawings: strokes of the class, each a little elsewhere."""
    rng = np.random.default_rng(0)
    for k in range(12):
        strokes = rng.integers(15, 90, (3, 4))
        (folder / f"sign{k:02d}").mkdir(parents=True)
        for i in range(6):
            image = Image.new("L", (105, 105), 255)
            for stroke in strokes + rng.integers(-4, 5, strokes.shape):
                ImageDraw.Draw(image).line([int(value) for value in stroke], fill=0, width=3)
            image.save(folder / f"sign{k:02d}" / f"{i}.png")


class Reader(HTMLParser):
    """What a browser would meet: elements with their attributes, the cells of every table, and the words."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._in_cell:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def test_every_section_and_plot_is_there(whole: str) -> None:
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", whole)
    assert headings == ["Meta-models", "Accuracy against channels", "tiny", "Training runs: curves and attention"]
    assert re.findall(r"<h3>(.*?)</h3>", whole) == [
        "omniglot: 3-way 1-shot, classes from anywhere",
        "omniglot: 3-way 2-shot, classes from anywhere",
        "own images: 2-way 1-shot, classes from one group",
        "Accuracy against shots, 3-way",
        "Reliability diagram",
        "Accuracy against coverage",
        "Weights of two tasks",
        "Map of the weights of many tasks",
        "Training curves",
        "Attention over support images",
    ]
    assert "not drawn" not in whole


def test_the_contents_lead_to_every_section(whole: str) -> None:
    reader = read(whole)
    anchors = {attributes["id"] for attributes in reader.all("h2")}
    assert {str(attributes["href"]) for attributes in reader.all("a")} == {f"#{anchor}" for anchor in anchors}


def test_the_page_needs_nothing_from_outside(whole: str) -> None:
    reader = read(whole)
    assert {tag for tag, _ in reader.elements}.isdisjoint({"script", "link", "iframe", "object", "base"})
    for _, attributes in reader.elements:
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert str(attributes.get("href", "#")).startswith("#")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert not re.search(r"@import|url\(|https?:", whole)


def test_drawings_need_nothing_from_outside(whole: str) -> None:
    drawings = list(svgs(whole))
    assert drawings
    for svg in drawings:
        references = re.findall(r'(?:href|src)="([^"]*)"', svg) + re.findall(r"url\(([^)]*)\)", svg)
        assert all(reference.startswith(("#", "data:")) for reference in references)
        assert "<script" not in svg


def svgs(html: str) -> Iterator[str]:
    for attributes in read(html).all("img"):
        yield base64.b64decode(str(attributes["src"]).removeprefix("data:image/svg+xml;base64,")).decode()


def test_every_drawing_says_in_words_what_it_shows_and_from_what(whole: str, place: Place) -> None:
    assert all(len(str(attributes["alt"])) > 20 for attributes in read(whole).all("img"))
    digest = place.evaluation["columns"][0]["data_digest"]
    captions = re.findall(r"<h3>(.*?)</h3>.*?<figcaption>(.*?)</figcaption>", whole, re.DOTALL)
    for title, caption in captions:
        of_training = place.evaluation["training"]["train_data_digest"]
        assert f"data digest {of_training if title == 'Training curves' else digest}" in caption
        assert re.search(r"\d+ (fixed episodes|episodes|tasks?)\b", caption)
        assert re.search(r"[sS]eed \d", caption)


def test_the_numbers_are_those_of_evaluation_json(whole: str, place: Place) -> None:
    columns = [*place.evaluation["columns"], json.loads(place.column.read_text())]
    rows = {row[0]: row[1:] for row in read(whole).rows}
    for name, label in ((name, label_of(name)) for name in columns[0]["accuracy"]):
        figures = [column["accuracy"][name] for column in columns]
        assert rows[label] == [f"{figure['mean']} ± {figure['ci95']}" for figure in figures]
    assert rows["tiny"] == ["4", *rows["written network"]]
    assert rows["chance"] == [str(column["chance"]) for column in columns]
    for key, label in (("answered_percent", "answered"), ("accuracy_when_answered", "accuracy when answered")):
        assert rows[label] == [str(column["abstention"][key]).replace("None", "none") for column in columns]
    errors = [f"{100 * column['expected_calibration_error']:.2f}" for column in columns]
    assert rows["expected calibration error"] == errors


def test_the_page_is_the_same_every_time(whole: str, place: Place, tmp_path: Path) -> None:
    write(place.zoo, tmp_path / "again.html", place.options(), runs=[place.run], columns=[place.column], progress=False)
    assert (tmp_path / "again.html").read_text() == whole


def test_an_n3_has_the_papers_figures_beside_its_peers(
    cloths: Path, cloth_zoo: Path, cloth_run: Path, peers: Path, tmp_path: Path
) -> None:
    write(cloth_zoo, tmp_path / "n3.html", Options(Images(cloths)), runs=[cloth_run], peers=[peers], progress=False)
    html = (tmp_path / "n3.html").read_text()
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert headings == ["Meta-models", ablations.TITLE, "cloths", "Training runs: curves and attention"]
    assert re.findall(r"<h3>(.*?)</h3>", html) == [
        "Ablations and peers",
        "Accuracy against shots, 3-way",
        "Reliability diagram",
        "Accuracy against coverage",
        "Magnitude of adaptation",
        "Features before and after",
        "Confusion matrix",
        "Training curves",
    ]
    assert "not drawn" not in html
    figure = json.loads(peers.read_text())["columns"][0]["by_seed"]["linear"]["0"]
    assert f"{figure['mean']:.2f} ± {figure['ci95']:.2f}" in [cell for row in read(html).rows for cell in row]
    words = read(html).words
    assert "Gamma and mu (the paper's Table 3): not measured" in words
    assert "Peers (the paper's Table 2): not measured" not in words


def test_without_images_an_n3s_figures_are_named_as_absent(cloth_zoo: Path, tmp_path: Path) -> None:
    write(cloth_zoo, tmp_path / "n3.html", Options(Images()), progress=False)
    words = read((tmp_path / "n3.html").read_text()).words
    for what in ("The magnitude of adaptation", "The penultimate activations", "The confusion matrix"):
        assert re.search(rf"{what}[^.]*: not drawn. There are no images", words)
    assert "Peers (the paper's Table 2): not measured" in words


def test_a_run_of_a_baseline_has_no_plots_of_its_own(cloth_zoo: Path, peers: Path, tmp_path: Path) -> None:
    run = peers.parent / "linear"
    write(cloth_zoo, tmp_path / "n3.html", Options(Images()), runs=[run], progress=False)
    assert f"{run}: step 0, from which none of these was exported." in read((tmp_path / "n3.html").read_text()).words


def test_peers_alone_make_a_page(peers: Path, tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    arguments = ["report", str(tmp_path / "zoo"), "--to", str(tmp_path / "page.html"), "--peers", str(peers)]
    assert main(arguments) == 0
    assert "linear map, text to class mean" in (tmp_path / "page.html").read_text()


def test_an_empty_zoo_gives_a_page_that_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "zoo").mkdir()
    assert main(["report", str(tmp_path / "zoo"), "--to", str(tmp_path / "out" / "report.html")]) == 0
    words = read((tmp_path / "out" / "report.html").read_text()).words
    assert f"There is no meta-model in {tmp_path / 'zoo'}: train one with training fit" in words
    assert "Nothing is measured yet" in words
    assert "0 meta-models (there is none in" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none"), "--to", str(tmp_path / "report.html")]) == 2
    assert "is not a folder of meta-models" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_meta_model_without_figures_says_what_measures_it(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.zoo, tmp_path / "zoo")
    path = tmp_path / "zoo" / "tiny" / "evaluation.json"
    path.write_text(json.dumps({**place.evaluation, "columns": []}))
    write(tmp_path / "zoo" / "tiny", tmp_path / "report.html", place.options(), progress=False)
    html = (tmp_path / "report.html").read_text()
    assert f"Not evaluated yet: training evaluate {path.parent} measures it." in read(html).words
    assert "Weights of two tasks" in html
    assert "Reliability diagram" not in html


def test_a_folder_without_evaluation_json_is_shown(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.zoo, tmp_path / "zoo")
    (tmp_path / "zoo" / "tiny" / "evaluation.json").unlink()
    assert write(tmp_path / "zoo", tmp_path / "report.html", place.options(), progress=False) == 1
    assert "Not evaluated yet: tiny." in (tmp_path / "report.html").read_text()


def test_without_images_or_run_the_page_says_what_it_takes(place: Place, tmp_path: Path) -> None:
    write(place.zoo, tmp_path / "report.html", Options(Images()), progress=False)
    words = read((tmp_path / "report.html").read_text()).words
    assert "The weights of two tasks and their difference: not drawn. There are no images" in words
    assert "Attention and training curves need a run's checkpoint and log" in words
    assert "Reliability diagram" in words


def test_a_broken_run_is_named_and_the_rest_drawn(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.run, tmp_path / "half")
    (tmp_path / "half" / "log.jsonl").write_text('{"step": 1, "lo')
    write(place.zoo, tmp_path / "report.html", place.options(), runs=[tmp_path, tmp_path / "half"], progress=False)
    words = read((tmp_path / "report.html").read_text()).words
    assert f"{tmp_path}: {tmp_path / 'checkpoint.safetensors'} does not exist" in words
    assert "log.jsonl is not a log of training fit" in words
    assert "Attention over support images" in words


def test_a_run_is_recognised_as_the_origin_of_a_meta_model(whole: str) -> None:
    assert "step 2, the checkpoint that tiny was exported from." in whole


def test_a_column_of_another_export_is_refused(place: Place, tmp_path: Path) -> None:
    column = json.loads(place.column.read_text())
    (tmp_path / "column.json").write_text(json.dumps({**column, "meta_model_digest": "0" * 64}))
    with pytest.raises(DataError, match="another export of tiny"):
        write(place.zoo, tmp_path / "r.html", place.options(), columns=[tmp_path / "column.json"], progress=False)
    (tmp_path / "column.json").write_text("[]")
    with pytest.raises(DataError, match="not a JSON object"):
        write(place.zoo, tmp_path / "r.html", place.options(), columns=[tmp_path / "column.json"], progress=False)


def test_words_from_files_cannot_become_markup() -> None:
    hostile = '<img src="http://example.org">&"'
    plot = page.Plot(hostile, b"<svg/>", hostile, hostile)
    parts = [plot, page.Note(hostile), page.Table(hostile, [hostile], [[hostile]])]
    html = page.render(hostile, hostile, [page.Section("a", hostile, hostile, parts)], hostile)
    assert [str(attributes["src"])[:5] for attributes in read(html).all("img")] == ["data:"]


def test_backquotes_mark_commands() -> None:
    html = page.render("title", "run `training fit` first", [], "")
    assert "<p>run <code>training fit</code> first</p>" in html


WORSE = {"mean": 50.0, "ci95": float("nan")}
SCORES = [
    Scores(f"omniglot-{channels}", channels, {"generated": {"mean": mean, "ci95": 0.5}, "new_control": WORSE}, 5)
    for channels, mean in ((64, 97.0), (8, 80.0))
]


def test_accuracies_and_published_figures_are_drawn_where_they_are() -> None:
    figure = accuracy_by_channels(SCORES, PUBLISHED["omniglot", 20, 1])
    (axes,) = figure.axes
    drawn = {container.get_label(): list(container.lines[0].get_ydata()) for container in axes.containers}
    assert drawn == {"written network": [80.0, 97.0], "new control": [50.0, 50.0]}
    lines = {line.get_label(): set(line.get_ydata()) for line in axes.lines if "published" in str(line.get_label())}
    assert lines == {"HyperTransformer, published": {87.2, 96.2}, "MAML++, published": {81.4, 97.7}}


def test_intervals_are_drawn_as_long_as_they_are() -> None:
    (axes,) = accuracy_by_channels(SCORES, ()).axes
    (bars,) = axes.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[79.5, 80.5], [96.5, 97.5]]


def test_a_small_difference_is_not_drawn_as_a_large_one() -> None:
    scores = [Scores("a", 64, {"generated": {"mean": 50.6, "ci95": 0.7}, "other": {"mean": 50.3, "ci95": 0.7}}, 20)]
    low, high = accuracy_by_channels(scores, ()).axes[0].get_ylim()
    assert low < 50.3 < 50.6 < high
    assert high - low == pytest.approx(MIN_SPAN)


def test_floors_have_a_strip_of_their_own() -> None:
    scores = [Scores("a", 1, {"generated": {"mean": 90, "ci95": 1}, "task_agnostic": {"mean": 5, "ci95": 1}}, 5)]
    upper, lower = accuracy_by_shots(scores, []).axes
    assert [container.get_label() for container in upper.containers] == ["written network"]
    assert [container.get_label() for container in lower.containers] == ["task-agnostic (mean of written weights)"]


@pytest.mark.parametrize(("shape", "cut"), [((64, 3, 3, 3), True), ((5, 256), True), ((4, 1, 3, 3), False)])
def test_kernels_of_any_width_fit(shape: tuple[int, ...], cut: bool) -> None:
    rng = np.random.default_rng(0)
    layer = rng.normal(size=shape), rng.normal(size=shape)
    with plots.style():
        figure = plots.kernels({"layer": layer})
    assert max(figure.get_size_inches()) < 12
    first = figure.axes[0].images[0].get_array()
    assert first is not None
    assert first[0, 0] == pytest.approx(layer[0].flat[0])
    assert plots.is_cut(layer[0]) is cut


@pytest.mark.parametrize("n_channels", [1, 3])
def test_grey_and_colour_images_are_shown(n_channels: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 8, 8, n_channels)).astype(np.uint8)
    with plots.style():
        mapped = plots.weight_map({"conv1": rng.normal(size=(8, 2))}, np.arange(8) % 4, list(images))
        seen = plots.attention({"logits": rng.random((2, 4))}, images, np.array([0, 0, 1, 2]), unlabeled=2)
        drawings = [plots.to_svg(figure) for figure in (mapped, seen)]
    assert all(drawing.startswith(b"<?xml") for drawing in drawings)
    assert seen.axes[0].get_title() == "support images, the last ones unlabelled"
    assert len(mapped.axes) == 1 + 4


@pytest.mark.parametrize("architecture", ["encoder", "encoder-decoder"])
def test_attention_is_of_weight_tokens_over_support_images(place: Place, architecture: Any) -> None:
    torch.manual_seed(0)
    config = HyperTransformerConfig(**{**vars(TINY), "architecture": architecture})
    images = read_images(place.images, DATASETS["omniglot"].spec)
    seen = probes.attention_of(HyperTransformer(config).eval(), images, SHAPE, seed=0)
    assert {name: rows.shape for name, rows in seen.layers.items()} == {
        "conv1": (4, 6),
        "conv2": (4, 6),
        "logits": (3, 6),
    }
    assert seen.labels.tolist() == [0, 1, 2, 12, 12, 12]
    np.testing.assert_allclose(seen.layers["logits"].sum(axis=1), 1, rtol=1e-5)
    sums = seen.layers["conv2"].sum(axis=1)
    assert (sums < 1).all() if architecture == "encoder" else np.allclose(sums, 1)


def test_each_task_of_a_cloud_has_one_anchor(place: Place) -> None:
    meta_model = metamodel.load(place.zoo / "tiny")
    images = read_images(place.images, meta_model.manifest.preprocess)
    cloud = probes.weight_cloud(meta_model, images, n_tasks=N_TASKS, seed=0)
    assert np.bincount(cloud.anchors).tolist() == [2] * 6
    assert {name: weights.shape for name, weights in cloud.weights.items()} == {
        "conv1": (N_TASKS, 4 * 9 + 4),
        "conv2": (N_TASKS, 4 * 36 + 4),
        "logits": (N_TASKS, 4 * 7 * 7 + 1),
    }
    assert len(set(cloud.class_names)) == len(cloud.examples) == 6


def test_a_cloud_needs_classes(place: Place) -> None:
    meta_model = metamodel.load(place.zoo / "tiny")
    images = read_images(place.images, meta_model.manifest.preprocess).where(lambda name, _: name < "sign03")
    with pytest.raises(DataError, match="more classes"):
        probes.weight_cloud(meta_model, images, n_tasks=N_TASKS, seed=0)


def test_closeness_tells_whether_a_class_leaves_a_trace() -> None:
    rng, anchors = np.random.default_rng(0), np.arange(60) % 6
    noise = rng.normal(size=(60, 20)).astype(np.float32)
    assert probes.closeness(noise, anchors) == pytest.approx(1, abs=0.05)
    assert probes.closeness(noise + 100 * np.eye(20, dtype=np.float32)[anchors], anchors) < 0.1
