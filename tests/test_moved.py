"""Moved runs, and status from another folder: the printed command resumes the run and starts no other."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from probe.report import relocate
from probe.settings import Settings
from shard.cli import bind
from shard.errors import InputError
from tests.conftest import Shards, newest, train_here
from train.__main__ import COMMANDS
from train.checkpoint import list_checkpoints
from train.journal import CARD, METRICS, read_journal
from train.moved import resolve_moved_path
from train.status import status


@pytest.fixture(scope="module")
def project(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and a run of three steps, trained with relative paths."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(shards.folder, project / "shards")
    before = Path.cwd()
    os.chdir(project)
    try:
        train_here(Shards(Path("shards"), shards.manifest), Path("runs/lr=0.1"), limit_steps=3, epochs=1)
    finally:
        os.chdir(before)
    return project


def next_command(run: Path | str, capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    status(Path(run))
    return capfd.readouterr().out.splitlines()[-1].split("next: ")[1]


def split_command(command: str) -> list[str]:
    """Split a command as a shell does, without comments."""
    return shlex.split(command, comments=True)


def run_command(command: str) -> None:
    words = split_command(command)
    assert words[:3] == ["python", "-m", "train"]
    bind("python -m train", COMMANDS, words[3:])()


def to_relative(run: Path) -> None:
    """Rewrite run.json with relative paths, as earlier versions did."""
    card = json.loads((run / CARD).read_text())
    card["settings"] |= {"shards": "shards", "out": "runs/lr=0.1"}
    (run / CARD).write_text(json.dumps({**card, "command": "python -m train --out=runs/lr=0.1 --shards=shards"}))


@pytest.mark.parametrize("old_card", [False, True])
def test_status_command_resumes_a_moved_project(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], old_card: bool
) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(project, there)
    run = (there / "runs" / "lr=0.1").rename(there / "runs" / "renamed")
    if old_card:
        to_relative(run)
    for cwd, asked in ((elsewhere, run), (there, "runs/renamed"), (run, "."), (elsewhere, "../there/runs/renamed")):
        monkeypatch.chdir(cwd)
        words = split_command(command := next_command(asked, capfd))
        (out,) = (word for word in words if word.startswith("--out="))
        assert Path(out[6:]).is_absolute() and Path(out[6:]).samefile(run)
        (found,) = (word for word in words if word.startswith("--shards="))
        assert Path(found[9:]).is_absolute() and (Path(found[9:]) / "manifest.json").exists()
    monkeypatch.chdir(elsewhere)
    run_command(command)
    assert "resuming from" in capfd.readouterr().out and newest(run)["step"] == 6
    assert not list(elsewhere.iterdir())
    report = next_command(run, capfd)
    assert split_command(report)[:5] == ["python", "-m", "probe", "report", str(run)]
    assert len(list_checkpoints(project / "runs" / "lr=0.1")) == 1  # the original is unchanged


def test_status_commands_resume_each_run_of_a_moved_sweep(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(project / "runs" / "lr=0.1", tmp_path / "sweep" / name)
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    status(Path("sweep"))
    lines = [line for line in capfd.readouterr().out.splitlines() if "next: " in line]
    assert [f"--out={tmp_path / 'sweep' / name} " in line for name, line in zip("ab", lines, strict=True)] == [True] * 2


def test_moved_run_finds_shards_that_were_not_moved(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "deeper" / "run"
    shutil.copytree(project / "runs" / "lr=0.1", run)
    assert f" --shards={project / 'shards'} --out={run} " in next_command(run, capfd)


def test_missing_shards_are_reported_and_the_command_writes_nothing(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "moved" / "run"
    shutil.copytree(project / "runs" / "lr=0.1", run)
    card = json.loads((run / CARD).read_text())
    card["settings"]["shards"] = "/local/of-a-node"
    (run / CARD).write_text(json.dumps(card))
    command = next_command(run, capfd)
    assert "# its shards are not on this machine" in command
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError, match="/local/of-a-node"):
        run_command(command)
    assert sorted(run.rglob("*")) == before


def test_run_without_its_checkpoints_warns_before_starting_from_scratch(
    project: Path, shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(project / "runs" / "lr=0.1", run, ignore=shutil.ignore_patterns("*.pt"))
    before = (run / METRICS).read_bytes()
    command = next_command(run, capfd)
    assert f"# starts from scratch: there is no checkpoint in {run / 'checkpoints'}" in command
    for number in (1, 2):
        train_here(shards, run, limit_steps=2, epochs=1, log_every=1)
        said = capfd.readouterr().out
        assert f"warning: {run} contains no checkpoint, though its journal goes up to step 2: training " in said
        assert f"FROM SCRATCH, and that journal is kept as metrics-before-{number}.jsonl" in said
        assert [line["step"] for line in read_journal(run)] == [1, 2]
        list_checkpoints(run)[0].unlink()
    assert (run / "metrics-before-1.jsonl").read_bytes() == before


def test_status_command_resumes_a_run_started_with_resume_never(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(project / "runs" / "lr=0.1", run)
    card = json.loads((run / CARD).read_text())
    for resume in ("never", "/not/there/any/more"):
        card["settings"]["resume"] = resume
        (run / CARD).write_text(json.dumps(card))
        assert "--resume" not in next_command(run, capfd)


def test_age_is_not_negative_if_a_clock_was_ahead(project: Path, tmp_path: Path, capfd: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(project / "runs" / "lr=0.1", run)
    lines = [json.loads(line) for line in (run / "speed.jsonl").read_text().splitlines()][:-1]
    for line in lines:
        line["time"] += 3600
    (run / "speed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    capfd.readouterr()
    status(run)
    said = capfd.readouterr().out
    assert "last line 00:00 ago" in said and "\nnot running; next: " in said


def test_moved_parts_of_a_report_find_their_runs(project: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(project, there)
    for name in ("draws.csv", "w.pth"):
        (there / name).touch()
    given = {"encoders": ("/old/project/runs/lr=0.1", "B=/old/project/runs/lr=0.1", "A=/old/project/w.pth::k"),
             "shots": ("1",), "shards": Path("/old/project/shards"), "out": Path("/old/project/report"),
             "draws_file": Path("/old/project/draws.csv")}  # fmt: skip
    moved = relocate(Settings(**given), there / "report")
    run = there / "runs" / "lr=0.1"
    encoders = (str(run), f"B={run}", f"A={there}/w.pth::k")
    assert moved == Settings(**{**given, "encoders": encoders, "shards": there / "shards", "out": there / "report",
                                "draws_file": there / "draws.csv"})  # fmt: skip
    assert moved.decisive() == Settings(**given).decisive()  # the parts belong to the same report


def test_paths_resolve_to_the_old_place_or_relative_to_the_moved_folder(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("old/shards", "new/shards", "new/runs/a", "here/shards"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "f").touch()
    monkeypatch.chdir(tmp_path / "here")
    new, gone = tmp_path / "new" / "runs" / "a", str(tmp_path / "gone" / "shards")
    old = tmp_path / "old" / "shards"
    assert resolve_moved_path(str(old), str(tmp_path / "old/runs/a"), new) == old
    assert resolve_moved_path(gone, str(tmp_path / "gone/runs/a"), new, "f") == tmp_path / "new/shards"
    assert resolve_moved_path(gone, str(tmp_path / "gone/deeper/runs/a"), new, "f") is None
    assert resolve_moved_path("shards", "runs/a", new, "f") == tmp_path / "new/shards"
    assert resolve_moved_path("shards", "/runs/a", new, "f") == tmp_path / "here/shards"
    assert resolve_moved_path("shards", "runs/a", new, "other") is None
