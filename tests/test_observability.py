"""Dashboard, alerts and docs name what a real scrape gives: every metric, label, status and address in them exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from redis import Redis

from service.demo.alphabet import drawing
from service.settings import Settings
from tests.e2e.processes import COMMAND, environment, scrape, serve, value, worker
from tests.redis_server import RedisServer, free_port
from tests.service import centroids
from tests.service.live import Live, live

ROOT = Path(__file__).parents[1]
PROMETHEUS, GRAFANA = ROOT / "docker" / "prometheus", ROOT / "docker" / "grafana"
(GROUP,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
ALERTS: list[dict[str, Any]] = GROUP["rules"]
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
FROM_PROMETHEUS = {"job", "instance"}
"""Labels that no process gives: Prometheus adds them."""

Labels = dict[str, set[str]]


def ask_everything(service: Live) -> None:
    """Requests of every kind that the dashboard shows."""
    task = service.task(centroids.task_json())
    image = {"content": drawing(1, 0), "headers": {"Content-Type": "image/png"}}
    assert service.http.post(f"/tasks/{task['id']}/predict", **image).status_code == 200  # type: ignore[arg-type]
    pixels = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [centroids.encoded(drawing(1, 0))]}
    service.http.post(f"/v2/models/{task['id']}/infer", json={"inputs": [pixels]})
    assert service.http.get("/no/such/address").status_code == 404
    for address in ("/healthz", "/readyz", "/metrics"):
        assert service.http.get(address).status_code == 200


@pytest.fixture(scope="module")
def given(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Labels]:
    """What a service with Redis gives: sample name -> label -> its values."""
    folder = tmp_path_factory.mktemp("observed")
    centroids.meta_model(folder / "meta-models")
    settings = Settings(
        meta_models=folder / "meta-models", state_dir=folder, redis_url=redis_server.url, redis_prefix="observed"
    )
    found: dict[str, Labels] = {"up": {}}
    with live(settings) as service:
        ask_everything(service)
        for sample in scrape(service.http):
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def expressions() -> list[Any]:
    """Every PromQL expression, with its place."""
    alerts = [pytest.param(rule["expr"], id=rule["alert"]) for rule in ALERTS]
    panels = [
        pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]
    notes = [pytest.param(note["expr"], id=note["name"]) for note in DASHBOARD["annotations"]["list"]]
    variables = [
        pytest.param(found[1], id=f"${variable['name']}")
        for variable in DASHBOARD["templating"]["list"]
        if (found := re.fullmatch(r"label_values\((.*), \w+\)", str(variable["query"].get("query"))
            if isinstance(variable["query"], dict) else ""))
    ]  # fmt: skip
    assert len(variables) == 2
    return [*alerts, *panels, *notes, *variables]


def visited(expression: str) -> list[Any]:
    """The nodes of an expression; Grafana's variables stand for all there is."""
    nodes: list[Any] = []
    text = expression.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*")
    promql_parser.walk(promql_parser.parse(text), nodes.append)
    return nodes


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_what_a_scrape_gives(expression: str, given: dict[str, Labels]) -> None:
    nodes = visited(expression)
    selectors = [node for node in nodes if isinstance(node, promql_parser.VectorSelector)]
    assert selectors
    known: set[str] = set(FROM_PROMETHEUS)
    for selector in selectors:
        assert selector.name in given, f"{selector.name} is not in a scrape"
        known |= set(given[selector.name])
        for matcher in selector.matchers.matchers:
            check_matcher(matcher, given[selector.name])
    for node in nodes:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= known


def check_matcher(matcher: Any, labels: Labels) -> None:
    """A label that is there, and a value or pattern that it has; statuses above 404 would have to be provoked."""
    if matcher.name in FROM_PROMETHEUS:
        return
    assert matcher.name in labels
    values = labels[matcher.name] | ({"429", "503"} if matcher.name == "code" else set())
    is_pattern = matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)
    for part in matcher.value.split("|") if is_pattern else [re.escape(matcher.value)]:
        assert any(re.fullmatch(part, value) for value in values), f"{matcher.name} is never {part}"


def test_the_docs_table_is_what_a_scrape_gives(given: dict[str, Labels]) -> None:
    rows = re.findall(r"^\| `(classmith_\w+)` \|([\w, ]*)\|", OPERATIONS, re.MULTILINE)
    endings = ("_bucket", "_sum", "_count", "_created")
    names = {name: labels for name, labels in given.items() if name != "up" and not name.endswith("_created")}
    found = {re.sub(f"({'|'.join(endings)})$", "", name): set(labels) - {"le"} for name, labels in names.items()}
    assert {name: {*filter(None, labels.strip().split(", "))} for name, labels in rows} == found


def test_what_users_make_adds_no_series(tmp_path: Path) -> None:
    centroids.meta_model(tmp_path / "meta-models")
    with live(Settings(meta_models=tmp_path / "meta-models", state_dir=tmp_path)) as service:
        ask_everything(service)
        before = {(sample.name, *sorted(sample.labels.items())) for sample in scrape(service.http)}
        for n in range(4):
            task = service.task(centroids.task_json(centroids.characters(4 + n)))
            image = {"content": drawing(1, 0), "headers": {"Content-Type": "image/png"}}
            service.http.post(f"/tasks/{task['id']}/predict", **image)  # type: ignore[arg-type]
            service.http.get(f"/no/such/address/{n}")
        assert {(sample.name, *sorted(sample.labels.items())) for sample in scrape(service.http)} == before


def test_a_worker_gives_its_own_metrics_on_a_port_of_its_own(
    tmp_path: Path, shared: dict[str, object], redis_client: Redis
) -> None:
    centroids.meta_model(tmp_path / "meta-models")
    port = free_port()
    with serve(**shared) as service, worker(redis_client, {**shared, "metrics_port": port}):
        here = service.http
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=240, trust_env=False) as there:
            assert here.post("/tasks", json=centroids.task_json()).status_code == 201
            assert value(here, "classmith_workers") == 1
            assert value(here, "classmith_generations_total", outcome="made") == 0
            assert value(there, "classmith_generations_total", outcome="made") == 1
            assert value(there, "classmith_generation_duration_seconds_count") == 1
        env = environment(**{**shared, "metrics_port": service.url.rpartition(":")[2]})
        command = [*COMMAND, "worker"]
        refused = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "CLASSMITH_METRICS_PORT" in refused.stderr


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert f"### {rule['alert']}\n\n" in OPERATIONS
    assert f'{{alertname="{rule["alert"]}"}}' in (PROMETHEUS / "alerts.test.yml").read_text()


def test_the_docs_describe_the_alerts_there_are() -> None:
    assert re.findall(r"^### (\w+)$", OPERATIONS, re.MULTILINE) == [rule["alert"] for rule in ALERTS]


@pytest.mark.parametrize("command", [["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]])
def test_prometheus_takes_the_rules_and_they_fire_when_they_should(command: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here (it comes with Prometheus)")
    done = subprocess.run([promtool, *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_panel_lies_on_another() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_the_profile_brings_prometheus_and_grafana_with_the_files_there_are() -> None:
    services = {name: one for name, one in COMPOSE["services"].items() if "observability" in one.get("profiles", ())}
    assert set(services) == {"prometheus", "grafana"}
    for service in services.values():
        mounts = [mount for mount in service["volumes"] if mount.startswith("./")]
        assert mounts
        assert all((ROOT / mount.split(":")[0]).exists() and mount.endswith(":ro") for mount in mounts)
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/classmith.yml").read_text())["providers"]
    assert any(mount.split(":")[1].startswith(provider["options"]["path"]) for mount in services["grafana"]["volumes"])
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_prometheus_scrapes_the_ports_that_the_services_open() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    found = {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}
    assert found["classmith-api"]["names"] == ["api"]
    assert str(found["classmith-api"]["port"]) in COMPOSE["services"]["api"]["command"]
    assert found["classmith-worker"]["names"] == ["worker"]
    environment = COMPOSE["services"]["worker"]["environment"]
    assert str(found["classmith-worker"]["port"]) == environment["CLASSMITH_METRICS_PORT"]
