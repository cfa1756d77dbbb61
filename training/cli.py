"""The arguments of the ``training`` command: data, fit, evaluate, export, report. What each does is in commands.py."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from models.errors import ClassmithError
from training import commands, memory
from training.checkpoint import CheckpointError
from training.commands import EPISODES, ONE_COLUMN
from training.data.folders import DataError
from training.places import refuse_unwritable

Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What a disk that is full, or a user's share of it, says without a file's name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; problems the user can mend are one line on standard error and exit status 2."""
    arguments = _parser().parse_args(argv)
    memory.keep_freed()
    try:
        if "device" in arguments:
            _check_fit(arguments)
        arguments.run_command(arguments)
    except (DataError, CheckpointError, ClassmithError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None and error.errno not in NO_ROOM:
            raise  # it names no file, so it is no matter of the user's: a library that does not load, a bug
        print(f"training: {error}", file=sys.stderr)
        return 2
    return 0


def _check_fit(arguments: argparse.Namespace) -> None:
    """Raise MissingDevice, or DataError where no run folder can be, before any image is read."""
    from training.runtime import find_device

    find_device(arguments.device)
    refuse_unwritable(commands.run_of(arguments), is_folder=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="training", description="Train, export and evaluate meta-models.")
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_data(parsers)
    _add_fit(parsers)
    _add_export(parsers)
    _add_export_encoder(parsers)
    _add_evaluate(parsers)
    _add_quantise(parsers)
    _add_compare_words(parsers)
    _add_report(parsers)
    return parser


def _add_data(parsers: Parsers) -> None:
    data = parsers.add_parser("data", help="download a data set with torchvision")
    zero_shot = ("cub", "awa2", "nabirds", "flowers-species")
    data.add_argument("name", choices=("omniglot", "cifar-fs", "tiny-imagenet", *zero_shot))
    data.set_defaults(run_command=commands.data)


def _add_fit(parsers: Parsers) -> None:
    from training.configs import base, hypertransformer, n3, word_baselines

    fit = parsers.add_parser("fit", help="train a meta-model, or a base network; run it again to resume")
    methods = fit.add_subparsers(required=True, metavar="METHOD")
    _add_method(methods, "hypertransformer", hypertransformer.CONFIGS, "support images -> a Conv-4")
    _add_method(methods, "n3", n3.CONFIGS, "descriptions, support images or both -> every layer of a base adapted")
    _add_method(methods, "word-baselines", word_baselines.CONFIGS, "what n3 is compared with, on the base as it is")
    _add_method(methods, "base", base.CONFIGS, "a base network from scratch, for n3 to adapt")


def _add_method(methods: Parsers, name: str, configs: Mapping[str, object], what: str) -> None:
    fit = methods.add_parser(name, help=what)
    fit.add_argument("--config", required=True, choices=sorted(configs))
    fit.add_argument("--run", type=Path, help="folder for checkpoints and the log (default: runs/CONFIG)")
    fit.add_argument("--images", type=Path, help="train on this ZIP or folder of classes instead of the config's data")
    if name == "base":
        fit.add_argument("--epochs", type=_positive, help="passes over the images, instead of the config's")
    else:
        fit.add_argument("--steps", type=_positive, help="optimiser steps, instead of the config's")
    fit.add_argument("--seed", type=_seed, default=0)
    fit.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0, ... (no index with torchrun)")
    if name != "word-baselines":  # of which the base's features are all that takes long, and they are kept
        fit.add_argument("--bf16", action="store_true", help="forward passes in bfloat16")
    run_commands = {
        "hypertransformer": commands.fit_hypertransformer,
        "n3": commands.fit_n3,
        "word-baselines": commands.fit_word_baselines,
        "base": commands.fit_base,
    }
    fit.set_defaults(run_command=run_commands[name])


def _add_export(parsers: Parsers) -> None:
    export = parsers.add_parser("export", help="make a meta-model folder of a run, checked and calibrated")
    export.add_argument("run", type=Path, help="folder of `training fit`")
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="its name becomes the meta-model's")
    export.add_argument("--images", type=Path, help="the class folders the run was trained on, if they were your own")
    export.add_argument("--summary", default="", help="one line for the manifest and the card")
    export.set_defaults(run_command=commands.export)


def _add_export_encoder(parsers: Parsers) -> None:
    export = parsers.add_parser("export-encoder", help="make a text encoder that the service can run of a BERT")
    export.add_argument("model", help="a folder, or a name on the model hub")
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="its name becomes the encoder's")
    export.add_argument("--repository", default="", help="its name on the model hub, where `model` is a folder")
    export.add_argument("--package-folder", default="", metavar="PACKAGE/FOLDER", help="where a package has its files")
    export.add_argument("--licence", default="", help="default: what its README.md says")
    export.set_defaults(run_command=commands.export_encoder)


def _add_evaluate(parsers: Parsers) -> None:
    evaluate = parsers.add_parser(
        "evaluate",
        help="accuracy, controls and calibration of an exported meta-model, as JSON",
        description="Without --images: the standard columns on the validation classes of its own data set, into its "
        "evaluation.json and CARD.md. With --images: one column on your classes, as JSON on standard output.",
    )
    evaluate.add_argument("meta_model", type=Path, help="an exported folder")
    evaluate.add_argument("--images", type=Path, help="a ZIP or folder of class folders")
    evaluate.add_argument("--seed", type=_seed, default=0)
    column = evaluate.add_argument_group("the column, with --images", argument_default=argparse.SUPPRESS)
    column.add_argument("--ways", type=_positive, help=f"classes of a task (default: {ONE_COLUMN['ways']})")
    column.add_argument("--shots", type=_count, help=f"images a class; 0: words alone (default: {ONE_COLUMN['shots']})")
    column.add_argument("--queries", type=_positive, help=f"query images a class (default: {ONE_COLUMN['queries']})")
    column.add_argument("--unlabeled", type=_count, help="unlabelled support images a class (default: none)")
    column.add_argument("--within-group", action="store_true", help="all classes of a task from one parent folder")
    episodes = evaluate.add_argument_group("without --every-image", argument_default=argparse.SUPPRESS)
    episodes.add_argument("--episodes", type=_several, help=f"of each column (default: {EPISODES['episodes']})")
    episodes.add_argument(
        "--fine-tuning",
        type=_none_or_several,
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
    evaluate.set_defaults(run_command=commands.evaluate)


def _add_quantise(parsers: Parsers) -> None:
    quantise = parsers.add_parser(
        "quantise",
        help="a meta-model's networks in 8-bit integers, beside what that changes",
        description="Writes skeleton.int8.onnx and int8.json into an exported folder, and both networks' accuracy and "
        "speed into its card. The service uses them where CLASSMITH_INT8 is set.",
    )
    quantise.add_argument("meta_model", type=Path, help="an exported folder")
    quantise.add_argument("--images", type=Path, help="the class folders it was trained on, if they were your own")
    quantise.add_argument("--episodes", type=_several, default=100)
    quantise.add_argument("--seed", type=_seed, default=0)
    quantise.set_defaults(run_command=commands.quantise)


def _add_compare_words(parsers: Parsers) -> None:
    compare = parsers.add_parser(
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
    compare.add_argument("--seed", type=_seed, default=0)
    compare.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.json",
        help="comparison.json in an exported folder: its card gets the table, too",
    )
    compare.set_defaults(run_command=commands.compare_words)


def _add_report(parsers: Parsers) -> None:
    report = parsers.add_parser("report", help="one HTML page of plots of all meta-models in a folder")
    report.add_argument("zoo", type=Path, help="a folder of meta-models, or one of them")
    report.add_argument("--to", type=Path, required=True, metavar="FILE.html")
    report.add_argument("--images", type=Path, help="write weights for these class folders (default: validation)")
    report.add_argument("--run", type=Path, action="append", default=[], help="a folder of `training fit`")
    report.add_argument("--column", type=Path, action="append", default=[], help="a file of `training evaluate --out`")
    report.add_argument("--peers", type=Path, action="append", default=[], help="a file of `training compare-words`")
    report.add_argument("--tasks", type=_positive, default=240, help="tasks in the map of weights")
    report.add_argument("--seed", type=_seed, default=0)
    report.set_defaults(run_command=commands.report)


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


def _seed(text: str) -> int:
    value = _count(text)
    if value >= 2**32:  # what scikit-learn takes
        raise argparse.ArgumentTypeError(f"{value} is too large; give less than {2**32}")
    return value
