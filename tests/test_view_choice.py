"""--views=auto: both ways are measured with training running, the faster is kept, and nothing else depends on it.

Without a GPU the stock operators run on the CPU, as the other way.
"""

from __future__ import annotations

import copy
import gc
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import dali_inputs, loader
from pipeline.loader import has_dali, view_devices
from shard.errors import InputError, OutOfMemory
from tests.conftest import SETTINGS, SMALL, Shards, equal_states, newest, run_module, same_run, train_here
from tests.test_ranks import start, wait_for_end
from tests.two_ways import BACKENDS, DELAY_S, patches
from train import view_choice
from train.checkpoint import list_checkpoints
from train.config import Config
from train.distributed.ranks import Ranks
from train.journal import METRICS, read_card
from train.reproduce import reproduction_commands
from train.rng import rng_state
from train.setup import Setup, make_loader, set_up
from train.step import forward_backward, train_step
from train.view_choice import choose_faster, describe_rates, measure_rates, parse_record

CPU = torch.device("cpu")
SMALLER = {**SETTINGS, "batch_size": 4, "workers": 1}
needs_dali = pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")


@pytest.fixture
def two_ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let --views=gpu run the stock operators on the CPU. Returns how much longer each batch of a way takes."""
    delays = dict.fromkeys(BACKENDS, 0.0)
    for owner, name, value in patches(delays):
        monkeypatch.setattr(owner, name, value)
    return delays


def measure(setup: Setup, **settings: Any) -> dict[Any, float | None]:
    """Measure both ways with the step of a run."""
    config, manifest, augmentation, _, state = setup
    ways: Any = {way: partial(make_loader, config, manifest, augmentation, CPU, Ranks(), way) for way in BACKENDS}
    step = partial(forward_backward, state, temperature=0.5, **settings)
    return measure_rates(ways, step, state, Ranks(), images_per_step=config.batch_size)


def count_pipelines() -> int:
    """Count DALI's pipelines that have not been destroyed."""
    return sum(type(thing).__name__ == "Pipeline" for thing in gc.get_objects())


@needs_dali
@pytest.mark.parametrize(("slow", "settings"), [("gpu", {}), ("cpu", {"micro_batch": 2, "recompute": True})])
def test_measurement_finds_the_faster_way_and_changes_nothing(
    shards: Shards, tmp_path: Path, two_ways: dict[str, float], slow: str, settings: dict[str, Any]
) -> None:
    config = Config(shards=shards.folder, out=tmp_path, **{**SMALLER, **settings})
    setup = set_up(config)
    batches, state = setup.loader, setup.state
    train_step(state, *next(iter(batches)), lr=1e-3, temperature=0.5, **settings)  # so that the optimizer has a state
    state.optimizer.zero_grad()
    two_ways[slow] = DELAY_S
    before, pipelines = copy.deepcopy([state.state_dict(), rng_state(CPU), batches.state_dict()]), count_pipelines()
    rates = measure(setup, **settings)
    assert equal_states(before, [state.state_dict(), rng_state(CPU), batches.state_dict()])
    assert all(parameter.grad is None for parameter in state.model.parameters())
    assert count_pipelines() == pipelines > 0  # the run's own
    record = choose_faster(rates)
    assert record["chosen"] == ("cpu" if slow == "gpu" else "gpu")
    assert {way: rate == pytest.approx(20 if way == slow else 40) for way, rate in rates.items()} == {
        "gpu": True, "cpu": True}  # fmt: skip


@pytest.mark.long
@needs_dali
def test_dropout_draws_as_if_nothing_was_measured(
    shards: Shards, tmp_path: Path, two_ways: dict[str, float]
) -> None:
    """A model that draws random numbers and keeps other buffers than BatchNorm's."""
    config = Config(shards=shards.folder, out=tmp_path, **SMALLER)
    results = []
    for measured in (False, True):
        setup = set_up(config)
        batches, state = setup.loader, setup.state
        model = torch.nn.Sequential(state.model, torch.nn.Dropout(0.5), Counter())
        state.model = state.forward = model  # type: ignore[assignment]
        if measured:
            measure(setup)
        train_step(state, *next(iter(batches)), lr=1e-3, temperature=0.5)
        results.append(state.state_dict())
    assert equal_states(*results) and results[0]["model"]["2.calls"] == 1


class Counter(torch.nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


@needs_dali
@pytest.mark.parametrize("at_step", [False, True])
def test_out_of_memory_on_the_gpu_takes_the_cpu(
    shards: Shards, tmp_path: Path, two_ways: dict[str, float], monkeypatch: pytest.MonkeyPatch, at_step: bool
) -> None:
    """While the pipelines start, or in a step beside them."""
    config = Config(shards=shards.folder, out=tmp_path, **SMALLER)
    setup, real = set_up(config), loader.make_views

    def exhausted(backend: Any, *arguments: Any, **settings: Any) -> Iterator[Any]:
        for number, views in enumerate(real(backend, *arguments, **settings)):
            if backend == "dali-stock" and number == (4 if at_step else 1):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory") if at_step else OutOfMemory("x")
            yield views

    monkeypatch.setattr(loader, "make_views", exhausted)
    rates = measure(setup)
    assert rates["gpu"] is None and rates["cpu"]
    record = choose_faster(rates)
    assert record["chosen"] == "cpu" and parse_record(record) == record
    assert describe_rates(record).startswith("out of memory with views made on the GPU, ")
    assert choose_faster({"gpu": None, "cpu": None})["chosen"] == "cpu"


@needs_dali
def test_measurement_begins_after_all_pipelines_have_started() -> None:
    from pipeline.dali import CPU_PIPELINES

    assert view_choice.PIPELINES == CPU_PIPELINES


def test_dali_reports_out_of_memory_by_its_type() -> None:
    error = RuntimeError("Can't allocate 202375168 bytes on device 0.")
    assert isinstance(dali_inputs.out_of_memory(error), OutOfMemory)


@pytest.mark.long
@needs_dali
def test_run_that_measures_equals_one_that_was_told(
    shards: Shards, tmp_path: Path, two_ways: dict[str, float], capfd: pytest.CaptureFixture[str]
) -> None:
    """The same weights and journal to the byte; a run resumed with --views=auto, or without it, does not measure."""
    two_ways["gpu"] = DELAY_S
    train_here(shards, tmp_path / "auto", views="auto", limit_steps=2, epochs=1)
    output = capfd.readouterr().out
    assert "views are made on the CPU: measured: " in output and output.count("images/s with views made on") == 2
    record = read_card(tmp_path / "auto")["views"]
    assert record == newest(tmp_path / "auto")["views"] and record["chosen"] == "cpu"
    assert record["images_per_s"] == {"gpu": 80.0, "cpu": 160.0}
    two_ways |= {"gpu": 0.0, "cpu": DELAY_S}  # measured now, the other way would win
    for settings in ({"views": "auto", "limit_steps": 3}, {}):
        train_here(shards, tmp_path / "auto", epochs=1, **settings)
        output = capfd.readouterr().out
        assert "views are made on the CPU: as in the checkpoint, measured: " in output and "measuring" not in output
        assert read_card(tmp_path / "auto")["views"] == newest(tmp_path / "auto")["views"] == record
    train_here(shards, tmp_path / "told", views="cpu", epochs=1)
    assert same_run(tmp_path / "auto", tmp_path / "told")
    assert newest(tmp_path / "told")["views"] == read_card(tmp_path / "told")["views"] == {}
    state = newest(tmp_path / "auto")
    state["config"]["device"] = "cuda"  # where auto may choose otherwise, and the default is the GPU
    (command,) = reproduction_commands(state, tmp_path / "again", shards.folder)
    assert "--views=cpu" in command


@pytest.mark.long
@needs_dali
def test_another_way_than_the_recorded_one_is_refused_and_can_be_accepted(
    shards: Shards, tmp_path: Path, two_ways: dict[str, float], capfd: pytest.CaptureFixture[str]
) -> None:
    two_ways["gpu"] = DELAY_S
    train_here(shards, tmp_path, views="auto", limit_steps=1)
    with pytest.raises(InputError, match="saved under other settings, code or data: backend, views; "):
        train_here(shards, tmp_path, views="gpu", limit_steps=2)
    assert ["views", "cpu", "gpu"] in [line.split() for line in capfd.readouterr().err.splitlines()]
    train_here(shards, tmp_path, views="gpu", limit_steps=2, accept=("backend", "views"))
    assert newest(tmp_path)["views"] == {} and newest(tmp_path)["fingerprint"]["views"] == "gpu"
    state = newest(tmp_path)
    state["config"]["device"] = "cuda"
    first, second = reproduction_commands(state, tmp_path / "again", shards.folder)
    assert "--views=cpu" in first and "--views=gpu" in second  # and not auto, which may choose otherwise


def test_auto_on_a_cpu_measures_nothing(
    shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert view_devices("torchvision", torch.device("cuda")) == view_devices("dali", CPU) == ("cpu",)
    monkeypatch.setattr(view_choice, "measure_rates", lambda *_, **__: pytest.fail("measured"))
    for name, settings in (("auto", {"views": "auto"}), ("default", {})):
        train_here(shards, tmp_path / name, limit_steps=3, **settings)
        assert "views are made on the CPU: training runs on the CPU" in capfd.readouterr().out
    assert (tmp_path / "auto" / METRICS).read_bytes() == (tmp_path / "default" / METRICS).read_bytes()
    assert equal_states(newest(tmp_path / "auto")["model"], newest(tmp_path / "default")["model"])


@needs_dali
@pytest.mark.long
def test_killed_run_keeps_its_choice(shards: Shards, tmp_path: Path) -> None:
    """Real processes: the choice is on disk before the first step, and the resumed one does not measure again."""
    flags = [f"--shards={shards.folder}", f"--out={tmp_path}", "--dali", "--views=auto", *SMALL,
             "--checkpoint-minutes=0.0001", "--epochs=1"]  # fmt: skip
    (process,) = start([["tests.two_ways", "gpu", *flags]])
    while process.poll() is None and not list_checkpoints(tmp_path):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert "views are made on the CPU: measured: " in output
    done = run_module("tests.two_ways", "cpu", *flags)
    assert done.returncode == 0, done.stderr
    assert "views are made on the CPU: as in the checkpoint, measured: " in done.stdout
    assert newest(tmp_path)["views"] == read_card(tmp_path)["views"]


@needs_dali
@pytest.mark.long
def test_all_ranks_choose_as_the_first(shards: Shards, tmp_path: Path) -> None:
    """Rank 1 would choose the other way; then check_ranks would end the run."""
    flags = [f"--shards={shards.folder}", f"--out={tmp_path}", "--dali", "--views=auto", *SMALL, "--limit-steps=2"]
    ended = wait_for_end(start([["tests.two_ways", "gpu", *flags]] * 2))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "views are made on the CPU: measured: " in ended[0][1] and newest(tmp_path)["fingerprint"]["ranks"] == 2


@pytest.mark.parametrize("content", [3, [3], {"chosen": "gpu"}, {"chosen": "gpu", "images_per_s": {"gpu": 1.0}},
                                     {"chosen": "x", "images_per_s": {"gpu": 1.0, "cpu": 2.0}},
                                     {"chosen": "gpu", "images_per_s": {"gpu": "1", "cpu": 2.0}}])  # fmt: skip
def test_malformed_records_are_refused(content: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse_record(content)


@needs_dali
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_auto_on_a_gpu_prints_its_choice_and_a_resumed_run_keeps_it(
    shards: Shards, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_choice, "SECONDS", 1.0)
    settings = {"views": "auto", "device": "cuda", "precision": "fp16"}
    train_here(shards, tmp_path, limit_steps=3, **settings)
    record = read_card(tmp_path)["views"]
    where = f"views are made on the {record['chosen'].upper()}: "
    assert f"{where}measured: {describe_rates(record)}" in capfd.readouterr().out
    assert None not in record["images_per_s"].values()
    train_here(shards, tmp_path, limit_steps=5, **settings)
    output = capfd.readouterr().out
    assert f"{where}as in the checkpoint, measured: {describe_rates(record)}" in output and "measuring" not in output
    assert newest(tmp_path)["views"] == record
    gc.collect()
    torch.cuda.empty_cache()  # for the following tests
