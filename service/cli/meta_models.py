"""`classmith metamodel list|verify`: the meta-models of a folder, without a service."""

from __future__ import annotations

import argparse
from pathlib import Path

from models import quantised
from models.errors import InvalidMetaModel
from models.metamodel import load
from service.catalogue import meta_model_folders, read_catalogue
from service.cli.output import FAILED, WRONG_USE, CommandFailed, complain, print_json
from service.settings import InvalidSettings, read_settings


def list_all(asked: argparse.Namespace) -> int:
    """Each whole meta-model, with what it takes; fails where there is none."""
    folder = asked.folder or _configured()
    found = read_catalogue(folder)
    if not found.names:
        raise _none_in(folder)
    manifests = [found.by_name[name].manifest for name in found.names]
    if asked.json:
        return print_json([m.model_dump(mode="json", exclude={"tensors", "files"}) for m in manifests])
    for m in manifests:
        print(f"{m.name}\t{m.domain}\t{m.min_classes}-{m.max_classes} classes\t{m.summary}")
    return 0


def verify(asked: argparse.Namespace) -> int:
    """Whether each folder is whole and unaltered; fails where one is not, or where there is none."""
    folders = asked.folders or meta_model_folders(_configured())
    reasons = {folder: _fault(folder) for folder in folders}
    if asked.json:
        print_json([{"folder": str(f), "whole": not reason, "reason": reason} for f, reason in reasons.items()])
    for folder, reason in reasons.items():
        if reason:
            complain(reason, FAILED)
        elif not asked.json:
            print(f"{folder.name}: whole")
    if not folders:
        raise _none_in(_configured())
    return FAILED if any(reasons.values()) else 0


def _fault(folder: Path) -> str:
    try:
        quantised.read(load(folder))
    except InvalidMetaModel as error:
        return error.message
    return ""


def _none_in(folder: Path) -> CommandFailed:
    return CommandFailed(f"There is no whole meta-model in {folder}; name a folder, or set CLASSMITH_META_MODELS.")


def _configured() -> Path:
    try:
        return read_settings().meta_models
    except InvalidSettings as error:
        raise CommandFailed(str(error), WRONG_USE) from error
