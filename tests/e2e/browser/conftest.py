"""One Chromium and two services for all tests of the page; each test gets a tab of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.e2e.browser import chromium as browsers
from tests.e2e.processes import Service, serve
from tests.service import centroids, prototypes

PATIENCE_MS = 60_000
SLOW = 30 * prototypes.SLOW_LOOPS


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """No longer than a module: Playwright runs an event loop in this thread, and no other test can run its own."""
    if browsers.executable() is None:
        pytest.skip("no Chromium on the PATH")
    expect.set_options(timeout=PATIENCE_MS)
    with browsers.chromium() as found:
        yield found


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With the meta-models that ship with the project."""
    with serve(state_dir=tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(scope="session")
def unsure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With meta-models that are never sure of six classes: one that is quick, one that is slow, one that fails."""
    folder = tmp_path_factory.mktemp("unsure")
    centroids.meta_model(folder / "meta-models")
    centroids.meta_model(folder / "meta-models", name="slow", n_loops=SLOW)
    prototypes.meta_model(folder / "meta-models", name="failing", overflow=True)
    with serve(state_dir=folder / "state", meta_models=folder / "meta-models") as running:
        yield running


@pytest.fixture(scope="module")
def context(chromium: Browser) -> BrowserContext:
    """One for a module's tests, which saves time: the page keeps nothing beyond its tab."""
    opened = chromium.new_context(viewport={"width": 1100, "height": 900}, reduced_motion="reduce")
    opened.set_default_timeout(PATIENCE_MS)
    return opened


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page in which no script may fail, no policy may be violated, and nothing may be fetched from elsewhere."""
    opened, faults, hosts = context.new_page(), [], set[str]()
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text) if "Policy" in said.text else None)
    opened.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "://" in request.url[:8] else None)
    yield opened
    opened.close()
    assert faults == []
    assert len(hosts) <= 1
