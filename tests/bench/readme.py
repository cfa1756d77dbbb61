"""The README's tables and tree, made from the files that hold the facts.

    python -m tests.bench.readme            rewrite the marked blocks of README.md
    python -m tests.bench.readme --check    say whether they are up to date

Accuracy is from each meta-model's evaluation.json, speed and faults from the results.json of tests/bench and
tests/chaos, the tree from the first lines of the modules' docstrings; what other files are is said in FILES.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import metamodel, quantised
from tests.bench.__main__ import PARTS, RESULTS, rows
from tests.chaos import figures
from training.card import COMPARED_HEAD, column_name, compared_cells, met

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

FILES = {
    ".ci/run": "what CI runs: make check, make test",
    ".dockerignore": "what the images are built from",
    ".github/ISSUE_TEMPLATE/": "what an issue should say: a fault, a weak classifier, an idea",
    ".gitignore": "what is never committed",
    ".pre-commit-config.yaml": "make check before each commit, for those who use pre-commit",
    "CHANGELOG.md": "what changed, by version",
    "CONTRIBUTING.md": "where things go, how code is written",
    "LICENSE": "Apache-2.0",
    "Makefile": "demo, test, check, bench, docs, format, readme",
    "README.md": "this page",
    "SECURITY.md": "what is promised, how to report a weakness",
    "constraints.txt": "the versions that the tests passed with",
    "docker-compose.yml": "Redis, the service, a worker for a GPU, and Prometheus with Grafana",
    "docker/grafana/dashboard.json": "the dashboard: requests, stages, generations, memory",
    "docker/grafana/provisioning/": "how the compose file's Grafana finds Prometheus and the dashboard",
    "docker/kubernetes/": "manifests: replicas with autoscaling, workers on GPUs, Redis, the balancer",
    "docker/nginx.conf": "a balancer that sends every request for a task to the same replica",
    "docker/prometheus/alerts.test.yml": "promtool's tests of the alerts: which fire when",
    "docker/prometheus/alerts.yml": "when to wake somebody; what to do then is in docs/operations.md",
    "docker/prometheus/prometheus.yml": "what the compose file's Prometheus scrapes",
    "docker/service.Dockerfile": "the service without torch, for CPU or GPU",
    "docker/training.Dockerfile": "the training half",
    "docs/command-line.md": "how to: the classmith command",
    "docs/curl.md": "how to: curl, and any other language",
    "docs/how-it-works.md": "the idea, the words, and what follows from them",
    "docs/index.md": "the site's first page",
    "docs/limits.md": "what accuracy to expect, and when to take something else",
    "docs/notebooks/": "notebooks on images that the project draws itself; kept without outputs, run by the tests",
    "docs/python.md": "how to: the Python client",
    "docs/reference-http.md": "every call and shape, a template over the OpenAPI document",
    "docs/reference-python.md": "the public API, from its docstrings",
    "docs/reference-settings.md": "every setting, from service/settings.py",
    "docs/scikit-learn.md": "how to: the estimator",
    "docs/tutorial.md": "the first hour: from nothing to a classifier of your own photographs",
    "mkdocs.yml": "the site of docs/: make docs",
    "docs/decisions.md": "what was decided, and why",
    "docs/open-inference.md": "the Open Inference Protocol here: inputs, outputs, clients of Triton and KServe",
    "docs/operations.md": "metrics, traces, logs, alerts, and what to do when one fires",
    "docs/security.md": "a threat model: what could be done to the service, what stops it, what is left",
    "docs/scaling.md": "more than one machine: replicas, workers, Redis, what happens when any of them fails",
    "docs/screenshots/": "the page in each of its states; `python -m tests.e2e.screenshots` writes them",
    "docs/training.md": "training your own meta-model on a folder of classes, from start to served",
    "tests/compatibility/v1/": "what version 0.1.0 stored: a meta-model, a recipe, a bundle, a state folder, answers",
    "models/encoders/": "graphs of text encoders, without weights; where each one's own files are, and their digests",
    "tests/models/golden.json": "answers of a small fixed HyperTransformer; golden.py writes it",
    "pyproject.toml": "dependencies, tools, the import contracts",
    "service/web/": "the page: static files, no build step",
    "tests/bench/results.json": "what `make bench` measured last",
    "tests/chaos/results.json": "what `make chaos` and its long runs counted last",
}
"""What the files that are not Python are; a name that ends in a slash stands for a folder."""

ZOO = "models/zoo/"
TRANSDUCTIVE = "transductive"
DESCRIBED_CONTROLS = {
    "generated": "written network",
    "classification_layer_alone": "its classification layer alone",
    "words_alone": "words alone",
    "images_alone": "images alone",
    "weighted_sum": "their best weighted sum",
    "nearest_centroid": "nearest centroid, same features",
    "shuffled": "classes shuffled",
}


def blocks() -> dict[str, str]:
    """Name of each marked block of the README -> its lines."""
    return {"accuracy": accuracy(), "fine_tuning": fine_tuning(), "speed": speed(), "faults": faults(), "tree": tree()}


def render(readme: str) -> str:
    for name, content in blocks().items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        head, _, rest = readme.partition(begin)
        _, _, tail = rest.partition(end)
        readme = f"{head}{begin}{content}{end}{tail}"
    return readme


def accuracy() -> str:
    """Every column of each meta-model's evaluation; those that read words have a row for each, beside its controls."""
    evaluated = evaluations()
    if not evaluated:
        return ""
    shown = [(name, e) for name, e in evaluated if "given" not in e["columns"][0]]
    described = [(name, e) for name, e in evaluated if "given" in e["columns"][0]]
    lines = [
        "**Accuracy**, % on classes kept out of training, mean and 95 % interval over episodes; support and query "
        "disjoint, every image answered on its own. From images, behind the stroke: nearest centroid on the same "
        "features, of the same mirrored or shifted images where the generator sees such; more controls, and pixels "
        "alone, are in the cards. The column that is named transductive is the paper's protocol: each layer "
        "normalised with the statistics of all queries of a task at once; empty where "
        "tasks share their convolutions, or not measured yet:",
        "",
        *tables_of_shown(shown),
        *table(described, DESCRIBED_CONTROLS),
        *(f"- {name}'s base has met {met_by(e)}" for name, e in described),
        "",
        "Each row is in the `evaluation.json` beside its card, with seed, data digest and hardware, and comes from:",
        "",
        *(f"- {name}: `{evaluation['command']}`" for name, evaluation in evaluated),
        "",
        "",
    ]
    return "\n".join(lines)


def evaluations() -> list[tuple[str, dict[str, Any]]]:
    """Name of each meta-model that was evaluated, and its evaluation.json."""
    paths = sorted((ROOT / ZOO).glob("*/evaluation.json"))
    found = [(path.parent.name, json.loads(path.read_text())) for path in paths]
    return [(name, evaluation) for name, evaluation in found if evaluation["columns"]]


def fine_tuning() -> str:
    """A row for each column that was also fine-tuned; empty where none was."""
    rows = [
        f"| [{name}]({ZOO}{name}/CARD.md) | {column_name(column)} | {' | '.join(compared_cells(column))} |"
        for name, evaluation in evaluations()
        for column in evaluation["columns"]
        if "fine_tuning" in column
    ]
    if not rows:
        return ""
    lines = [
        "**Against fine-tuning** the same base, every layer, on the images of the same tasks by gradient descent; "
        "accuracy in %, over the *first* episodes of a column, mean seconds to make a classifier (`training evaluate "
        "--fine-tuning`; threads and steps are in the card):",
        "",
        f"| meta-model | task | {' | '.join(COMPARED_HEAD)} |",
        "|---" * (len(COMPARED_HEAD) + 2) + "|",
        *rows,
        "",
        "",
    ]
    return "\n".join(lines)


def tables_of_shown(evaluated: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """A table for each set of tasks, an empty line after it: a row for each meta-model, the narrowest network first."""
    lines: list[str] = []
    by_width = sorted(evaluated, key=lambda one: (one[1]["training"]["config"]["model"]["channels"], one[0]))
    for tasks in dict.fromkeys(tasks_of(evaluation) for _, evaluation in by_width):
        same = [(n, e) for n, e in by_width if tasks_of(e) == tasks]
        transductive = any(TRANSDUCTIVE in e["columns"][0]["accuracy"] for _, e in same)
        heads, chances = [*tasks], [str(column["chance"]) for column in same[0][1]["columns"]]
        if transductive:
            heads.append(f"{tasks[0]}, {TRANSDUCTIVE}")
            chances.append(chances[0])
        lines += [f"| meta-model | network | episodes | {' | '.join(heads)} |", "|---" * (len(heads) + 3) + "|"]
        lines += [row_of_shown(name, e, transductive=transductive) for name, e in same]
        lines += [f"| guessing | | | {' | '.join(chances)} |", ""]
    return lines


def row_of_shown(name: str, evaluation: dict[str, Any], *, transductive: bool) -> str:
    columns, network = evaluation["columns"], description(f"{ZOO}{name}/").removesuffix(".")
    figures = [beside_centroids(column) for column in columns]
    if transductive:
        figures.append(interval(columns[0]["accuracy"].get(TRANSDUCTIVE)))
    return f"| [{name}]({ZOO}{name}/CARD.md) | {network} | {columns[0]['n_episodes']} | {' | '.join(figures)} |"


def tasks_of(evaluation: dict[str, Any]) -> tuple[str, ...]:
    return tuple(column_name(column).removesuffix(", classes from anywhere") for column in evaluation["columns"])


def beside_centroids(column: dict[str, Any]) -> str:
    accuracy = column["accuracy"]
    centroids = accuracy.get("nearest_centroid_of_views", accuracy["nearest_centroid"])
    return f"{interval(accuracy['generated'])} / {centroids['mean']:.1f}"


def table(evaluated: Sequence[tuple[str, dict[str, Any]]], controls: dict[str, str]) -> list[str]:
    """Lines of one table, and an empty one after it; none of no meta-model."""
    rows = [
        f"| [{name}]({ZOO}{name}/CARD.md) | {column_name(column)} | {column['n_episodes']} | "
        + " | ".join(interval(column["accuracy"].get(control)) for control in controls)
        + f" | {column['chance']} |"
        for name, evaluation in evaluated
        for column in evaluation["columns"]
    ]
    head = f"| meta-model | task | episodes | {' | '.join(controls.values())} | guessing |"
    return [head, "|---" * (len(controls) + 4) + "|", *rows, ""] if rows else []


def met_by(evaluation: dict[str, Any]) -> str:
    """What the base of one that reads words has met, as its card says."""
    training = evaluation["training"]
    rows = training["config"]["classifier_rows"]
    return met(training.get("base"), training["train_data_digest"], classifier_rows=rows)


def interval(figure: dict[str, float] | None) -> str:
    return f"{figure['mean']:.1f} ± {figure['ci95']:.1f}" if figure else ""


def speed() -> str:
    """The bench's table, with the machine it was taken on."""
    if not RESULTS.is_file():
        return ""
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    machine = results["hardware"]
    lines = [
        f"**Speed**, `make bench BENCH_ARGS=--save` with {results['meta_model']} on {machine['n_cpus']} cores of "
        f"{machine['cpu']}, Python {machine['python']}, ONNX Runtime {machine['onnxruntime']}:",
        "",
        "| what | measured | aim |",
        "|---|---|---|",
        *(f"| {what} | {figure} | {target} |" for what, figure, target in rows(results)),
        "",
        *in_integers(),
        *stolen(results),
        *earlier(results),
        *(f"Not measured: {part}, {results[part]['skipped']}" for part in PARTS if "skipped" in results.get(part, {})),
        "",
    ]
    return "\n".join(lines)


def earlier(results: dict[str, Any]) -> list[str]:
    """Which parts were measured with another export of the meta-model than the one in the zoo."""
    name = results["meta_model"]
    now = metamodel.load(metamodel.ZOO / name).digest
    measured = {part: results[part] for part in PARTS if "skipped" not in results.get(part, {"skipped": ""})}
    parts = [part for part, figures in measured.items() if figures.get("meta_model_digest", now) != now]
    return [f"Measured with an export of {name} before the one in the zoo: {', '.join(parts)}.", ""] if parts else []


def stolen(results: dict[str, Any]) -> list[str]:
    """How much of the machine was not there while it measured: a virtual one shares its host with others."""
    measured = [part for part in PARTS if "stolen" in results.get(part, {}) and "skipped" not in results[part]]
    shares = [f"{part} {results[part]['stolen']:.0%}" for part in measured]
    what = "Processor time that was wanted and that the host gave to others meanwhile, by part of the benchmark"
    return [f"{what}: {', '.join(shares)}.", ""] if shares else []


def in_integers() -> list[str]:
    """What quantising changed, of each meta-model that was."""
    lines = []
    for path in sorted(metamodel.ZOO.glob(f"*/{quantised.FACTS}")):
        facts = quantised.Facts.model_validate_json(path.read_bytes())
        changed = (
            f"{c['accuracy']['difference']['mean']:+.1f} ± {c['accuracy']['difference']['ci95']:.1f} ({column_name(c)})"
            for c in facts.columns
        )
        faster = min(column["speed_up"] for column in facts.columns)
        lines.append(
            f"- {path.parent.name} in 8-bit integers: {faster:.1f} times as fast on one thread, points of accuracy "
            f"{', '.join(changed)}: `{facts.command}`"
        )
    return [*lines, ""] if lines else []


def faults() -> str:
    """What `make chaos` and the long runs counted, with the machine they were taken on."""
    found = figures.lines()
    if not found:
        return ""
    machine = json.loads(figures.RESULTS.read_text())["hardware"]
    head = (
        f"**Faults**, `make chaos CHAOS_ARGS=--save`, each at random moments under load, on {machine['n_cpus']} cores:"
    )
    return "\n".join([head, "", *found, "", ""])


def tree() -> str:
    """Every file with a line on what it is; the files of the root first, then a paragraph for each folder."""
    paths = sorted(listed_files(), key=lambda path: ("/" in path, path))
    width = max(len(path) for path in paths)
    lines, folder = ["```"], ""
    for path in paths:
        if path.partition("/")[0] != folder and "/" in path:
            folder = path.partition("/")[0]
            lines.append("")
        lines.append(f"{path:{width}}  {description(path)}".rstrip())
    return "\n".join([*lines, "```", ""])


def listed_files() -> list[str]:
    """Tracked and new files, except empty ones; folders of FILES and the zoo's as one entry each."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted({entry_of(path) for path in found if (ROOT / path).is_file() and (ROOT / path).stat().st_size})


def entry_of(path: str) -> str:
    if path.startswith(ZOO):
        return ZOO + path.removeprefix(ZOO).split("/")[0] + "/"
    return next((folder for folder in FILES if folder.endswith("/") and path.startswith(folder)), path)


def description(path: str) -> str:
    """FILES's line, a meta-model's summary, or the first line of a module's docstring; "" where there is none."""
    if path in FILES:
        return FILES[path]
    manifest = ROOT / path / "manifest.json"
    if path.startswith(ZOO) and manifest.is_file():
        return str(json.loads(manifest.read_text())["summary"])
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text())) if path.endswith(".py") else None
    return (docstring or subject(path)).partition("\n")[0].removesuffix(".").replace("`", "")


def subject(path: str) -> str:
    """What a test module without a docstring is about: the module that its place and name mirror."""
    folder, _, name = path.removeprefix("tests/").rpartition("/")
    mirrored = f"{folder}/{name.removeprefix('test_')}"
    return f"Tests of {mirrored}" if name.startswith("test_") and (ROOT / mirrored).is_file() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    before = README.read_text()
    after = render(before)
    if args.check:
        print("up to date" if before == after else "out of date: make readme")
        return int(before != after)
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
