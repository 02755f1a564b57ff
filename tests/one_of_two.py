"""One of the two ranks of test_two_ranks.py, in a separate process: python -m tests.one_of_two MODE OUT."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from timm.layers import convert_sync_batchnorm as convert_to_torchs
from torch import nn

import train.step
from train.distributed import gradients
from train.distributed.batchnorm import convert_sync_batchnorm
from train.distributed.gradients import average_gradients
from train.distributed.process_group import init_distributed
from train.distributed.ranks import Ranks
from train.large_batch import apply_activation_checkpointing
from train.model import SimCLR
from train.optim import make_optimizer
from train.state import TrainState
from train.step import forward_backward

IMAGES, CHANNELS = 6, 5  # of the joint batch of a BatchNorm
# Name → momentum, affine, and shape of an image's channel.
NORMS: dict[str, tuple[float | None, bool, tuple[int, ...]]] = {
    "default": (0.1, True, (4, 3)), "no momentum": (None, True, (4, 3)), "not affine": (0.3, False, (4, 3)),
    "vectors": (0.1, True, ()), "activation": (0.1, True, (4, 3)),
}  # fmt: skip
STEPS: dict[str, dict[str, Any]] = {"plain": {}, "micro-batches": {"micro_batch": 2}, "recompute": {"recompute": True},
                                    "unused": {}}  # fmt: skip


def norm_of(name: str, dtype: torch.dtype) -> nn.Module:
    """Return a BatchNorm with weights and statistics as of a training."""
    momentum, affine, shape = NORMS[name]
    torch.manual_seed(0)
    layer: Any = BatchNormAct2d if name == "activation" else nn.BatchNorm2d if shape else nn.BatchNorm1d
    norm: nn.Module = layer(CHANNELS, momentum=momentum, affine=affine)
    for values in (*norm.parameters(), *norm.buffers()):
        if values.is_floating_point():
            values.data = torch.rand_like(values) + 0.5
    return norm.to(dtype)


def joint_input(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an input of the joint batch and the gradient of the output, in float64."""
    torch.manual_seed(1)
    x, gradient = torch.randn(2, IMAGES, CHANNELS, *NORMS[name][2], dtype=torch.float64) * 2 + 0.5
    return x, gradient


def normalise_twice(norm: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Take two forward and backward passes; return output, gradients and statistics."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        x.grad = None
        norm.zero_grad()
        y = norm(x)
        y.backward(gradient)
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **{name: parameter.grad for name, parameter in norm.named_parameters()},
            **{name: buffer.clone() for name, buffer in norm.named_buffers()}}  # fmt: skip


def normalise_share(
    norm: nn.Module, name: str, ranks: Ranks, device: str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Normalise this rank's part of the joint input; gradients of weight and bias are summed over the ranks."""
    share = slice(ranks.rank * IMAGES // 2, (ranks.rank + 1) * IMAGES // 2)
    x, gradient = (values[share].to(device, dtype) for values in joint_input(name))
    if x.ndim == 4:
        x, gradient = (values.contiguous(memory_format=torch.channels_last) for values in (x, gradient))
    found = normalise_twice(norm.to(device), x, gradient)
    for parameter, _ in norm.named_parameters():
        dist.all_reduce(found[parameter])
    assert found["y"].dtype == dtype and found["y"].stride() == found["x"].stride() == x.stride()
    return {key: values.cpu() for key, values in found.items()}


def normalise_on_a_cpu(ranks: Ranks, compile_them: bool = False) -> dict[str, Any]:
    """Return the results of the GPU's layer, with the CUDA kernels replaced by slow ones for float64 on a CPU."""
    for slow in (batch_norm_stats, batch_norm_gather_stats_with_counts, batch_norm_elemt, batch_norm_backward_reduce,
                 batch_norm_backward_elemt):  # fmt: skip
        if not compile_them:  # compiled, the layer does not use the kernels
            setattr(torch, slow.__name__, slow)
    results = {}
    for name in NORMS:
        model = nn.Sequential(norm_of(name, torch.float64))
        convert_sync_batchnorm(model, torch.device("cuda"))  # no device is touched
        if compile_them:
            model[0].compile(backend="aot_eager")
        results[name] = normalise_share(model[0], name, ranks, "cpu", torch.float64)
    return results


def normalise_on_a_gpu(ranks: Ranks) -> dict[str, Any]:
    """Return the results of our layer, and of PyTorch's, in several precisions."""
    results = {}
    for name in NORMS:
        for dtype in (torch.float64, torch.float32, torch.float16):
            norm = norm_of(name, torch.promote_types(dtype, torch.float32))
            model = nn.Sequential(copy.deepcopy(norm))
            convert_sync_batchnorm(model, torch.device("cuda"))
            torchs = convert_to_torchs(norm)  # type: ignore[no-untyped-call]
            results[f"{name} {dtype}"] = [normalise_share(layer, name, ranks, "cuda", dtype)
                                          for layer in (model[0], torchs)]  # fmt: skip
    return results


def batch_norm_stats(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    others = (0, *range(2, x.ndim))
    return x.mean(others), 1 / (x.var(others, unbiased=False) + eps).sqrt()


def batch_norm_gather_stats_with_counts(
    x: torch.Tensor, means: torch.Tensor, scales: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor,
    momentum: float, eps: float, counts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    assert means.shape == scales.shape == (len(counts), x.shape[1]) and counts.dtype == running_mean.dtype
    total = counts.sum()
    mean = (counts[:, None] * means).sum(0) / total
    squares = counts[:, None] * (1 / scales**2 - eps + (means - mean) ** 2)
    variance = squares.sum(0) / total
    running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
    running_var.copy_((1 - momentum) * running_var + momentum * variance * total / (total - 1))
    return mean, 1 / (variance + eps).sqrt()


def per_channel(values: torch.Tensor | None, x: torch.Tensor) -> Any:
    return 1 if values is None else values.view(-1, *(1,) * (x.ndim - 2))


def batch_norm_elemt(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, mean: torch.Tensor, scale: torch.Tensor,
    eps: float,
) -> torch.Tensor:  # fmt: skip
    y = (x - per_channel(mean, x)) * per_channel(scale, x) * per_channel(weight, x)
    return y if bias is None else y + per_channel(bias, x)


def batch_norm_backward_reduce(
    gradient: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor | None,
    needs_x: bool, needs_weight: bool, needs_bias: bool,
) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
    others = (0, *range(2, x.ndim))
    total, by_x = gradient.sum(others), (gradient * (x - per_channel(mean, x))).sum(others)
    return (total if needs_x else None, by_x if needs_x else None, by_x * scale if needs_weight else None,
            total.clone() if needs_bias else None)  # fmt: skip


def batch_norm_backward_elemt(
    gradient: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor | None,
    total: torch.Tensor, by_x: torch.Tensor, counts: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    assert counts.dtype == torch.int32  # the kernel reads it as such
    of_mean = per_channel(total / counts.sum(), x)
    of_scale = (x - per_channel(mean, x)) * per_channel(scale**2 * by_x / counts.sum(), x)
    return (gradient - of_mean - of_scale) * per_channel(scale, x) * per_channel(weight, x)


def small_state(device: torch.device, recompute: bool = False) -> TrainState:
    """Return a ResNet-18 with BatchNorm over the ranks and a gradient scaler."""
    torch.manual_seed(0)
    model = SimCLR("resnet18", 32).to(device, memory_format=torch.channels_last)
    if dist.is_initialized():
        convert_sync_batchnorm(model, device)
    if recompute:
        apply_activation_checkpointing(model)
    optimizer = make_optimizer("adam", model, lr=1e-3, weight_decay=0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024)
    return TrainState(model, model, optimizer, scaler, device, 1)


@contextlib.contextmanager
def average_in_one(model: nn.Module) -> Iterator[None]:
    """Average all gradients by one all-reduce after backward: the slow twin of average_gradients."""
    yield
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in found])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(found, flat.split([gradient.numel() for gradient in found]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def gradients_of(state: TrainState, case: str, ranks: Ranks, average: Any) -> dict[str, torch.Tensor | None]:
    """Run forward and backward on this rank's views; gradients are averaged by `average`."""
    train.step.average_gradients = average
    torch.manual_seed(2 + ranks.rank)
    loss, _, _ = forward_backward(state, *torch.randn(2, 4, 1, 32, 32), temperature=0.5, **STEPS[case])
    return {"loss": loss, **{name: parameter.grad for name, parameter in state.model.named_parameters()}}


def compare_gradients(ranks: Ranks) -> dict[str, Any]:
    """Average the gradients of a step in small buckets, and in one all-reduce; return which differ, and the buckets."""
    gradients.BUCKET_BYTES, gradients.FIRST_BUCKET_BYTES = 4 << 20, 1 << 10
    started, all_reduce = list[int](), dist.all_reduce

    def counted(tensor: torch.Tensor, *arguments: Any, async_op: bool = False, **named: Any) -> Any:
        if async_op:
            started.append(tensor.numel())
        return all_reduce(tensor, *arguments, async_op=async_op, **named)

    setattr(dist, "all_reduce", counted)  # noqa: B010
    results: dict[str, Any] = {}
    for case in STEPS:
        started.clear()
        state = small_state(torch.device("cpu"), case == "recompute")
        if case == "unused":
            state.model.projector.register_parameter("unused", nn.Parameter(torch.ones(3)))
        found, expected = (gradients_of(state, case, ranks, average) for average in (average_gradients, average_in_one))
        different = [name for name, value in expected.items()
                     if (found[name] is not value if value is None else not torch.equal(found[name], value))]
        results[case] = {"different": different, "buckets": list(started), "digest": digest_of(found),
                         "without": [name for name, value in found.items() if value is None]}
    return results


def digest_of(tensors: dict[str, torch.Tensor | None]) -> str:
    digest = hashlib.sha256()
    for value in tensors.values():
        digest.update(b"" if value is None else value.contiguous().numpy().data)
    return digest.hexdigest()


def fail_in_backward(ranks: Ranks) -> None:
    """Raise an error on rank 1 while reductions are in progress."""
    train.step.average_gradients = average_gradients
    state = small_state(torch.device("cpu"))

    def fail(gradient: torch.Tensor) -> None:
        raise ValueError("no gradient")

    if ranks.rank == 1:
        state.model.encoder.get_parameter("layer2.0.conv1.weight").register_hook(fail)
    forward_backward(state, *torch.randn(2, 4, 1, 32, 32), temperature=0.5)


def main(mode: str, out: Path) -> None:
    """Run the comparisons of a mode and save their results. In mode cpu, rank 1 fails afterwards."""
    with init_distributed("cpu") as ranks:  # gloo, also for tensors on a GPU
        if mode == "gpu":
            result = normalise_on_a_gpu(ranks)
        elif mode == "compiled":
            result = normalise_on_a_cpu(ranks, compile_them=True)
        else:
            result = {**compare_gradients(ranks), **normalise_on_a_cpu(ranks)}
        torch.save(result, out / f"rank-{ranks.rank}.pt")
        if mode == "cpu":
            fail_in_backward(ranks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
