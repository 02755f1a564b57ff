"""BatchNorm over ranks by the GPU's kernels, and gradients averaged while backward runs, each against a slow twin."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.one_of_two import NORMS, STEPS, joint_input, norm_of, normalise_twice, small_state
from tests.test_ranks import start, wait_for_end
from train.config import Precision
from train.distributed import gradients
from train.distributed.gradients import average_gradients
from train.step import train_step

PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
Ended = list[tuple[int, str, str]]


def run_two(mode: str, out: Path, status: int = 0) -> tuple[list[Any], Ended]:
    ended = wait_for_end(start([["tests.one_of_two", mode, str(out)]] * 2))
    assert [each for each, _, _ in ended] == [status] * 2, ended
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)], ended


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Ended]:
    """The results of two ranks on a CPU, and how they ended: in the end rank 1 fails during backward."""
    return run_two("cpu", tmp_path_factory.mktemp("two"), 1)


@pytest.fixture
def two(both: tuple[list[Any], Ended]) -> list[Any]:
    return both[0]


@pytest.mark.parametrize("name", NORMS)
def test_batchnorm_of_the_gpu_equals_one_process_on_the_joint_batch(two: list[Any], name: str) -> None:
    """The CUDA kernels are replaced by slow ones; test_batchnorm_on_a_gpu_equals_pytorchs has the real ones."""
    assert_equal_to_one_process([rank[name] for rank in two], name, 1e-12)


@pytest.mark.long
def test_compiled_batchnorm_of_the_gpu_equals_one_process_on_the_joint_batch(tmp_path: Path) -> None:
    ranks, _ = run_two("compiled", tmp_path)
    for name in NORMS:
        assert_equal_to_one_process([rank[name] for rank in ranks], name, 1e-12)


def assert_equal_to_one_process(ranks: list[dict[str, torch.Tensor]], name: str, tolerance: float) -> None:
    expected = normalise_twice(norm_of(name, torch.float64), *joint_input(name))
    joint = {**ranks[0], **{key: torch.cat([rank[key] for rank in ranks]) for key in ("y", "x")}}
    assert joint.keys() == expected.keys()
    assert_close(joint, expected, tolerance)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(ranks[0][key], ranks[1][key])


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    for key, value in expected.items():
        assert (found[key].double() - value).abs().max() <= tolerance * value.abs().max(), key


@pytest.mark.gpu
@NEEDS_GPU
def test_batchnorm_on_a_gpu_equals_pytorchs(tmp_path: Path) -> None:
    """Two ranks share the GPU, over gloo."""
    ranks, _ = run_two("gpu", tmp_path)
    for name in NORMS:
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 1e-3)):
            for ours, torchs in (rank[f"{name} {dtype}"] for rank in ranks):
                assert_close(ours, torchs, tolerance)
            # The expected values are of inputs in float64, and these were rounded.
            assert_equal_to_one_process([rank[f"{name} {dtype}"][0] for rank in ranks], name,
                                        {torch.float16: 1e-2, torch.float32: 1e-5}.get(dtype, tolerance))  # fmt: skip


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("settings", [{}, {"clip": 1.0}, {"micro_batch": 4}, {"recompute": True}])
def test_step_of_a_rank_on_a_gpu_does_not_wait_for_it(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of a rank by NCCL, alone, so that its gradients are those of a run without ranks.

    Gradients are compared in fp32: in fp16 they differ by a tenth of their norm, since those of similar embeddings
    cancel.
    """
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 4 << 20)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device = torch.device("cuda", torch.cuda.current_device())
    views = torch.randn(2, 16, 1, 32, 32, device=device)

    def take_step(precision: Precision, debug_mode: str = "default") -> torch.Tensor:
        state = small_state(device, settings.get("recompute", False))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(debug_mode)
        try:
            loss, _, _ = train_step(state, *views, lr=1e-3, temperature=0.5, precision=precision, **settings)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert loss.isfinite()
        return all_gradients(state.model)

    expected = take_step("fp32")
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    try:
        found = take_step("fp32")  # NCCL connects
        for precision in PRECISIONS:
            take_step(precision)
            take_step(precision, "error")
    finally:
        dist.destroy_process_group()
    assert (found - expected).norm() <= 1e-3 * expected.norm()


def all_gradients(model: nn.Module) -> torch.Tensor:
    gradients_of_parameters = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients_of_parameters) == len(list(model.parameters()))
    return torch.cat([gradient.reshape(-1) for gradient in gradients_of_parameters])


@pytest.mark.parametrize("case", STEPS)
def test_gradients_in_buckets_equal_one_all_reduce_to_the_bit(two: list[Any], case: str) -> None:
    for rank in two:
        assert rank[case]["different"] == [] and len(rank[case]["buckets"]) >= 5
        assert rank[case]["without"] == (["projector.unused"] if case == "unused" else [])
        assert rank[case] == two[0][case]  # also the gradients, by their digest


class Recorded:
    """Stands in for torch.distributed with one rank: records reductions and backward's progress in `events`."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def all_reduce(self, flat: torch.Tensor, async_op: bool = False) -> Recorded:
        if async_op:
            self.events.append(f"start {flat.numel()}")
        return self

    def wait(self) -> None:
        self.events.append("wait")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    record = Recorded()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "all_reduce", record.all_reduce)
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 1)
    monkeypatch.setattr(gradients, "FIRST_BUCKET_BYTES", 1)  # a bucket per parameter
    yield record


class Chain(nn.Module):
    """Linear layers without bias, of 2·2, 2·3, 3·4 and 4·1 weights in this order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (2, 2, 3, 4, 1)
        self.layers = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.sum()


def test_reductions_start_while_backward_runs(recorded: Recorded) -> None:
    model = Chain()
    model.layers[0].weight.register_hook(lambda gradient: recorded.events.append("backward reaches the first layer"))
    x = torch.ones(3, 2)
    model(x).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    assert recorded.events == ["backward reaches the first layer"]  # no reduction outside average_gradients
    recorded.events.clear()
    model.zero_grad()
    loss = model(x)
    with average_gradients(model):
        loss.backward()
    assert recorded.events == ["start 4", "start 12", "start 6", "backward reaches the first layer", "start 4",
                               *["wait"] * 4]  # fmt: skip
    for parameter, value in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None and value is not None and torch.equal(parameter.grad, value)


def test_reductions_keep_their_order_if_backward_has_another(recorded: Recorded) -> None:
    """The parameters are registered in the order of backward, so that the first gradient is the last bucket's."""
    model = Chain()
    model.layers = nn.ModuleList([*model.layers][::-1])
    model.layers[0].weight.requires_grad_(False)  # of 4·1, in no bucket
    loss = torch.ones(3, 2)
    for layer in [*model.layers][::-1]:
        loss = layer(loss)
    with average_gradients(model):
        loss.sum().backward()
    assert recorded.events == ["start 4", "start 6", "start 12", *["wait"] * 3]
    assert model.layers[0].weight.grad is None


def test_gradients_are_in_memory_once(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 1 << 20)
    state = small_state(torch.device("cpu"))
    sizes = {parameter.numel() for parameter in state.model.parameters()}
    for _ in range(2):
        loss = state.model(torch.randn(4, 1, 32, 32)).sum()
        with average_gradients(state.model):
            loss.backward()
    storages = {gradient.untyped_storage().data_ptr(): gradient.untyped_storage().nbytes()
                for gradient in (parameter.grad for parameter in state.model.parameters())}  # fmt: skip
    assert sum(storages.values()) == 4 * sum(parameter.numel() for parameter in state.model.parameters())
    assert len(storages) < len(sizes)
    for parameter in state.model.parameters():
        assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()


def test_error_in_backward_ends_the_reductions(recorded: Recorded) -> None:
    model = Chain()

    def fail(gradient: torch.Tensor) -> None:
        raise ValueError("no gradient")

    hook = model.layers[1].weight.register_hook(fail)
    with pytest.raises(ValueError, match="no gradient"), average_gradients(model):
        model(torch.ones(3, 2)).backward()
    assert recorded.events == ["start 4", "start 12"]
    hook.remove()
    model.zero_grad()
    model(torch.ones(3, 2)).backward()
    assert len(recorded.events) == 2  # the hooks are gone


def test_rank_that_fails_in_backward_ends_both(both: tuple[list[Any], Ended]) -> None:
    """It has reductions in progress."""
    (_, _, other), (_, _, failed) = both[1]
    assert "ValueError: no gradient" in failed.splitlines()[-1]
    assert f"ends because rank 1 on {socket.gethostname()} failed: ValueError: no gradient" in other
