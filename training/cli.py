"""The ``training`` command: data, fit, evaluate, export, report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from models.errors import ClassmithError
from training.checkpoint import CheckpointError
from training.data.folders import DataError
from training.episodes import EpisodeShape, shrink

if TYPE_CHECKING:
    from training.runtime import Runtime

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; problems the user can mend are one line on standard error and exit status 2."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run_command(arguments)
    except (DataError, CheckpointError, ClassmithError) as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="training", description="Train, export and evaluate meta-models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_data(commands)
    _add_fit(commands)
    _add_export(commands)
    _add_export_encoder(commands)
    _add_evaluate(commands)
    _add_quantise(commands)
    _add_compare_words(commands)
    _add_report(commands)
    return parser


def _add_data(commands: Commands) -> None:
    data = commands.add_parser("data", help="download a data set with torchvision")
    zero_shot = ("cub", "awa2", "nabirds", "flowers-species")
    data.add_argument("name", choices=("omniglot", "cifar-fs", "tiny-imagenet", *zero_shot))
    data.set_defaults(run_command=_data)


def _add_fit(commands: Commands) -> None:
    from training.configs import base, hypertransformer, n3, word_baselines

    fit = commands.add_parser("fit", help="train a meta-model, or a base network; run it again to resume")
    methods = fit.add_subparsers(required=True, metavar="METHOD")
    _add_method(methods, "hypertransformer", hypertransformer.CONFIGS, "support images -> a Conv-4")
    _add_method(methods, "n3", n3.CONFIGS, "descriptions, support images or both -> every layer of a base adapted")
    _add_method(methods, "word-baselines", word_baselines.CONFIGS, "what n3 is compared with, on the base as it is")
    _add_method(methods, "base", base.CONFIGS, "a base network from scratch, for n3 to adapt")


def _add_method(methods: Commands, name: str, configs: Mapping[str, object], what: str) -> None:
    fit = methods.add_parser(name, help=what)
    fit.add_argument("--config", required=True, choices=sorted(configs))
    fit.add_argument("--run", type=Path, help="folder for checkpoints and the log (default: runs/CONFIG)")
    fit.add_argument("--images", type=Path, help="train on this ZIP or folder of classes instead of the config's data")
    if name == "base":
        fit.add_argument("--epochs", type=_positive, help="passes over the images, instead of the config's")
    else:
        fit.add_argument("--steps", type=_positive, help="optimiser steps, instead of the config's")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ...")
    if name != "word-baselines":  # of which the base's features are all that takes long, and they are kept
        fit.add_argument("--bf16", action="store_true", help="forward passes in bfloat16")
    commands = {
        "hypertransformer": _fit_hypertransformer,
        "n3": _fit_n3,
        "word-baselines": _fit_word_baselines,
        "base": _fit_base,
    }
    fit.set_defaults(run_command=commands[name])


def _add_export(commands: Commands) -> None:
    export = commands.add_parser("export", help="make a meta-model folder of a run, checked and calibrated")
    export.add_argument("run", type=Path, help="folder of `training fit`")
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="its name becomes the meta-model's")
    export.add_argument("--images", type=Path, help="the class folders the run was trained on, if they were your own")
    export.add_argument("--summary", default="", help="one line for the manifest and the card")
    export.set_defaults(run_command=_export)


def _add_export_encoder(commands: Commands) -> None:
    export = commands.add_parser("export-encoder", help="make a text encoder that the service can run of a BERT")
    export.add_argument("model", help="a folder, or a name on the model hub")
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="its name becomes the encoder's")
    export.add_argument("--repository", default="", help="its name on the model hub, where `model` is a folder")
    export.add_argument("--package-folder", default="", metavar="PACKAGE/FOLDER", help="where a package has its files")
    export.add_argument("--licence", default="", help="default: what its README.md says")
    export.set_defaults(run_command=_export_encoder)


def _add_evaluate(commands: Commands) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="accuracy, controls and calibration of an exported meta-model, as JSON",
        description="Without --images: the standard columns on the validation classes of its own data set, into its "
        "evaluation.json and CARD.md. With --images: one column on your classes, as JSON on standard output.",
    )
    evaluate.add_argument("meta_model", type=Path, help="an exported folder")
    evaluate.add_argument("--images", type=Path, help="a ZIP or folder of class folders")
    evaluate.add_argument("--ways", type=_positive, default=5)
    evaluate.add_argument("--shots", type=_count, default=1, help="images a class; 0: words alone")
    evaluate.add_argument("--queries", type=_positive, default=5, help="query images a class")
    evaluate.add_argument("--unlabeled", type=int, default=0, help="unlabelled support images a class")
    evaluate.add_argument("--within-group", action="store_true", help="all classes of a task from one parent folder")
    evaluate.add_argument("--episodes", type=_several, default=1000)
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument(
        "--fine-tuning",
        type=_none_or_several,
        default=0,
        metavar="N",
        help="also fine-tune the base on the images of the first N episodes of each column: seconds a task",
    )
    evaluate.add_argument(
        "--every-image",
        action="store_true",
        help="instead: one task of all classes by their words alone, every image asked about, mean of the classes' "
        "accuracies, as zero-shot papers have it; of the test classes of its data set, or of --images",
    )
    evaluate.add_argument("--out", type=Path, help="write the JSON here too")
    evaluate.set_defaults(run_command=_evaluate)


def _add_quantise(commands: Commands) -> None:
    quantise = commands.add_parser(
        "quantise",
        help="a meta-model's networks in 8-bit integers, beside what that changes",
        description="Writes skeleton.int8.onnx and int8.json into an exported folder, and both networks' accuracy and "
        "speed into its card. The service uses them where CLASSMITH_INT8 is set.",
    )
    quantise.add_argument("meta_model", type=Path, help="an exported folder")
    quantise.add_argument("--images", type=Path, help="the class folders it was trained on, if they were your own")
    quantise.add_argument("--episodes", type=_several, default=100)
    quantise.add_argument("--seed", type=int, default=0)
    quantise.set_defaults(run_command=_quantise)


def _add_compare_words(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare-words",
        help="accuracy of runs that read words, side by side, as JSON",
        description="The tasks, documents and images of `training evaluate`'s columns of words alone, so that what is "
        "written stands beside an N3's figures (`training report --peers FILE`). Runs of one configuration are seeds. "
        "So can runs of n3 be measured that no export can hold, such as those of other embeddings.",
    )
    compare.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a folder of `fit word-baselines`, or of `fit n3`"
    )
    compare.add_argument(
        "--images", type=Path, help="the class folders the runs were trained on, if they were your own"
    )
    compare.add_argument("--episodes", type=_several, default=1000)
    compare.add_argument("--seed", type=int, default=0)
    compare.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.json",
        help="comparison.json in an exported folder: its card gets the table, too",
    )
    compare.set_defaults(run_command=_compare_words)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser("report", help="one HTML page of plots of all meta-models in a folder")
    report.add_argument("zoo", type=Path, help="a folder of meta-models, or one of them")
    report.add_argument("--to", type=Path, required=True, metavar="FILE.html")
    report.add_argument("--images", type=Path, help="write weights for these class folders (default: validation)")
    report.add_argument("--run", type=Path, action="append", default=[], help="a folder of `training fit`")
    report.add_argument("--column", type=Path, action="append", default=[], help="a file of `training evaluate --out`")
    report.add_argument("--peers", type=Path, action="append", default=[], help="a file of `training compare-words`")
    report.add_argument("--tasks", type=_positive, default=240, help="tasks in the map of weights")
    report.add_argument("--seed", type=int, default=0)
    report.set_defaults(run_command=_report)


def _data(arguments: argparse.Namespace) -> None:
    from training.data import DATASETS
    from training.data.folders import data_root

    print(f"{arguments.name} is in {DATASETS[arguments.name].download(data_root())}")


def _fit_hypertransformer(arguments: argparse.Namespace) -> None:
    from training.configs.hypertransformer import CONFIGS
    from training.data import DATASETS
    from training.recipes.hypertransformer import fit

    config = replace(CONFIGS[arguments.config](), seed=arguments.seed)
    config = replace(config, n_steps=arguments.steps or config.n_steps, bf16=arguments.bf16 or config.bf16)
    train, validation = DATASETS[config.dataset].split(arguments.images, train_size=config.train_size)
    if arguments.images:  # it need not have the 20 classes of 20 images that a config counts on
        shapes = tuple((weight, shrink(shape, train)) for weight, shape in config.shapes)
        config = replace(config, shapes=shapes, validation=shrink(config.validation, validation))
    _run_fit(arguments, config.bf16, lambda run, here: fit(config, train, validation, run, here))


def _fit_n3(arguments: argparse.Namespace) -> None:
    from training.configs.n3 import CONFIGS
    from training.data import DATASETS, descriptions
    from training.recipes.n3 import fit

    config = replace(CONFIGS[arguments.config](), seed=arguments.seed)
    config = replace(config, n_steps=arguments.steps or config.n_steps, bf16=arguments.bf16 or config.bf16)
    own = arguments.images
    config = replace(config, classifier_rows=config.classifier_rows and not own)  # own classes have no row
    texts = descriptions.read_descriptions(descriptions.beside(own)) if own else None
    train, validation = DATASETS[config.dataset].split(own, size=config.model.base.size)
    _run_fit(arguments, config.bf16, lambda run, here: fit(config, train, validation, run, here, texts=texts))


def _fit_word_baselines(arguments: argparse.Namespace) -> None:
    from training.configs.word_baselines import CONFIGS
    from training.data import DATASETS, descriptions
    from training.recipes.word_baselines import fit

    config = replace(CONFIGS[arguments.config](), seed=arguments.seed)
    config = replace(config, n_steps=arguments.steps or config.n_steps)
    own = arguments.images
    texts = descriptions.read_descriptions(descriptions.beside(own)) if own else None
    train, _ = DATASETS[config.dataset].split(own, size=config.base_spec.size)
    _run_fit(
        arguments,
        False,
        lambda run, here: fit(config, train, run, here, texts=texts),
        then="training compare-words {run} --out FILE",
    )


def _fit_base(arguments: argparse.Namespace) -> None:
    from training.configs.base import CONFIGS
    from training.data import DATASETS
    from training.recipes.base import fit

    config = replace(CONFIGS[arguments.config](), seed=arguments.seed)
    config = replace(config, n_epochs=arguments.epochs or config.n_epochs, bf16=arguments.bf16 or config.bf16)
    train, validation = DATASETS[config.dataset].split(arguments.images, size=config.base.size)
    then = "training fit n3, by a config that names it"
    _run_fit(arguments, config.bf16, lambda run, here: fit(config, train, validation, run, here), then=then)


def _run_fit(
    arguments: argparse.Namespace,
    bf16: bool,
    fit: Callable[[Path, Runtime], object],
    *,
    then: str = "training export {run} --to FOLDER",
) -> None:
    from training import runtime

    here = runtime.start(device=arguments.device, bf16=bf16)
    run = arguments.run or Path("runs") / arguments.config
    try:
        fit(run, here)
    finally:
        here.close()
    if here.is_main:
        print(f"trained: {run}/checkpoint.safetensors; next: {then.format(run=run)}")


def _export(arguments: argparse.Namespace) -> None:
    from training.export import export

    exported = export(arguments.run, arguments.to, images=arguments.images, summary=arguments.summary)
    print(f"exported: {exported.folder} (digest {exported.digest[:12]}); next: training evaluate {exported.folder}")


def _quantise(arguments: argparse.Namespace) -> None:
    from models import metamodel
    from training.columns import quantise_trained

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


def _export_encoder(arguments: argparse.Namespace) -> None:
    from training.export_encoder import export_encoder

    spec, error = export_encoder(
        arguments.model,
        arguments.to,
        repository=arguments.repository,
        package_folder=arguments.package_folder,
        licence=arguments.licence,
    )
    print(f"exported: {arguments.to} ({spec.dim}-d, {spec.max_tokens} tokens), within {error:.1e} of transformers")


def _evaluate(arguments: argparse.Namespace) -> None:
    from models import metamodel
    from training.columns import evaluate_every_image, evaluate_images, evaluate_standard

    meta_model = metamodel.load(arguments.meta_model)
    if arguments.every_image:
        _print(evaluate_every_image(meta_model, arguments.images, seed=arguments.seed), arguments.out)
        return
    if arguments.images is None:
        evaluate_standard(
            meta_model, n_episodes=arguments.episodes, seed=arguments.seed, n_fine_tuned=arguments.fine_tuning
        )
        print(f"wrote {meta_model.folder}/evaluation.json and CARD.md")
        return
    shape = EpisodeShape(arguments.ways, arguments.shots, arguments.queries, arguments.unlabeled)
    column = evaluate_images(
        meta_model,
        arguments.images,
        shape,
        within_group=arguments.within_group,
        n_episodes=arguments.episodes,
        seed=arguments.seed,
        n_fine_tuned=arguments.fine_tuning,
    )
    _print(column, arguments.out)


def _print(found: Mapping[str, object], out: Path | None) -> None:
    text = json.dumps(found, indent=1)
    if out:
        out.write_text(text + "\n")
    print(text)


def _compare_words(arguments: argparse.Namespace) -> None:
    from models import metamodel
    from training.columns import COMPARISON, write_card
    from training.data import DATASETS, descriptions
    from training.word_peers import compare, data_of, load

    loaded, own = [load(run) for run in arguments.runs], arguments.images
    name, size = data_of(loaded)
    _, images = DATASETS[name].split(own, size=size)
    texts = descriptions.read_descriptions(descriptions.beside(own)) if own else descriptions.of_dataset(name)
    folder = arguments.runs[0].parent
    compared = compare(loaded, images, texts, folder, n_episodes=arguments.episodes, seed=arguments.seed)
    runs = " ".join(map(str, arguments.runs))
    compared["command"] = f"training compare-words {runs} --episodes {arguments.episodes} --seed {arguments.seed}"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(compared, indent=1) + "\n")
    print(f"wrote {arguments.out}")
    if arguments.out.name == COMPARISON and (arguments.out.parent / "CARD.md").is_file():
        write_card(metamodel.load(arguments.out.parent))
        print(f"wrote {arguments.out.parent}/CARD.md")


def _several(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value} is too few for an interval; give 2 or more")
    return value


def _none_or_several(text: str) -> int:
    return int(text) and _several(text)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than nothing")
    return value


def _report(arguments: argparse.Namespace) -> None:
    from training.report import write
    from training.subjects import Images, Options

    options = Options(Images(arguments.images), n_tasks=arguments.tasks, seed=arguments.seed)
    n_shown = write(
        arguments.zoo, arguments.to, options, runs=arguments.run, columns=arguments.column, peers=arguments.peers
    )
    empty = "" if n_shown else f" (there is none in {arguments.zoo}; `training export` makes one)"
    print(f"wrote {arguments.to}: {n_shown} meta-models{empty}")
