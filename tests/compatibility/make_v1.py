"""Writes tests/compatibility/v1: what this version stores, for every later version to read and answer from alike.

    python -m tests.compatibility.make_v1 FOLDER

It was run once, at version 0.1.0, into ``v1``. Files that a later version reads differently are a broken promise: mend
the reader, never these files. A new format gets a folder of its own, ``v2``, beside this one.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from service.demo.alphabet import drawing
from service.settings import LOCAL_TENANT, Settings
from tests.service import centroids
from tests.service.live import live

N_CLASSES, KEY, KEEP_S = 3, "the-first-request", 1e10
DESCRIPTION = "a sign with a long stroke"
PAGE_BYTES = 512


def main() -> None:
    """Write everything below the folder named on the command line, which must not exist yet."""
    (folder,) = map(Path, sys.argv[1:])
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        meta_model = centroids.meta_model(Path(scratch))
        shutil.copytree(meta_model.folder, folder / "meta-models" / meta_model.name)
    images = folder / "images"
    images.mkdir()
    for k in range(N_CLASSES):
        (images / f"shown-{k}.png").write_bytes(drawing(k, 0))
        (images / f"asked-{k}.png").write_bytes(drawing(k, 1))
    (folder / "request.json").write_text(json.dumps(request(images), indent=1) + "\n")
    (folder / "expected.json").write_text(json.dumps(record(folder), indent=1) + "\n")
    for name in ("tasks.sqlite3", "idempotency.sqlite3"):
        compact(folder / "state" / name)


def request(images: Path) -> dict[str, object]:
    """A task with images, a description, and an unlabelled image."""
    shown = {f"character {k}": (images / f"shown-{k}.png").read_bytes() for k in range(N_CLASSES)}
    body = centroids.task_json(shown, unlabeled=[centroids.encoded((images / "asked-0.png").read_bytes())])
    body["classes"][0]["description"] = DESCRIPTION
    return body


def record(folder: Path) -> dict[str, object]:
    """Make the task in a service that keeps its state in the folder; what it answered. Stored bytes become files."""
    settings = Settings(meta_models=folder / "meta-models", state_dir=folder / "state", idempotency_s=KEEP_S)
    with live(settings) as service:
        body = json.loads((folder / "request.json").read_text())
        task = service.task(body, **{"Idempotency-Key": KEY})
        asked = [centroids.encoded((folder / "images" / f"asked-{k}.png").read_bytes()) for k in range(N_CLASSES)]
        answer = service.http.post(f"/tasks/{task['id']}/predict", json={"images": asked}).raise_for_status()
        recipe = service.served.tasks.store.recipe(LOCAL_TENANT, task["id"])
        bundle = service.served.tasks.bundles.get(task["id"])
    assert recipe is not None
    assert bundle is not None
    (folder / "recipe.safetensors").write_bytes(recipe)
    (folder / "bundle.safetensors").write_bytes(bundle)
    return {"task": task, **answer.json()}


def compact(database: Path) -> None:
    """Pages of the smallest size: the file is all but empty."""
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("VACUUM")


if __name__ == "__main__":
    main()
