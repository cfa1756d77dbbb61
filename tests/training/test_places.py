"""A place that cannot be written is told in a line before anything is read or measured; so is what fails in writing."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest

from models.metamodel import MetaModel
from tests.training import small
from tests.training.test_cli import refusal
from training.cli import main
from training.configs.hypertransformer import CONFIGS
from training.data.folders import DataError
from training.places import refuse_unwritable

FULL = Path("/dev/full")


def test_a_place_may_be_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    before = sorted(tmp_path.rglob("*"))
    for path in (Path("file"), Path("new"), Path("new/folder/file"), tmp_path / "new"):
        refuse_unwritable(path)
    for path in (Path("."), Path("new/folder"), tmp_path):
        refuse_unwritable(path, is_folder=True)
    for path, is_folder, said in (
        (tmp_path, False, "is a folder"),
        (Path("file"), True, "file is no folder"),
        (Path("file/x"), False, "file is no folder"),
        (Path("file/x/y"), True, "file is no folder"),
    ):
        with pytest.raises(DataError, match=said):
            refuse_unwritable(path, is_folder=is_folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_is_read_alone_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="may not be written to"):
        refuse_unwritable(tmp_path / "file")


def test_a_command_says_it_before_it_reads_what_it_is_given(
    exported: MetaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is nowhere."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("runs").touch()  # where runs go that are given no place
    assert "folder is a folder; give another" in refusal(capsys, "compare-words", "nowhere", "--out", "folder")
    assert "folder is a folder" in refusal(capsys, "report", "nowhere", "--to", "folder")
    command = ("evaluate", str(exported.folder), "--images", "nowhere")
    assert "folder is a folder" in refusal(capsys, *command, "--out", "folder")
    assert "runs is no folder" in refusal(capsys, "export", "nowhere", "--to", "runs/meta-model")
    assert "runs is no folder" in refusal(capsys, "export-encoder", "nowhere", "--to", "runs")
    assert "runs is no folder" in refusal(capsys, "quantise", "runs")
    for method, config in (("hypertransformer", "omniglot-8"), ("n3", "own"), ("base", "resnet18-tiny")):
        command = ("fit", method, "--config", config, "--images", "nowhere", "--device", "cpu")
        assert "runs is no folder" in refusal(capsys, *command)
    assert "nowhere is neither a folder nor a ZIP" in refusal(capsys, *command, "--run", "folder/new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "runs"]


def test_a_file_that_cannot_be_written_in_the_middle_is_a_line(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CONFIGS, "tiny", lambda: replace(small.CONFIG, n_steps=1))
    (tmp_path / "log.jsonl").mkdir()
    capsys.readouterr()
    command = ["fit", "hypertransformer", "--config", "tiny", "--images", str(folders), "--run", str(tmp_path)]
    assert main([*command, "--device", "cpu"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("training: [Errno 21]")


@pytest.mark.skipif(not FULL.exists(), reason="no disk that is always full")
def test_a_full_disk_is_a_line(
    exported: MetaModel, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "full.json"
    out.symlink_to(FULL)  # which is not to be replaced, whoever writes to it
    command = ["evaluate", str(exported.folder), "--images", str(folders), "--ways", "2", "--episodes", "2"]
    assert main([*command, "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "training: [Errno 28] No space left on device"


def test_an_error_of_no_file_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True) as nobody, monkeypatch.context() as printing:
        printing.setattr("sys.stdout", nobody)
        with pytest.raises(BrokenPipeError):
            main(["report", str(tmp_path), "--to", str(tmp_path / "page.html")])
