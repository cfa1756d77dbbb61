"""A service without a meta-model: its log says so at the start, /readyz why, and who asks for a classifier is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings
from tests.service import centroids
from tests.service.live import live, problem


@pytest.mark.parametrize("exists", [True, False], ids=["empty", "missing"])
def test_a_wrong_folder_is_said_whole_wherever_somebody_looks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, exists: bool
) -> None:
    folder = tmp_path / "meta" / "models"
    if exists:
        folder.mkdir(parents=True)
    with live(Settings(meta_models=folder, state_dir=tmp_path / "state")) as service:
        said = f"{folder} holds no whole one" if exists else f"there is no folder {folder}"
        (logged,) = (record for record in caplog.records if record.name == "service.app")
        assert (logged.levelname, said in logged.getMessage()) == ("ERROR", True)
        assert said in problem(service.http.get("/readyz"), 503)["detail"]
        assert service.http.get("/v2/health/ready").headers["retry-after"] == "1"
        for generator in ("auto", "n3-mobilenet"):
            asked = service.http.post("/tasks", json=centroids.task_json(generator=generator))
            assert "No meta-model is loaded here" in problem(asked, 503)["detail"]
        assert service.http.get("/tasks").json()["tasks"] == []
