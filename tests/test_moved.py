"""A run that was moved, or is asked about from another folder: what is printed goes on with it, and begins no other."""

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
from train.moved import find_moved
from train.status import status


@pytest.fixture(scope="module")
def begun(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with shards and a run of three steps, trained with paths relative to it."""
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


def words_of(command: str) -> list[str]:
    """A line as a shell takes it, notes behind # left out."""
    return shlex.split(command, comments=True)


def follow(command: str) -> None:
    words = words_of(command)
    assert words[:3] == ["python", "-m", "train"]
    bind("python -m train", COMMANDS, words[3:])()


def to_relative(run: Path) -> None:
    """A card as versions before this one wrote it, from the folder of the project."""
    card = json.loads((run / CARD).read_text())
    card["settings"] |= {"shards": "shards", "out": "runs/lr=0.1"}
    (run / CARD).write_text(json.dumps({**card, "command": "python -m train --out=runs/lr=0.1 --shards=shards"}))


@pytest.mark.parametrize("old_card", [False, True])
def test_status_of_a_moved_project_goes_on_there(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], old_card: bool
) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(begun, there)
    run = (there / "runs" / "lr=0.1").rename(there / "runs" / "renamed")
    if old_card:
        to_relative(run)
    for cwd, asked in ((elsewhere, run), (there, "runs/renamed"), (run, "."), (elsewhere, "../there/runs/renamed")):
        monkeypatch.chdir(cwd)
        words = words_of(command := next_command(asked, capfd))
        (out,) = (word for word in words if word.startswith("--out="))
        assert Path(out[6:]).is_absolute() and Path(out[6:]).samefile(run)
        (found,) = (word for word in words if word.startswith("--shards="))
        assert Path(found[9:]).is_absolute() and (Path(found[9:]) / "manifest.json").exists()
    monkeypatch.chdir(elsewhere)
    follow(command)
    assert "resuming from" in capfd.readouterr().out and newest(run)["step"] == 6
    assert not list(elsewhere.iterdir())
    report = next_command(run, capfd)
    assert words_of(report)[:5] == ["python", "-m", "probe", "report", str(run)]
    assert len(list_checkpoints(begun / "runs" / "lr=0.1")) == 1  # the original was let alone


def test_status_of_a_moved_sweep_goes_on_there_with_each_run(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(begun / "runs" / "lr=0.1", tmp_path / "sweep" / name)
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    status(Path("sweep"))
    lines = [line for line in capfd.readouterr().out.splitlines() if "next: " in line]
    assert [f"--out={tmp_path / 'sweep' / name} " in line for name, line in zip("ab", lines, strict=True)] == [True] * 2


def test_a_run_that_left_its_shards_behind_finds_them_where_they_were(
    begun: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "deeper" / "run"
    shutil.copytree(begun / "runs" / "lr=0.1", run)
    assert f" --shards={begun / 'shards'} --out={run} " in next_command(run, capfd)


def test_where_the_shards_are_not_it_says_so_and_the_command_makes_nothing(
    begun: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "moved" / "run"
    shutil.copytree(begun / "runs" / "lr=0.1", run)
    card = json.loads((run / CARD).read_text())
    card["settings"]["shards"] = "/local/of-a-node"
    (run / CARD).write_text(json.dumps(card))
    command = next_command(run, capfd)
    assert "# its shards are not on this machine" in command
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError, match="/local/of-a-node"):
        follow(command)
    assert sorted(run.rglob("*")) == before


def test_a_run_that_lost_its_checkpoints_does_not_begin_anew_in_silence(
    begun: Path, shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(begun / "runs" / "lr=0.1", run, ignore=shutil.ignore_patterns("*.pt"))
    before = (run / METRICS).read_bytes()
    command = next_command(run, capfd)
    assert f"# begins anew: there is no checkpoint in {run / 'checkpoints'}" in command
    for number in (1, 2):
        train_here(shards, run, limit_steps=2, epochs=1, log_every=1)
        said = capfd.readouterr().out
        assert f"warning: {run} contains no checkpoint, though its journal goes up to step 2: training " in said
        assert f"FROM SCRATCH, and that journal is kept as metrics-before-{number}.jsonl" in said
        assert [line["step"] for line in read_journal(run)] == [1, 2]
        list_checkpoints(run)[0].unlink()
    assert (run / "metrics-before-1.jsonl").read_bytes() == before


def test_a_run_that_was_never_to_resume_goes_on_all_the_same(
    begun: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(begun / "runs" / "lr=0.1", run)
    card = json.loads((run / CARD).read_text())
    for resume in ("never", "/not/there/any/more"):
        card["settings"]["resume"] = resume
        (run / CARD).write_text(json.dumps(card))
        assert "--resume" not in next_command(run, capfd)


def test_a_clock_that_was_ahead_is_no_time_less_than_none(begun: Path, tmp_path: Path, capfd: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(begun / "runs" / "lr=0.1", run)
    lines = [json.loads(line) for line in (run / "speed.jsonl").read_text().splitlines()][:-1]
    for line in lines:
        line["time"] += 3600
    (run / "speed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    capfd.readouterr()
    status(run)
    said = capfd.readouterr().out
    assert "last line 00:00 ago" in said and "\nnot running; next: " in said


def test_parts_of_a_report_that_were_moved_with_their_runs_are_found(begun: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(begun, there)
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
    assert moved.decisive() == Settings(**given).decisive()  # so that the parts are of the same report


def test_things_are_found_where_they_were_else_beside_what_was_moved(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("old/shards", "new/shards", "new/runs/a", "here/shards"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "f").touch()
    monkeypatch.chdir(tmp_path / "here")
    new, gone = tmp_path / "new" / "runs" / "a", str(tmp_path / "gone" / "shards")
    assert find_moved(str(tmp_path / "old/shards"), str(tmp_path / "old/runs/a"), new) == tmp_path / "old/shards"
    assert find_moved(gone, str(tmp_path / "gone/runs/a"), new, "f") == tmp_path / "new/shards"
    assert find_moved(gone, str(tmp_path / "gone/deeper/runs/a"), new, "f") is None
    assert find_moved("shards", "runs/a", new, "f") == tmp_path / "new/shards"
    assert find_moved("shards", "/runs/a", new, "f") == tmp_path / "here/shards"
    assert find_moved("shards", "runs/a", new, "other") is None
