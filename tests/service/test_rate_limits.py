"""Rate limits and quotas: counted by a clock of the test's, told in headers, and nobody's but the caller's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.auth import Caller
from service.api.rate_limits import RateLimits
from service.demo.alphabet import drawing
from service.settings import Grant, InvalidSettings, Settings, read_settings
from tests.service import centroids
from tests.service.live import Live, live, problem

ANN, BOB = {"Authorization": "Bearer key-of-ann"}, {"Authorization": "Bearer key-of-bob"}
SLOW = 1 / 3600
"""A request an hour: none comes back while a test runs."""


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def caller(tenant: str = "ann", key: bytes = b"1", rate_per_s: float | None = None) -> Caller:
    return Caller(Grant(tenant=tenant, rate_per_s=rate_per_s), key)


def headers(limits: RateLimits, who: Caller) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in limits.take(who).headers}


def test_without_a_rate_nothing_is_counted_and_nothing_told() -> None:
    limits = RateLimits(0, None)
    for _ in range(1000):
        admission = limits.take(caller())
        assert (admission.wait_s, admission.headers) == (0, [])


def test_a_bucket_empties_tells_the_wait_and_fills_again() -> None:
    clock = Clock()
    limits = RateLimits(2.0, 3, clock=clock)
    assert [limits.take(caller()).wait_s for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now += 0.25
    assert limits.take(caller()).wait_s == 0.25
    clock.now += 0.25
    assert [limits.take(caller()).wait_s for _ in range(2)] == [0, 0.5]
    clock.now += 1000
    assert [limits.take(caller()).wait_s for _ in range(4)] == [0, 0, 0, 0.5]


def test_headers_say_what_is_left() -> None:
    clock = Clock()
    limits = RateLimits(2.0, 3, clock=clock)
    assert headers(limits, caller()) == {
        "ratelimit-policy": '"default";q=3;w=2', "ratelimit": '"default";r=2;t=1',
    }  # fmt: skip
    for _ in range(3):
        last = headers(limits, caller())
    assert last["ratelimit"] == '"default";r=0;t=2'


def test_keys_of_a_tenant_share_its_rate_and_a_key_with_its_own_has_its_own() -> None:
    limits = RateLimits(1.0, None, clock=Clock())
    assert limits.take(caller(key=b"1")).wait_s == 0
    assert limits.take(caller(key=b"2")).wait_s == 1
    assert limits.take(caller("bob", key=b"3")).wait_s == 0
    own = caller(key=b"4", rate_per_s=2.0)
    assert [limits.take(own).wait_s for _ in range(3)] == [0, 0, 0.5]
    assert limits.take(caller(key=b"5", rate_per_s=2.0)).wait_s == 0


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    st.floats(0.01, 1000),
    st.none() | st.integers(1, 50),
    st.lists(st.floats(0, 20), min_size=1, max_size=60),
)
def test_no_more_pass_than_the_burst_and_the_rate_allow(rate: float, burst: int | None, pauses: list[float]) -> None:
    clock = Clock()
    limits, n_passed = RateLimits(rate, burst, clock=clock), 0
    for pause in pauses:
        clock.now += pause
        admission = limits.take(caller())
        assert 0 <= admission.wait_s <= 1 / rate + 1e-9
        n_passed += admission.wait_s == 0
    most = burst or max(1, -(-rate // 1))
    assert n_passed <= most + rate * sum(pauses) + 1e-6


@pytest.fixture
def keys() -> dict[str, object]:
    bob = {"tenant": "bob", "rate_per_s": 1000.0, "max_tasks": 1}
    return {"key-of-ann": "ann", "key-of-bob": bob}


def test_a_fast_caller_is_told_when_to_come_back_and_others_go_on(
    meta_models: Path, tmp_path: Path, keys: dict[str, object]
) -> None:
    limited = Settings(meta_models=meta_models, state_dir=tmp_path, api_keys=keys, rate_per_s=SLOW, rate_burst=2)
    with live(limited) as service:
        for left in (1, 0):
            answer = service.http.get("/tasks", headers=ANN)
            assert answer.status_code == 200
            assert answer.headers["ratelimit"].startswith(f'"default";r={left};t=')
        refused = service.http.post("/tasks", content=b"not even JSON", headers=ANN)
        problem(refused, 429)
        assert 3500 < int(refused.headers["retry-after"]) <= 3600
        assert refused.headers["ratelimit"].startswith('"default";r=0;t=')
        assert refused.headers["ratelimit-policy"] == '"default";q=2;w=7200'
        of_the_protocol = service.http.get(f"/v2/models/{'0' * 32}", headers=ANN)
        assert (of_the_protocol.status_code, list(of_the_protocol.json())) == (429, ["error"])
        assert "retry-after" in of_the_protocol.headers
        assert service.http.get("/tasks", headers=BOB).headers["ratelimit-policy"] == '"default";q=1000;w=1'
        assert service.http.get("/healthz", headers=ANN).status_code == 200
        assert 'classmith_shed_total{reason="rate_limit"} 2.0' in service.http.get("/metrics").text


def test_the_local_tenant_has_a_rate_too(meta_models: Path, tmp_path: Path) -> None:
    with live(Settings(meta_models=meta_models, state_dir=tmp_path, rate_per_s=SLOW)) as service:
        assert service.http.get("/tasks").status_code == 200
        problem(service.http.get("/tasks"), 429)


def test_a_tenant_keeps_no_more_tasks_than_it_may(meta_models: Path, tmp_path: Path, keys: dict[str, object]) -> None:
    with live(Settings(meta_models=meta_models, state_dir=tmp_path, api_keys=keys, max_tasks=2)) as service:
        first = service.task(centroids.task_json(), **BOB)
        other = centroids.task_json(centroids.characters(4))
        assert "delete one" in quota(service, other, BOB)
        again = service.http.post("/tasks", json=centroids.task_json(), headers=BOB)
        assert (again.status_code, again.json()["id"]) == (200, first["id"])  # nothing new is kept
        service.http.delete(f"/tasks/{first['id']}", headers=BOB)
        service.task(other, **BOB)
        for n_classes in (3, 4):
            service.task(centroids.task_json(centroids.characters(n_classes)), **ANN)
        assert "2 tasks" in quota(service, centroids.task_json(centroids.characters(5)), ANN)
        assert len(service.http.get("/tasks", headers=ANN).json()["tasks"]) == 2


def quota(service: Live, body: object, headers: dict[str, str]) -> str:
    """What is said where a quota is used up; an Idempotency-Key is not used up with it."""
    refused = service.http.post("/tasks", json=body, headers={**headers, "Idempotency-Key": "once"})
    detail: str = problem(refused, 403)["detail"]
    assert service.served.tasks.registration.keys.get("bob", "once") is None
    return detail


def test_a_rate_costs_a_prediction_nothing_it_did_not_ask_for(service: Live) -> None:
    task = service.task(centroids.task_json())["id"]
    answer = service.http.post(f"/tasks/{task}/predict", content=drawing(0, 0), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("ratelimit")]


@pytest.mark.parametrize(("name", "value"), [
    ("rate_per_s", "-1"), ("rate_per_s", "x"), ("rate_burst", "0"), ("max_tasks", "-1"),
    ("api_keys", '{"k": {"tenant": "t", "rate_per_s": 0}}'), ("api_keys", '{"k": {"tenant": "t", "rate": 1}}'),
    ("api_keys", '{"k": {"rate_per_s": 1}}'), ("api_keys", '{"k": {"tenant": "t", "max_tasks": -1}}'),
])  # fmt: skip
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CLASSMITH_{name.upper()}", value)
    with pytest.raises(InvalidSettings, match=rf"(?i){name}"):
        read_settings()


def test_limits_of_keys_come_from_the_environment_and_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"k2": {"tenant": "t", "rate_per_s": 5}}')
    monkeypatch.setenv("CLASSMITH_API_KEYS", '{"k1": {"tenant": "t", "max_tasks": 7}}')
    found = read_settings(api_keys_file=file).keys()
    assert found == {"k1": Grant(tenant="t", max_tasks=7), "k2": Grant(tenant="t", rate_per_s=5)}
