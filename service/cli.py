"""`classmith`: run the service or a worker, make and use classifiers, look at meta-models.

Exit status: 0 done, 1 refused or failed (the reason is on standard error), 2 used wrongly, 3 no service answers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models.errors import ClassmithError, InvalidMetaModel
from models.metamodel import ZOO, load
from service.catalogue import meta_model_folders, read_catalogue
from service.client import Client, RequestFailed, Unreachable, UnusableFile, folder_uploads, upload
from service.settings import InvalidSettings, Settings, read_settings

FAILED, WRONG_USE, UNREACHABLE = 1, 2, 3
LOCAL_URL = "http://127.0.0.1:8000"
Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    asked = _parser().parse_args(arguments)
    command: Command = asked.command
    try:
        return command(asked)
    except InvalidSettings as error:
        return _complain(str(error), WRONG_USE)
    except UnusableFile as error:
        return _complain(str(error), WRONG_USE)
    except Unreachable as error:
        return _complain(str(error), UNREACHABLE)
    except RequestFailed as error:
        return _complain(str(error), FAILED)
    except ClassmithError as error:
        return _complain(error.message, FAILED)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, e.g. `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _serve(asked: argparse.Namespace) -> int:
    from service.server import serve  # the client commands start without the server's imports

    return serve(_settings(asked))


def _worker(asked: argparse.Namespace) -> int:
    from service.server import work

    return work(_settings(asked))


def _create(asked: argparse.Namespace) -> int:
    uploads = folder_uploads(asked.folder) if asked.folder else []
    uploads += [upload(*_pair(text, "NAME=FILE", Path)) for text in asked.image]
    uploads += [upload("unlabeled", path) for path in asked.unlabeled]
    texts = dict(_pair(text, "NAME=TEXT", str) for text in asked.describe)
    described = {
        "generator": asked.generator,
        "classes": [{"name": name, "description": text} for name, text in texts.items()],
    }
    task = _client(asked).create(uploads, described, wait_s=asked.wait)
    return _show_tasks([task], asked) if task["state"] != "failed" else _complain(task["error"], FAILED)


def _list(asked: argparse.Namespace) -> int:
    return _show_tasks(list(_client(asked).tasks()), asked, many=True)


def _show(asked: argparse.Namespace) -> int:
    return _show_tasks([_client(asked).task(asked.task)], asked)


def _delete(asked: argparse.Namespace) -> int:
    _client(asked).delete(asked.task)
    return 0


def _export(asked: argparse.Namespace) -> int:
    path = asked.output or Path(f"{asked.task}.onnx")
    model = _client(asked).export(asked.task)
    try:
        path.write_bytes(model)
    except OSError as error:
        raise UnusableFile(f"{path} cannot be written ({error.strerror}).") from error
    print(path)
    return 0


def _predict(asked: argparse.Namespace) -> int:
    answer = _client(asked).predict(asked.task, asked.images, asked.top_k)
    if asked.json:
        return _print_json(answer)
    for path, found in zip(asked.images, answer["predictions"], strict=True):
        ranked = "  ".join(f"{name} {p:.3f}" for name, p in list(found["probabilities"].items())[: asked.top_k or 3])
        print(f"{path}\t{'(unsure) ' if found['abstain'] else ''}{found['label']}\t{ranked}")
    return 0


def _meta_models(asked: argparse.Namespace) -> int:
    found = read_catalogue(asked.folder or read_settings().meta_models)
    manifests = [found.by_name[name].manifest for name in found.names]
    if asked.json:
        return _print_json([m.model_dump(mode="json", exclude={"tensors", "files"}) for m in manifests])
    for m in manifests:
        print(f"{m.name}\t{m.domain}\t{m.min_classes}-{m.max_classes} classes\t{m.summary}")
    return 0


def _verify(asked: argparse.Namespace) -> int:
    folders = asked.folders or meta_model_folders(read_settings().meta_models)
    n_broken = 0
    for folder in folders:
        try:
            print(f"{load(folder).name}: whole")
        except InvalidMetaModel as error:
            n_broken += 1
            _complain(error.message, FAILED)
    return FAILED if n_broken or not folders else 0


def _settings(asked: argparse.Namespace) -> Settings:
    """The environment's settings under those given as options."""
    given = {name: value for name, value in vars(asked).items() if name in Settings.model_fields and value is not None}
    return read_settings(**given)


def _client(asked: argparse.Namespace) -> Client:
    return Client(asked.url, asked.key)


def _pair(text: str, form: str, kind: Callable[[str], Any]) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise UnusableFile(f"{text!r} should be {form}.")
    return name, kind(value)


def _show_tasks(tasks: list[dict[str, Any]], asked: argparse.Namespace, *, many: bool = False) -> int:
    if asked.json:
        return _print_json(tasks if many else tasks[0])
    for task in tasks:
        names = ", ".join(c["name"] for c in task["classes"])
        made = f"{task['generate_ms']:.0f} ms" if task["generate_ms"] is not None else "-"
        print(f"{task['id']}\t{task['state']}\t{task['meta_model']}\t{made}\t{names}")
    return 0


def _print_json(value: object) -> int:
    print(json.dumps(value, indent=1, ensure_ascii=False))
    return 0


def _complain(message: str, status: int) -> int:
    print(f"classmith: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="classmith", description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_processes(commands)
    _add_task(commands)
    predict = _add(commands, "predict", _predict, "classify image files with a task's classifier")
    predict.add_argument("task", help="the task's id")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument("--top-k", type=int, help="only the best classes")
    _add_client_options(predict)
    meta = commands.add_parser("metamodel", help="look at meta-models").add_subparsers(required=True, metavar="COMMAND")
    listed = _add(meta, "list", _meta_models, "list the meta-models the service would load")
    listed.add_argument("folder", nargs="?", type=Path, help=f"default: CLASSMITH_META_MODELS, else {ZOO.name}")
    listed.add_argument("--json", action="store_true", help="print JSON")
    verify = _add(meta, "verify", _verify, "check that every file is there and unchanged")
    verify.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    return parser


def _add_processes(commands: Any) -> None:
    serve = _add(commands, "serve", _serve, "run the HTTP service (every setting is also a CLASSMITH_... variable)")
    serve.add_argument("--host", help="the address to listen on (default 127.0.0.1; others need API keys)")
    serve.add_argument("--port", type=int, help="default 8000; 0 takes a free one")
    serve.add_argument("--state-dir", type=Path, help="where tasks are kept")
    worker = _add(commands, "worker", _worker, "make classifiers for services that share a Redis")
    for command in (serve, worker):
        command.add_argument("--redis-url", help="e.g. redis://localhost:6379/0")
        command.add_argument("--meta-models", type=Path, help="a folder of meta-model folders")
        command.add_argument("--log-level", choices=["debug", "info", "warning", "error"])


def _add_task(commands: Any) -> None:
    task = commands.add_parser("task", help="make, list, show, delete, export classifiers")
    actions = task.add_subparsers(required=True, metavar="COMMAND")
    create = _add(actions, "create", _create, "make a classifier from a folder of class folders, or from single files")
    create.add_argument("folder", nargs="?", type=Path, help="FOLDER/CLASS/IMAGE; a class `unlabeled` has no label")
    create.add_argument("--image", action="append", default=[], metavar="NAME=FILE", help="one more image of a class")
    create.add_argument("--unlabeled", action="append", default=[], type=Path, metavar="FILE")
    create.add_argument("--describe", action="append", default=[], metavar="NAME=TEXT", help="a class in words")
    create.add_argument("--generator", default="auto", help="a meta-model's name, or auto")
    create.add_argument("--wait", type=int, metavar="SECONDS", help="how long to wait for it")
    export = _add(actions, "export", _export, "save the classifier as an ONNX file that runs anywhere")
    export.add_argument("--output", "-o", type=Path)
    listed = _add(actions, "list", _list, "list your tasks, newest first")
    shown = _add(actions, "show", _show, "show one task")
    deleted = _add(actions, "delete", _delete, "delete a task")
    for command in (export, shown, deleted):
        command.add_argument("task", help="the task's id")
    for command in (create, export, listed, shown, deleted):
        _add_client_options(command)


def _add(commands: Any, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def _add_client_options(parser: argparse.ArgumentParser) -> None:
    url, key = os.environ.get("CLASSMITH_URL", LOCAL_URL), os.environ.get("CLASSMITH_KEY", "")
    parser.add_argument("--url", default=url, help=f"of the service (default CLASSMITH_URL, else {LOCAL_URL})")
    parser.add_argument("--key", default=key, help="an API key (better: CLASSMITH_KEY)")
    parser.add_argument("--json", action="store_true", help="print JSON")


if __name__ == "__main__":
    sys.exit(main())
