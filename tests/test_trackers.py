"""--log: TensorBoard, CSV, MLflow and wandb show a run, resumed ones as one, and an outage does not stop training."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shard.errors import InputError
from tests.conftest import ROOT, Shards, train_here
from train.config import Config
from train.journal import METRICS, Journal
from train.recipe import train_command
from train.trackers import background
from train.trackers.background import Background
from train.trackers.mlflow_run import MLflowRun
from train.trackers.open import check_trackers

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow-skinny is not installed")
needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")


class Server:
    """A run on a server that fails while `down`; remembers what it got."""

    def __init__(self, *, down: bool = False, new: bool = True) -> None:
        self.down, self.new = down, new
        self.got: list[tuple[int, dict[str, float]]] = []
        self.status = ""

    def _answer(self) -> None:
        if self.down:
            raise ConnectionError("no route to https://user:secret@host")

    def open(self) -> bool:
        self._answer()
        return self.new

    def send(self, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        self._answer()
        self.got += [(step, dict(scalars)) for step, scalars in lines]

    def close(self, status: str) -> None:
        self._answer()
        self.status = status


def tidy(run: Path) -> list[tuple[int, str, float]]:
    """Return metrics.jsonl as (step, tag, value)."""
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [(line["step"], f"{line['kind']}/{name}", value) for line in lines for name, value in line.items()
            if name not in ("kind", "step")]  # fmt: skip


def closed_address() -> str:
    """Return the address of a server that is down."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def check_stored(store: Path, run: Path, *tags: str) -> None:
    """Check that MLflow's folder has one run, finished, with the settings and the values of metrics.jsonl."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store.as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("cxr-simclr").experiment_id])
    assert found.info.run_name == run.name and found.info.status == "FINISHED"
    assert float(found.data.params["temperature"]) == 0.5
    for tag in tags:
        values = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, tag)}
        assert values == {step: value for step, name, value in tidy(run) if name == tag} and values


def records_of(data: bytes) -> list[bytes]:
    """Return the records of a .wandb file: 7 bytes of header, then LevelDB's log format in blocks of 32 KiB."""
    records, position, parts = list[bytes](), 7, list[bytes]()
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # full, or the last part
            records.append(b"".join(parts))
            parts = []
    return records


def test_csv_has_the_lines_of_the_journal_after_a_resume(shards: Shards, tmp_path: Path) -> None:
    train_here(shards, tmp_path, limit_steps=3, log=("csv",))
    train_here(shards, tmp_path, log=("csv",))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [(int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(file)]
    assert len(rows) > 20 and rows == tidy(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_csv_that_is_added_later_has_the_earlier_lines_too(shards: Shards, tmp_path: Path) -> None:
    train_here(shards, tmp_path, limit_steps=3)
    train_here(shards, tmp_path, log=("csv", "tensorboard"))
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + len(tidy(tmp_path))


def test_scalars_arrive_in_order_and_training_never_waits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = Server(down=True)
    tracker = Background("mlflow", server, [(1, {"step/loss": 5.0})], tmp_path / "sent")
    start = time.perf_counter()
    for step in range(2, 200):
        tracker.write(step, {"step/loss": 1 / step})
    assert time.perf_counter() - start < background.FIRST_WAIT_S  # no call waited for an attempt
    server.down = False
    tracker.close("finished")
    assert [step for step, _ in server.got] == list(range(1, 200)) and server.status == "finished"
    error = capfd.readouterr().err
    assert error.count("warning: --log=mlflow: ConnectionError: no route to https://") == 1 and "secret" not in error


def test_lines_of_an_outage_are_sent_by_the_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first process sends two lines, the second none, the third what is missing."""
    monkeypatch.setattr(background, "STOP_TIMEOUT_S", 1.0)
    lines = [(step, {"step/loss": 1 / step}) for step in range(1, 6)]
    got = list[tuple[int, dict[str, float]]]()
    for first, last in ((0, 2), (2, 4), (4, 5)):
        server = Server(down=first == 2, new=first == 0)
        tracker = Background("wandb", server, lines[:first], tmp_path / "sent")
        for line in lines[first:last]:
            tracker.write(*line)
            tracker.write(line[0], {"speed/images_per_s": 100.0})
        tracker.close("stopped")
        got += server.got
    assert [line for line in got if "step/loss" in line[1]] == lines
    error = capfd.readouterr().err
    assert error.count("warning: --log=wandb: 2 lines of metrics.jsonl could not be sent; run the same") == 1


def test_rates_do_not_count_as_lines_of_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line and a rate are sent, then the server fails: the next line is missing there."""
    monkeypatch.setattr(background, "STOP_TIMEOUT_S", 0.5)
    server = Server()
    tracker = Background("wandb", server, [], tmp_path / "sent")
    tracker.write(1, {"step/loss": 1.0})
    tracker.write(1, {"speed/images_per_s": 100.0})
    for _ in range(100):
        if len(server.got) == 2:
            break
        time.sleep(0.05)
    server.down = True
    tracker.write(2, {"step/loss": 0.5})
    tracker.close("stopped")
    assert json.loads((tmp_path / "sent").read_text()) == {"lines": 1, "status": ""}


def test_killed_process_has_kept_how_much_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "KEEP_EVERY_S", 0.0)
    server = Server()
    tracker = Background("mlflow", server, [(step, {"step/loss": 1.0}) for step in range(120)], tmp_path / "sent")
    tracker.write(120, {"step/loss": 1.0})
    for _ in range(100):
        if len(server.got) == 121:
            break
        time.sleep(0.05)
    time.sleep(0.1)
    assert json.loads((tmp_path / "sent").read_text())["lines"] == 121  # without a close


@needs_mlflow
def test_requests_that_fail_make_no_second_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server creates the run, and fails at the next request."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    failures = [RuntimeError("the server is restarted")] * 2
    log_batch = MlflowClient.log_batch

    def fails(self: MlflowClient, *args: Any, **others: Any) -> None:
        if failures:
            raise failures.pop()
        log_batch(self, *args, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", fails)
    (tmp_path / "a").mkdir()
    run = MLflowRun(tmp_path / "a", tmp_path / "id", {"lr": 0.1}, new=False)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            run.open()
    assert run.open()
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("cxr-simclr").experiment_id])
    assert found.data.params == {"lr": "0.1"}
    client.delete_run(found.info.run_id)  # on the server: another run takes its place
    assert MLflowRun(tmp_path / "a", tmp_path / "id", {"lr": 0.1}, new=False).open()


@needs_mlflow
def test_finished_run_sends_the_rest_when_it_is_run_again(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server is down until the run is finished."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_address())
    monkeypatch.setattr(background, "FINISH_TIMEOUT_S", 0.5)
    run = tmp_path / "a"
    train_here(shards, run, epochs=1, log=("mlflow",))
    monkeypatch.setattr(background, "FINISH_TIMEOUT_S", 60.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    train_here(shards, run, epochs=1, log=("mlflow",))
    assert "nothing to do" in capfd.readouterr().out
    check_stored(tmp_path / "store", run, "step/loss")


@needs_mlflow
def test_mlflow_shows_a_resumed_run_as_one(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of MLflow's, read back by its client."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = tmp_path / "a"
    train_here(shards, run, limit_steps=3, log=("mlflow",))
    train_here(shards, run, log=("mlflow",))
    check_stored(tmp_path / "mlruns", run, "step/loss", "epoch/loss", "step/lr")
    stored = "".join(path.read_text() for path in (tmp_path / "mlruns").rglob("*") if path.is_file())
    assert str(shards.folder) not in stored and socket.gethostname() not in stored


@needs_mlflow
def test_mlflow_server_that_is_down_does_not_stop_training(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_address())
    monkeypatch.setattr(background, "FINISH_TIMEOUT_S", 1.0)
    train_here(shards, tmp_path, log=("mlflow", "csv"))
    error = capfd.readouterr().err
    assert "lines of metrics.jsonl could not be sent" in error and "Traceback" not in error
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + len(tidy(tmp_path))


@pytest.mark.long
@needs_wandb
def test_wandb_offline_has_every_step_and_nothing_of_the_machine(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real files of WANDB_MODE=offline, in a process of its own as wandb starts one."""
    from wandb.proto import wandb_internal_pb2

    run = tmp_path / "a"
    for limit in (3, 0):
        command = train_command(Config(shards=shards.folder, out=run, arch="timm/test_resnet", size=32, epochs=2,
                                       batch_size=16, limit_steps=limit, device="cpu", log_every=1, online_every=0,
                                       log=("wandb",)).plain()) + f" --limit-steps={limit}"  # fmt: skip
        subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT, check=True,
                       env={**os.environ, "WANDB_MODE": "offline"})  # fmt: skip
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    ids, losses = set(), {}
    for file in files:
        ids.add(file.stem.removeprefix("run-"))
        for data in records_of(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json)
                      for item in record.history.item}  # fmt: skip
            if "step/loss" in values:
                losses[values["step"]] = values["step/loss"]
    assert len(files) == 2 and len(ids) == 1  # wandb sync puts both into one run
    assert losses == {step: value for step, name, value in tidy(run) if name == "step/loss"} and losses
    sent = b"".join(file.read_bytes() for file in files)
    for private in (str(shards.folder), socket.gethostname(), str(ROOT), str(tmp_path), "patient0"):
        assert private.encode() not in sent, private


@needs_wandb
def test_wandb_without_a_key_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(InputError, match="--log=wandb: no API key; run wandb login, set WANDB_API_KEY, or keep"):
        check_trackers(["wandb"])


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (None, ModuleSpec("mlflow", None)):  # not there, or only a folder of that name
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(InputError, match=r"--log=mlflow: the package is missing; pip install '\.\[mlflow\]'"):
            check_trackers(["tensorboard", "mlflow"])


def test_private_settings_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server gets names no path."""
    from train.trackers import open as opening

    given: list[Mapping[str, object]] = []

    class Remembers(Server):
        def __init__(self, run: Path, id_file: Path, settings: Mapping[str, object], *, new: bool) -> None:
            super().__init__()
            given.append(settings)

    monkeypatch.setattr(opening, "WandbRun", Remembers)
    settings = Config(shards=tmp_path / "MRN-4711", out=tmp_path / "run", init=str(tmp_path / "weights.pth")).plain()
    opening.open_trackers(["wandb"], tmp_path, 0, [], settings, new=True)
    assert given[0]["temperature"] == 0.5 and str(tmp_path) not in json.dumps(given[0])


def test_journal_closes_its_trackers(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, 0, ("csv",))
    journal.write("step", step=1, epoch=0.5, loss=np.float64(2.0).item())
    journal.close("finished")
    assert (tmp_path / "metrics.csv").read_text() == "step,metric,value\n1,step/epoch,0.5\n1,step/loss,2.0\n"
