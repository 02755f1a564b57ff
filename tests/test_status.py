"""The status command reports where a run stands and what to run next, from its files."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from pathlib import Path

import pytest

from shard.errors import InputError
from shard.files import locked
from tests.conftest import DALI, Shards, run_module, train_here
from train.checkpoint import list_checkpoints
from train.journal import CARD, LOCK, SPEED
from train.status import status


def status_of(run: Path, capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    status(run)
    return capfd.readouterr().out


def test_status_of_a_finished_run(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    said = status_of(trained, capfd)
    assert "step 12 of 12, epoch 2.00 of 2" in said and "images/s" in said
    assert "embedding rank" in said and f"last checkpoint: {trained}/checkpoints/step-000000012-" in said
    assert f"done; next: python -m probe report {trained} --shards=" in said
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_steps_lost_by_a_kill_are_not_counted(
    shards: Shards, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here(shards, tmp_path, limit_steps=9)
    with (tmp_path / SPEED).open("a") as file:  # resumed at 9 after a kill at 11
        for kind, step in (("step", 11), ("start", 9), ("step", 10)):
            line = {"kind": kind, "step": step, "epoch": step / 6, "time": time.time(), "images_per_s": 3}
            file.write(json.dumps({**line, "data_wait": 0}) + "\n")
    assert "step 10 of 12, epoch 1.67 of 2" in status_of(tmp_path, capfd)
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    list_checkpoints(run)[0].unlink()  # killed between the last epoch's line and its checkpoint
    said = status_of(run, capfd)
    assert "done; next" not in said and f"last checkpoint: {run}/checkpoints/step-000000006" in said


def test_status_of_a_sweep_reports_each_run(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("seed-0", "seed-1"):
        (tmp_path / name).symlink_to(trained)
    said = status_of(tmp_path, capfd)
    assert [line.split(":")[0] for line in said.splitlines() if "step 12 of 12" in line] == [
        str(tmp_path / name) for name in ("seed-0", "seed-1")]  # fmt: skip
    assert said.count("done; next: ") == 2


@pytest.mark.long
def test_printed_command_resumes_the_run(
    shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here(shards, tmp_path, limit_steps=9, seed=3, views="cpu", accept=("lr",))
    said = status_of(tmp_path, capfd)
    assert "step 9 of 12, epoch 1.50 of 2" in said and "started 1 time;" in said
    command = shlex.split(next(line for line in said.splitlines() if "not running; next: " in line).split("next: ")[1])
    assert command[:3] == ["python", "-m", "train"] and DALI.replace("--nodali", "") in " ".join(command)
    done = run_module("train", *command[3:])
    assert done.returncode == 0 and "resuming from" in done.stdout, done.stderr
    assert "done; next:" in status_of(tmp_path, capfd)


def test_status_of_running_and_killed_runs(
    shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here(shards, tmp_path, limit_steps=9)
    lines = (tmp_path / SPEED).read_text().splitlines()
    (tmp_path / SPEED).write_text("\n".join(lines[:-1]) + "\n")  # without the line of a regular stop
    assert "last written a moment ago, but no process holds its lock" in status_of(tmp_path, capfd)
    with locked(tmp_path, LOCK):
        assert "running; watch it with: tensorboard --logdir=" in status_of(tmp_path, capfd)
    old = [json.dumps({**json.loads(line), "time": time.time() - 3600}) for line in lines[:-1]]
    (tmp_path / SPEED).write_text("\n".join(old) + "\n")
    assert "last line 1:00:00 ago" in (said := status_of(tmp_path, capfd)) and "not running; next:" in said
    assert "its shards are not on this machine" not in said
    card = json.loads((tmp_path / CARD).read_text())
    card["settings"]["shards"] = "/local/of-a-node"
    (tmp_path / CARD).write_text(json.dumps(card))
    assert "its shards are not on this machine" in status_of(tmp_path, capfd)


@pytest.mark.parametrize(("name", "value"), [("preset", "x"), ("epochs", 0), ("size", "64"), ("arch", None)])
def test_malformed_run_json_is_refused(trained: Path, tmp_path: Path, name: str, value: object) -> None:
    card = json.loads((trained / CARD).read_text())
    card["settings"][name] = value
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(InputError, match="not written by a training run"):
        status(tmp_path)


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run\.json; give the folder of a run"):
        status(tmp_path)
    assert not list(tmp_path.iterdir())
