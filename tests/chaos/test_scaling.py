"""More than one machine, as far as one machine shows it: several processes, a balancer, and a network that breaks."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import kubernetes_validate
import pytest
import yaml

from models.errors import Unavailable
from service.generation.jobs import JobQueue
from service.stores.redis_client import connect
from tests.chaos.ledger import equal, query_body, task_body
from tests.chaos.proxy import CLEAR, Weather
from tests.chaos.sites import Site, shared
from tests.e2e.processes import ROOT
from tests.redis_server import free_port
from tests.service.processes import until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
MAIN = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_rlimit_nofile 4096;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {fragment}
}}
"""
MANIFESTS = sorted((ROOT / "docker" / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.30"
N_TASKS, N_ASKED = 12, 3

pytestmark = pytest.mark.timeout(900)  # several processes start, on machines that may be busy


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with shared(tmp_path_factory.mktemp("site") / "shared") as running:
        yield running


@contextmanager
def balancer(folder: Path, site: Site) -> Iterator[httpx.Client]:
    """nginx with docker/nginx.conf, its replicas and its address put in."""
    port = free_port()
    fragment = (ROOT / "docker" / "nginx.conf").read_text()
    (server,) = (line for line in fragment.splitlines() if line.strip().startswith("server ${CLASSMITH_API}"))
    replicas = "\n".join(server.replace("${CLASSMITH_API} resolve", f"127.0.0.1:{one.port}") for one in site.services)
    changes = {server: replicas, "listen 8080": f"listen 127.0.0.1:{port}", "/dev/stdout": f"{folder}/access.log",
               "resolver ${NGINX_LOCAL_RESOLVERS} valid=5s;": ""}  # fmt: skip
    for old, new in changes.items():
        assert old in fragment
        fragment = fragment.replace(old, new)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, fragment=fragment))
    command = [str(NGINX), "-p", str(folder), "-e", f"{folder}/error.log", "-c", str(folder / "nginx.conf")]
    running = subprocess.Popen(command)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            until(lambda: answers(http))
            yield http
    finally:
        running.terminate()
        running.wait()


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def made(http: httpx.Client, seed: int) -> str:
    response = http.post("/tasks", json=task_body(seed))
    assert response.status_code in (200, 201), response.text
    ident: str = response.json()["id"]
    return ident


@pytest.mark.skipif(not NGINX, reason="nginx is not installed")
def test_nginx_sends_a_task_to_one_replica_and_hides_that_one_dies(site: Site, tmp_path: Path) -> None:
    with balancer(tmp_path, site) as http:
        ids = [made(http, seed) for seed in range(N_TASKS)]
        before = {i: http.post(f"/tasks/{i}/predict", json=query_body(0)).json() for i in ids for _ in range(N_ASKED)}
        for address in (f"/v2/repository/models/{i}/{verb}" for i in ids for verb in ("unload", "load")):
            assert http.post(address).status_code == 200
        lines = [line.split() for line in (tmp_path / "access.log").read_text().splitlines()]
        upstreams = {i: {line[3] for line in lines if i in line[2]} for i in ids}
        assert {len(found) for found in upstreams.values()} == {1}  # each task has its replica
        assert len(set.union(*upstreams.values())) == 2  # and both have some
        assert http.get("/metrics").status_code == 404
        site.services[0].end(signal.SIGKILL)
        after = {i: http.post(f"/tasks/{i}/predict", json=query_body(0)).json() for i in ids}
        assert after == before
        assert made(http, N_TASKS) not in ids
    site.services[0].start()
    site.services[0].wait_until_ready()


def test_a_half_that_is_cut_off_and_brought_back_loses_nothing(site: Site) -> None:
    one, other = (service.http for service in site.services)
    seeds = range(100, 100 + N_TASKS)
    first = {seed: made(one, seed) for seed in seeds[: N_TASKS // 2]}
    warm = one.post(f"/tasks/{first[seeds[0]]}/predict", json=query_body(0)).json()["predictions"]
    for i in (0, 2):  # a service and a worker lose Redis
        site.proxies[i].become(Weather(is_cut=True))
    assert one.get("/readyz").status_code == 503
    assert one.post("/tasks", json=task_body(99)).status_code == 503
    still = one.post(f"/tasks/{first[seeds[0]]}/predict", json=query_body(0))
    assert equal(still.json()["predictions"], warm)  # what is in memory goes on answering
    second = {seed: made(other, seed) for seed in seeds[N_TASKS // 2 :]}
    for i in (0, 2):
        site.proxies[i].become(CLEAR)
    until(lambda: one.get("/readyz").status_code == 200)
    for seed, ident in (first | second).items():
        asked = [http.post(f"/tasks/{ident}/predict", json=query_body(seed)) for http in (one, other)]
        assert [response.status_code for response in asked] == [200, 200], asked
        assert equal(*(response.json()["predictions"] for response in asked))
    listed = {task["id"] for task in one.get("/tasks", params={"limit": "200"}).json()["tasks"]}
    assert {*first.values(), *second.values()} <= listed
    assert made(one, 99)


def test_told_to_stop_a_service_and_a_worker_hand_their_work_over(site: Site) -> None:
    with ThreadPoolExecutor(4) as pool, site.client() as client:
        asked = [pool.submit(site.services[0].http.post, "/tasks", json=task_body(seed)) for seed in range(200, 240)]
        until(lambda: asked[2].done())
        assert site.services[0].end(signal.SIGTERM) == 0
        assert site.workers[0].end(signal.SIGTERM) == 0
        outcomes = [future.exception() or future.result() for future in asked]
        queue = JobQueue(client)
        until(lambda: queue.n_jobs() == 0)
    acknowledged = [o.json()["id"] for o in outcomes if isinstance(o, httpx.Response) and o.status_code < 300]
    assert len(acknowledged) >= 3
    for ident in acknowledged:
        until(lambda ident=ident: site.services[1].http.get(f"/tasks/{ident}").json()["state"] == "ready")
    refused = {o.status_code for o in outcomes if isinstance(o, httpx.Response) and o.status_code >= 300}
    assert refused <= {503}
    site.services[0].start()
    site.workers[0].start()
    site.services[0].wait_until_ready()


def test_a_silent_redis_holds_up_neither_health_nor_what_is_in_memory(site: Site) -> None:
    http = site.services[0].http
    ident = made(http, 300)
    expected = http.post(f"/tasks/{ident}/predict", json=query_body(300)).json()
    site.proxies[0].become(Weather(is_silent=True))
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        stack.callback(site.proxies[0].become, CLEAR)
        probes = [pool.submit(http.get, "/readyz") for _ in range(8)]
        assert http.get("/healthz").status_code == 200
        assert http.post(f"/tasks/{ident}/predict", json=query_body(300)).json() == expected
        assert {probe.result().status_code for probe in probes} == {503}
    until(lambda: http.get("/readyz").status_code == 200)


def test_a_client_of_a_silent_redis_waits_once() -> None:
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(connect(f"redis://127.0.0.1:{listening.getsockname()[1]}", timeout_s=0.2))
        with pytest.raises(Unavailable):
            JobQueue(client).n_jobs()
        listening.settimeout(0.0)
        accepted = 0
        while True:
            try:
                listening.accept()[0].close()
                accepted += 1
            except BlockingIOError:
                break
        assert accepted == 1


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_manifests_are_valid(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for pod in (d["spec"]["template"]["spec"] for d in documents if "template" in d["spec"]):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["enableServiceLinks"] is False  # the balancer's Service would set CLASSMITH_PORT
        assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in pod["containers"])


def test_the_manifests_name_each_other() -> None:
    documents = [d for path in MANIFESTS for d in yaml.safe_load_all(path.read_text())]
    named = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for document in documents:
        if document["kind"] == "HorizontalPodAutoscaler":
            target = document["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) in named
    selectors = [d["spec"]["selector"]["app.kubernetes.io/name"] for d in documents if d["kind"] == "Service"]
    labels = {d["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] for d in documents
              if "template" in d["spec"]}  # fmt: skip
    assert set(selectors) <= labels
    assert ("Service", "redis") in named  # what CLASSMITH_REDIS_URL says
    assert ("Service", "api") in named  # what CLASSMITH_API says


def test_the_balancer_asks_for_replicas_by_their_whole_name() -> None:
    """nginx's resolver knows no search domains: "api" alone is a name that Kubernetes' DNS does not have."""
    manifest = (ROOT / "docker" / "kubernetes" / "balancer.yaml").read_text()
    (pod,) = (d["spec"]["template"]["spec"] for d in yaml.safe_load_all(manifest) if "template" in d["spec"])
    env = {one["name"]: one.get("value", "") for one in pod["containers"][0]["env"]}
    assert env["CLASSMITH_API"] == "api.$(NAMESPACE).svc.cluster.local:8000"
    assert "${CLASSMITH_API}" in (ROOT / "docker" / "nginx.conf").read_text()
