"""The commands and their options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.cli import deferred

Command = Callable[[argparse.Namespace], int]
MAX_SECONDS, MAX_COUNT = 1e6, 1_000
LEVELS = ("debug", "info", "warning", "error")


def make_parser(description: str) -> argparse.ArgumentParser:
    """The whole command line."""
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="classmith", description=description, formatter_class=layout)
    parser.add_argument("--version", action=deferred.Version, nargs=0, help="print the release, and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_task(commands)
    _add_predict(commands)
    _add_processes(commands)
    _add_meta_models(commands)
    _add_bench(commands)
    completion = _add(
        commands, "completion", deferred.completion, "print the lines that switch completion on in a shell"
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish", "tcsh", "powershell"])
    return parser


def offer_completion(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what could come next, and end; at once back where none asks."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _add_task(commands: Any) -> None:
    task = commands.add_parser("task", help="make, list, show, delete, explain, export classifiers")
    actions = task.add_subparsers(required=True, metavar="COMMAND")
    _add_create(actions)
    _add_client_options(_add(actions, "list", deferred.list_all, "list your tasks, newest first"))
    for name, command, text in (
        ("show", deferred.show, "show one task"),
        ("delete", deferred.delete, "delete a task"),
        ("explain", deferred.explain, "print the words that carried a decision (--json: and the parts of the image)"),
        ("export", deferred.export, "save the classifier as an ONNX file that runs anywhere"),
    ):
        action = _add(actions, name, command, text)
        _add_task_id(action)
        if name == "explain":
            action.add_argument("image", metavar="IMAGE", help="one file")
        if name == "export":
            action.add_argument("--output", "-o", type=Path, metavar="FILE", help="default: TASK.onnx")
        _add_client_options(action)


def _add_create(actions: Any) -> None:
    create = _add(
        actions,
        "create",
        deferred.create,
        "make a classifier from images, from words, or from both",
        """examples:
  classmith task create --class zebra='zebra/*.jpg' --class horse=horse/ --describe "okapi: striped legs, brown coat"
  classmith task create --folder animals        (animals/zebra/1.jpg, animals/horse/1.jpg, ...)""",
    )
    folder = create.add_mutually_exclusive_group()
    folder.add_argument("positional_folder", nargs="?", type=Path, metavar="FOLDER", help="the same as --folder")
    folder.add_argument("--folder", type=Path, help="FOLDER/CLASS/IMAGE; a class `unlabeled` has no label")
    create.add_argument(
        "--class",
        "--image",
        dest="images",
        action="append",
        default=[],
        metavar="NAME=IMAGES",
        help="images of a class: a file, a quoted pattern or a folder; repeat it",
    )
    create.add_argument("--describe", action="append", default=[], metavar="NAME:TEXT", help="a class in words")
    create.add_argument("--unlabeled", action="append", default=[], metavar="IMAGES", help="images of no stated class")
    create.add_argument("--meta-model", "--generator", default="auto", metavar="NAME", help="default: auto")
    create.add_argument("--wait", type=_seconds, default=300.0, metavar="SECONDS", help="0: don't wait (default 300)")
    _add_client_options(create)


def _add_predict(commands: Any) -> None:
    predict = _add(commands, "predict", deferred.predict, "classify images with a task's classifier")
    _add_task_id(predict)
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="files, quoted patterns or folders")
    predict.add_argument("--top-k", type=_count, metavar="K", help="only the best classes")
    _add_client_options(predict)


def _add_processes(commands: Any) -> None:
    serve = _add(
        commands, "serve", deferred.serve, "run the HTTP service (every setting is also a CLASSMITH_... variable)"
    )
    serve.add_argument("--host", help="the address to listen on (default 127.0.0.1; others need API keys)")
    serve.add_argument("--port", type=int, help="default 8000; 0 takes a free one")
    serve.add_argument("--processes", type=_count, help="that share the port (default 1)")
    recover = _add(
        commands, "recover", deferred.recover, "keep what is whole of a damaged store (stop the service first)"
    )
    for command in (serve, recover):
        command.add_argument("--state-dir", type=Path, help="where tasks are kept")
    worker = _add(commands, "worker", deferred.worker, "make classifiers for services that share a Redis")
    for command in (serve, worker):
        command.add_argument("--redis-url", help="e.g. redis://localhost:6379/0")
        command.add_argument("--meta-models", type=Path, help="a folder of meta-model folders")
        command.add_argument("--log-level", choices=LEVELS)


def _add_meta_models(commands: Any) -> None:
    meta = commands.add_parser("metamodel", help="look at meta-models").add_subparsers(required=True, metavar="COMMAND")
    listed = _add(meta, "list", deferred.meta_models, "list the meta-models the service would load")
    listed.add_argument(
        "folder", nargs="?", type=Path, help="default: CLASSMITH_META_MODELS, else those that came along"
    )
    verify = _add(meta, "verify", deferred.verify, "check that every file is there and unchanged")
    verify.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    for command in (listed, verify):
        command.add_argument("--json", action="store_true", help="print JSON")


def _add_bench(commands: Any) -> None:
    bench = _add(commands, "bench", deferred.bench, "measure how fast a running service predicts with a task")
    _add_task_id(bench)
    bench.add_argument("images", nargs="*", metavar="IMAGE", help="sent by turns, one a request (default: one made up)")
    bench.add_argument("--seconds", type=_seconds, default=5.0, help="for each number of connections (default 5)")
    bench.add_argument(
        "--connections", type=_count, action="append", metavar="N", help="at once; repeat it (default 1 and 16)"
    )
    _add_client_options(bench)


def _add(commands: Any, name: str, command: Command, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.set_defaults(command=command)
    return parser


def _add_task_id(parser: argparse.ArgumentParser) -> None:
    ident: Any = parser.add_argument("task", metavar="TASK", help="the task's id")
    ident.completer = _task_ids


def _add_client_options(parser: argparse.ArgumentParser) -> None:
    url = os.environ.get("CLASSMITH_URL") or None
    key = os.environ.get("CLASSMITH_API_KEY") or os.environ.get("CLASSMITH_KEY", "")
    parser.add_argument(
        "--url", default=url, help="of the service (default CLASSMITH_URL, else port 8000 of this machine)"
    )
    parser.add_argument("--api-key", "--key", default=key, metavar="KEY", help="better: CLASSMITH_API_KEY")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
        if 0 <= seconds < MAX_SECONDS:
            return seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) <= MAX_COUNT:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_COUNT}")


def _task_ids(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Ids for completion; none where no service answers."""
    from service.cli.tasks import known_ids

    return known_ids(parsed_args, prefix)
