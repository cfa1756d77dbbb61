"""Every setting of the service: read once, at the edge, from ``CLASSMITH_...`` variables or the command line.

A settings object is frozen and passed on explicitly; nothing else in the service reads the environment. Limits are the
defaults of docs: raise them for trusted callers, lower them for small machines.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from models.metamodel import ZOO

LOCAL_TENANT = "local"
"""Whose tasks they are where there are no API keys."""
KEY, KEY_RULE = re.compile(r"[\x21-\x7e]+"), "a key is visible ASCII without spaces"
"""What an Authorization header carries unchanged from every client: another key could never be given."""
REDIS_SCHEMES = ("redis://", "rediss://", "redis+cluster://", "unix://")
PREFIX = "CLASSMITH_"
OTHERS = ("URL", "API_KEY", "KEY", "DATASETS")
"""Variables behind the prefix that are no settings: the client's, and where data sets are."""


class InvalidSettings(Exception):
    """A setting the service must not start with; the message says which, and what to do."""


def default_state_dir() -> Path:
    """``classmith`` below the user's state directory, by the XDG rule."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "classmith"


class Grant(BaseModel):
    """What a key gives: a tenant's tasks, and limits of the key's own where they are not the service's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: str = Field(min_length=1)
    rate_per_s: float | None = Field(default=None, gt=0)
    max_tasks: int | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"tenant": value} if isinstance(value, str) else value

    @field_validator("tenant")
    @classmethod
    def _tenant_has_a_name(cls, tenant: str) -> str:
        if not tenant.strip():
            raise ValueError('tenants must not be empty; give {"some-long-key": "tenant-name", ...}')
        return tenant


class Settings(BaseSettings):
    """One running service. Counts are ``max_...`` or ``n_...``; sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", validate_default=False)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    """0 takes a free port; the address is printed at the start."""
    processes: int = Field(1, ge=1, le=256)
    """Processes that share the port, each with limits, memory and networks of its own: more than one where small
    networks keep it busy. They need ``state_dir`` on a local disk, or Redis."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    drain_s: float = Field(0.0, ge=0)
    """From SIGTERM until no more connections are taken: ``/readyz`` already says 503, so balancers look elsewhere."""
    shutdown_s: float = Field(10.0, gt=0)
    """For requests under way, once no more connections are taken."""
    max_connections: int = Field(10_000, ge=1)
    """Those idle for longest make room for more; at most what the process may have open files for."""
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """A worker gives its metrics here, as the service does on ``/metrics``; by default nowhere."""
    body_s: float = Field(30.0, gt=0)
    """For the body of a request to arrive, and a second more for each kB of it."""

    state_dir: Path = Field(default_factory=default_state_dir)
    redis_url: str = ""
    """Tasks and bundles in this Redis instead of ``state_dir``; needed for more than one machine."""
    redis_prefix: str = "classmith"
    """Of every key, so that several services can share a Redis."""
    meta_models: Path = ZOO
    """A folder of meta-model folders."""
    text_encoder: Path | None = None
    """A folder with the text encoder's own files; by default its Python package, else the model hub's cache."""
    download_encoder: bool = False
    """Download the text encoder's files where they are nowhere, once, when the first description comes."""
    text_encoder_at_start: bool = False
    """Read the text encoder (about 200 MB of memory) at the start, not when the first description comes."""
    api_keys: dict[str, Grant] = Field(default_factory=dict, repr=False)
    """Key -> tenant, or {"tenant": NAME, "rate_per_s": 50, "max_tasks": 100}. A key is visible ASCII without spaces.
    Without keys: on loopback only."""
    api_keys_file: Path | None = None
    """A JSON file with the same mapping."""

    max_classes: int | None = Field(None, ge=2)
    """Most classes a task; by default as many as its meta-model takes."""
    max_name_chars: int = Field(200, ge=1)
    max_description_chars: int = Field(2_000, ge=0)
    max_images_per_class: int = Field(64, ge=1)
    max_image_bytes: int = Field(10_000_000, ge=1)
    max_image_pixels: int = Field(25_000_000, ge=1)
    max_request_pixels: int = Field(500_000_000, ge=1)
    """Of all images of a request together: a kilobyte can claim what takes a second to decode."""
    max_request_bytes: int = Field(64_000_000, ge=1)
    max_images_per_predict: int = Field(1_000, ge=1)

    rate_per_s: float = Field(0.0, ge=0)
    """Requests a second that a tenant may send to this process, whatever they ask; 0: no limit."""
    rate_burst: int | None = Field(None, ge=1)
    """Requests it may send at once; by default those of a second."""
    max_tasks: int | None = Field(None, ge=0)
    """Tasks a tenant may keep; by default no limit."""

    wait_s: float = Field(30.0, ge=0)
    """How long ``POST /tasks`` waits for the classifier where the client does not say (``Prefer: wait=N``)."""
    max_wait_s: float = Field(120.0, ge=0)
    lease_s: float = Field(10.0, gt=0)
    """How long a process may be silent before another takes its generation over."""
    n_generations: int = Field(4, ge=1)
    """Generations that this process does, or waits for, at once; the others queue."""
    max_pending_generations: int = Field(256, ge=1)
    idempotency_s: float = Field(86_400.0, gt=0)
    """How long an ``Idempotency-Key`` is remembered."""

    session_bytes: int = Field(256_000_000, ge=1)
    """Memory for ready classifiers; the least recently used go first."""
    min_residency_s: float = Field(5.0, ge=0)
    """A classifier just made ready stays this long, so that many tasks can't thrash."""
    revalidate_s: float = Field(2.0, ge=0.1)
    """A delete in another process is seen after this long."""
    bundle_bytes: int = Field(10_000_000_000, ge=1)
    """Disk for bundles (Redis has its own limit and their TTL)."""
    bundle_ttl_s: float = Field(7 * 86_400.0, gt=0)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where classifiers are made, and large ones run: "cpu", "cuda", or "auto" for a GPU where there is one. Small ones
    run on the processor, which is faster."""
    int8: bool = False
    """Run large networks in 8-bit integers, where their meta-model has been quantised (its card says what that changes)
    and the processor has instructions for them. ``model.onnx`` stays as it is."""
    n_runners: int = Field(default_factory=lambda: max(2, min(16, os.cpu_count() or 2)), ge=1)
    """Threads that decode images and run classifiers."""
    max_batch: int = Field(64, ge=1)
    """Most images in one run."""
    batch_s: float = Field(0.02, gt=0)
    """The longest that a batch of several images may take, decoding included, by the times measured so far."""
    max_queue: int = Field(4_096, ge=1)
    """Most images waiting; more are answered 429."""
    deadline_s: float = Field(10.0, gt=0)
    """A prediction predicted to wait longer is answered 429 at once, and for as long as that goes on, one predicted to
    wait longer than a tenth of it: what is admitted then is served soon."""

    @field_validator("port", mode="before")
    @classmethod
    def _is_no_address(cls, port: object) -> object:
        if isinstance(port, str) and "://" in port:
            remedy = "set `enableServiceLinks: false` in the pod, or give the port with --port"
            raise ValueError(f"{port} is what Kubernetes sets for a Service named classmith; {remedy}")
        return port

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis_address(cls, url: str) -> str:
        with suppress(ValueError):  # of a port that is no number
            if not url or (url.startswith(REDIS_SCHEMES) and urlsplit(url).port != 0):
                return url
        raise ValueError("this is no address of a Redis; write it like redis://localhost:6379")

    @field_validator("api_keys")
    @classmethod
    def _keys_are_usable(cls, keys: dict[str, Grant]) -> dict[str, Grant]:
        if not all(map(KEY.fullmatch, keys)):
            raise ValueError(f'{KEY_RULE}; give {{"some-long-key": "tenant-name", ...}}')
        return keys

    @model_validator(mode="after")
    def _loopback_without_keys(self) -> Self:
        if not (self.api_keys or self.api_keys_file) and not is_loopback(self.host):
            raise ValueError(
                f"without API keys the service listens on loopback only, not on {self.host!r}; set CLASSMITH_API_KEYS "
                '(JSON: {"some-long-key": "tenant-name"}) or CLASSMITH_API_KEYS_FILE, or use --host 127.0.0.1'
            )
        return self

    def keys(self) -> dict[str, Grant]:
        """Key -> what it gives, from both sources; raises InvalidSettings where the file is not such a mapping."""
        if self.api_keys_file is None:
            return dict(self.api_keys)
        remedy = f'{self.api_keys_file} must hold JSON like {{"some-long-key": "tenant-name"}}'
        try:
            found = TypeAdapter(dict[str, Grant]).validate_json(self.api_keys_file.read_bytes())
        except OSError as error:
            raise InvalidSettings(f"The API keys cannot be read ({error}); {remedy}.") from error
        except ValidationError:  # its text holds the keys
            found = {}
        if not found or not all(map(KEY.fullmatch, found)):
            raise InvalidSettings(f"The API keys are not usable; {remedy}, with at least one key; {KEY_RULE}.")
        return {**self.api_keys, **found}


def read_settings(**overrides: object) -> Settings:
    """Settings from the environment, with ``overrides`` over them; raises InvalidSettings in words for the operator."""
    try:
        settings = Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = "; ".join(_in_words(e["loc"], e["msg"]) for e in error.errors())
        raise InvalidSettings(f"These settings cannot be used: {problems}.") from error
    except SettingsError as error:
        raise InvalidSettings(f"A setting is not valid JSON ({error}); check the CLASSMITH_... variables.") from error
    settings.keys()
    return settings


def misspelt(variables: Iterable[str]) -> list[str]:
    """What to say of those that are no setting, but nearly: they change nothing, which nobody would notice."""
    names = [name.upper().removeprefix(PREFIX) for name in sorted(variables) if name.upper().startswith(PREFIX)]
    known = [name.upper() for name in Settings.model_fields]
    meant = {name: get_close_matches(name, known, n=1, cutoff=0.8) for name in names if name not in (*known, *OTHERS)}
    return [f"{PREFIX}{name} is no setting; {PREFIX}{near[0]} is one." for name, near in meant.items() if near]


def is_loopback(host: str) -> bool:
    """True for ``localhost`` and the addresses of the loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _in_words(location: tuple[int | str, ...], message: str) -> str:
    name = f"{PREFIX}{str(location[0]).upper()}: " if location else ""
    return name + message.removeprefix("Value error, ")
