"""Settings: read once, refused with the remedy, never open to the network without keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from models.metamodel import ZOO
from service.settings import Grant, InvalidSettings, Settings, is_loopback, misspelt, read_settings


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CLASSMITH_{name.upper()}", raising=False)


def test_the_defaults_are_those_of_the_design() -> None:
    settings = read_settings()
    assert (settings.host, settings.port, settings.redis_url, settings.meta_models) == ("127.0.0.1", 8000, "", ZOO)
    assert settings.max_description_chars == 2_000
    assert settings.max_images_per_class == 64
    assert settings.max_image_bytes == 10_000_000
    assert settings.max_image_pixels == 25_000_000
    assert settings.max_request_bytes == 64_000_000
    assert settings.max_images_per_predict == 1_000
    assert settings.wait_s == 30


def test_every_setting_is_a_variable_and_options_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLASSMITH_PORT", "9000")
    monkeypatch.setenv("CLASSMITH_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("CLASSMITH_API_KEYS", '{"k": "t"}')
    settings = read_settings()
    assert (settings.port, settings.state_dir, settings.keys()) == (9000, tmp_path, {"k": Grant(tenant="t")})
    assert read_settings(port=9001).port == 9001


def test_the_state_is_kept_where_the_user_keeps_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert read_settings().state_dir == tmp_path / "classmith"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        read_settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_without_keys_only_loopback_is_served(host: str) -> None:
    with pytest.raises(InvalidSettings, match="CLASSMITH_API_KEYS"):
        read_settings(host=host)
    assert read_settings(host=host or "0.0.0.0", api_keys={"k": "t"}).host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert is_loopback(host)
    assert read_settings(host=host).host == host


@pytest.mark.parametrize(("name", "value"), [
    ("port", "70000"), ("port", "x"), ("api_keys", "not json"), ("api_keys", "[]"), ("api_keys", '{"": "t"}'),
    ("api_keys", '{"k": ""}'), ("api_keys", '{"k": 1}'), ("max_image_bytes", "0"), ("wait_s", "-1"),
    ("log_level", "loud"), ("api_keys", '{"k": "t", "a key": "t"}'), ("api_keys", '{"k ": "t"}'),
    ("api_keys", '{"schl\u00fcssel": "t"}'), ("api_keys", '{"k\\n": "t"}'), ("api_keys", '{"k\\u007f": "t"}'),
    ("redis_url", "localhost:6379"), ("redis_url", "redis://localhost:abc/0"), ("redis_url", "https://localhost"),
])  # fmt: skip
def test_a_bad_value_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CLASSMITH_{name.upper()}", value)
    with pytest.raises(InvalidSettings, match=rf"(?i){name}"):
        read_settings()


@pytest.mark.parametrize("url", ["redis://:secret@localhost/1", "rediss://[::1]:6380", "unix:///run/redis.sock"])
def test_an_address_of_redis_is_taken_as_it_is(url: str) -> None:
    assert read_settings(redis_url=url).redis_url == url


def test_an_unusable_address_of_redis_is_not_shown() -> None:
    with pytest.raises(InvalidSettings, match="write it like redis://localhost:6379") as refused:
        read_settings(redis_url="https://user:secret@localhost")
    assert "secret" not in str(refused.value)


def test_the_address_that_kubernetes_sets_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSMITH_PORT", "tcp://10.96.3.7:80")
    with pytest.raises(InvalidSettings, match="enableServiceLinks: false"):
        read_settings()
    assert read_settings(port=8001).port == 8001


def test_a_misspelt_variable_is_told_and_no_other() -> None:
    known = ["CLASSMITH_MAX_TASKS", "classmith_port", "CLASSMITH_API_KEY", "CLASSMITH_URL", "CLASSMITH_SERVICE_HOST"]
    assert misspelt([*known, "MAX_TASK", "PATH"]) == []
    (warning,) = misspelt([*known, "CLASSMITH_MAX_TASK"])
    assert warning == "CLASSMITH_MAX_TASK is no setting; CLASSMITH_MAX_TASKS is one."


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"k2": "t2"}))
    settings = read_settings(host="0.0.0.0", api_keys_file=file, api_keys={"k1": "t1"})
    assert settings.keys() == {"k1": Grant(tenant="t1"), "k2": Grant(tenant="t2")}


UNUSABLE_FILES = [
    "", "[]", "{}", '{"k": 1}', '{"": "t"}', '{"k": " "}', "\xff", '{"k": "t", " k2": "t"}', '{"\\u00e9": "t"}',
]  # fmt: skip


@pytest.mark.parametrize("content", UNUSABLE_FILES)
def test_an_unusable_file_of_keys_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidSettings, match=r"keys\.json must hold JSON like"):
        read_settings(host="0.0.0.0", api_keys_file=file)
    with pytest.raises(InvalidSettings):
        read_settings(api_keys_file=tmp_path / "missing.json")


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(read_settings(api_keys={"secret-key": "t"}))
    with pytest.raises(InvalidSettings) as caught:
        read_settings(api_keys={"secret-key": ""})
    assert "secret" not in str(caught.value)
