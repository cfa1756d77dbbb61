"""What each ``training`` command does with its arguments, which are in cli.py; what it says is on standard output.

What a command needs is imported when it runs, so that the others do not wait for it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.folders import DataError
from training.episodes import EpisodeShape, shrink
from training.places import refuse_unwritable

if TYPE_CHECKING:
    from training.runtime import Runtime

ONE_COLUMN: dict[str, Any] = {"ways": 5, "shots": 1, "queries": 5, "unlabeled": 0, "within_group": False}
"""Options of `training evaluate` of which only a column of one's own images has a use, and their defaults."""
EPISODES: dict[str, Any] = {"episodes": 1000, "fine_tuning": 0}
"""Those of which there is no use where every image is asked about."""
EXPORT = "training export {run} --to FOLDER"


def data(arguments: argparse.Namespace) -> None:
    """Download a data set."""
    from training.data import DATASETS
    from training.data.folders import data_root

    print(f"{arguments.name} is in {DATASETS[arguments.name].download(data_root())}")


def fit_hypertransformer(arguments: argparse.Namespace) -> None:
    """Train a HyperTransformer, or go on with a run."""
    from training.configs.hypertransformer import CONFIGS
    from training.data import DATASETS
    from training.recipes.hypertransformer import fit

    config = replace(CONFIGS[arguments.config](), seed=arguments.seed)
    config = replace(config, n_steps=arguments.steps or config.n_steps, bf16=arguments.bf16 or config.bf16)
    train, validation = DATASETS[config.dataset].split(arguments.images, train_size=config.train_size)
    if arguments.images:  # it need not have the 20 classes of 20 images that a config counts on
        shapes = tuple((weight, shrink(shape, train)) for weight, shape in config.shapes)
        config = replace(config, shapes=shapes, validation=shrink(config.validation, validation))
    is_for_comparison = config.model.normalisation == "query"
    then = "training report FOLDER --to FILE.html --run {run} (it is for comparison, no export takes it)"
    _run_fit(
        arguments,
        config.bf16,
        lambda run, here: fit(config, train, validation, run, here, own_images=arguments.images is not None),
        then=then if is_for_comparison else EXPORT,
    )


def fit_n3(arguments: argparse.Namespace) -> None:
    """Train an N3, or go on with a run."""
    from training.configs.n3 import CONFIGS
    from training.data import DATASETS
    from training.needed import texts_for
    from training.recipes.n3 import fit

    config = replace(CONFIGS[arguments.config](), seed=arguments.seed)
    config = replace(config, n_steps=arguments.steps or config.n_steps, bf16=arguments.bf16 or config.bf16)
    own = arguments.images
    config = replace(config, classifier_rows=config.classifier_rows and not own)  # own classes have no row
    texts = texts_for(config, config.model.base, own, run_of(arguments))
    train, validation = DATASETS[config.dataset].split(own, size=config.model.base.size)
    _run_fit(
        arguments,
        config.bf16,
        lambda run, here: fit(config, train, validation, run, here, texts=texts, own_images=own is not None),
    )


def fit_word_baselines(arguments: argparse.Namespace) -> None:
    """Train what N3 is compared with, or go on with a run."""
    from training.configs.word_baselines import CONFIGS
    from training.data import DATASETS
    from training.needed import texts_for
    from training.recipes.word_baselines import fit

    config = replace(CONFIGS[arguments.config](), seed=arguments.seed)
    config = replace(config, n_steps=arguments.steps or config.n_steps)
    texts = texts_for(config, config.base_spec, arguments.images, run_of(arguments))
    train, _ = DATASETS[config.dataset].split(arguments.images, size=config.base_spec.size)
    _run_fit(
        arguments,
        False,
        lambda run, here: fit(config, train, run, here, texts=texts),
        then="training compare-words {run} --out FILE",
    )


def fit_base(arguments: argparse.Namespace) -> None:
    """Train a base network, or go on with a run."""
    from training.configs.base import CONFIGS
    from training.data import DATASETS
    from training.recipes.base import fit

    config = replace(CONFIGS[arguments.config](), seed=arguments.seed)
    config = replace(config, n_epochs=arguments.epochs or config.n_epochs, bf16=arguments.bf16 or config.bf16)
    own = arguments.images
    train, validation = DATASETS[config.dataset].split(own, size=config.base.size)
    _run_fit(
        arguments,
        config.bf16,
        lambda run, here: fit(config, train, validation, run, here, own_images=own is not None),
        then="training fit n3, by a config that names it",
    )


def run_of(arguments: argparse.Namespace) -> Path:
    """The folder of a training."""
    run: Path = arguments.run or Path("runs") / arguments.config
    return run


def _run_fit(
    arguments: argparse.Namespace,
    bf16: bool,
    fit: Callable[[Path, Runtime], object],
    *,
    then: str = EXPORT,
) -> None:
    from training import runtime

    here = runtime.start(device=arguments.device, bf16=bf16)
    run = run_of(arguments)
    try:
        fit(run, here)
    finally:
        here.close()
    if here.is_main:
        print(f"trained: {run}/checkpoint.safetensors; next: {then.format(run=run)}")


def export(arguments: argparse.Namespace) -> None:
    """Make a meta-model folder of a run; says which table of an older one there it could not keep."""
    from training.columns import COMPARISON
    from training.export import export

    refuse_unwritable(arguments.to, is_folder=True)
    table = arguments.to / COMPARISON
    before = table.read_text() if table.is_file() else ""
    exported = export(arguments.run, arguments.to, images=arguments.images, summary=arguments.summary)
    if before and not table.is_file():
        again = f"{json.loads(before)['command']} --out {table}"
        print(f"dropped {table}, where {arguments.run} is not among the runs; what made it: {again}")
    print(f"exported: {exported.folder} (digest {exported.digest[:12]}); next: training evaluate {exported.folder}")


def quantise(arguments: argparse.Namespace) -> None:
    """Write a meta-model's networks in 8-bit integers, and print what that changes."""
    from models import metamodel
    from training.columns import quantise_trained

    refuse_unwritable(arguments.meta_model, is_folder=True)
    facts = quantise_trained(
        metamodel.load(arguments.meta_model),
        images=arguments.images,
        n_episodes=arguments.episodes,
        seed=arguments.seed,
    )
    for column in facts.columns:
        accuracy = {name: figure["mean"] for name, figure in column["accuracy"].items()}
        print(f"{column['shape']['n_way']}-way, {column['shape']['n_shot']} images a class: {accuracy}, "
              f"{column['speed_up']} times as fast")  # fmt: skip


def export_encoder(arguments: argparse.Namespace) -> None:
    """Make a text encoder of a BERT."""
    from training.export_encoder import export_encoder

    refuse_unwritable(arguments.to, is_folder=True)
    spec, error = export_encoder(
        arguments.model,
        arguments.to,
        repository=arguments.repository,
        package_folder=arguments.package_folder,
        licence=arguments.licence,
    )
    print(f"exported: {arguments.to} ({spec.dim}-d, {spec.max_tokens} tokens), within {error:.1e} of transformers")


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure a meta-model; raises DataError where an option is given that what is asked for has no use for."""
    from models import metamodel
    from training.columns import evaluate_every_image, evaluate_images, evaluate_standard

    meta_model, own, seed = metamodel.load(arguments.meta_model), arguments.images, arguments.seed
    asked = argparse.Namespace(**{**ONE_COLUMN, **EPISODES, **vars(arguments)})
    if arguments.out:
        refuse_unwritable(arguments.out)
    if arguments.every_image:
        why = "of no use with --every-image, which asks about every image of every class; leave it out"
        _refuse_unused(arguments, ONE_COLUMN | EPISODES, why)
        found = evaluate_every_image(meta_model, own, seed=seed)
    elif own is None:
        why = "of a column of your own classes; give these with --images, or leave it out for the standard columns"
        _refuse_unused(arguments, ONE_COLUMN, why)
        refuse_unwritable(meta_model.folder, is_folder=True)
        found = evaluate_standard(meta_model, n_episodes=asked.episodes, seed=seed, n_fine_tuned=asked.fine_tuning)
    else:
        found = evaluate_images(
            meta_model,
            own,
            EpisodeShape(asked.ways, asked.shots, asked.queries, asked.unlabeled),
            within_group=asked.within_group,
            n_episodes=asked.episodes,
            seed=seed,
            n_fine_tuned=asked.fine_tuning,
        )
    text, is_standard = json.dumps(found, indent=1), own is None and not arguments.every_image
    print(f"wrote {meta_model.folder}/evaluation.json and CARD.md" if is_standard else text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def _refuse_unused(arguments: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raise DataError where one of these options was given."""
    if given := [f"--{name.replace('_', '-')}" for name in names if name in arguments]:
        raise DataError(f"{', '.join(given)}: {why}.")


def compare_words(arguments: argparse.Namespace) -> None:
    """Measure runs that read words beside each other."""
    from models import metamodel
    from training.columns import COMPARISON, write_card
    from training.word_peers import compare_runs

    refuse_unwritable(arguments.out)
    compared = compare_runs(arguments.runs, arguments.images, n_episodes=arguments.episodes, seed=arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(compared, indent=1) + "\n")
    print(f"wrote {arguments.out}")
    if arguments.out.name == COMPARISON and (arguments.out.parent / "CARD.md").is_file():
        write_card(metamodel.load(arguments.out.parent))
        print(f"wrote {arguments.out.parent}/CARD.md")


def report(arguments: argparse.Namespace) -> None:
    """Write the page of plots."""
    from training.report import write
    from training.subjects import Images, Options

    refuse_unwritable(arguments.to)
    options = Options(Images(arguments.images), n_tasks=arguments.tasks, seed=arguments.seed)
    n_shown = write(
        arguments.zoo, arguments.to, options, runs=arguments.run, columns=arguments.column, peers=arguments.peers
    )
    empty = "" if n_shown else f" (there is none in {arguments.zoo}; `training export` makes one)"
    print(f"wrote {arguments.to}: {n_shown} meta-models{empty}")
