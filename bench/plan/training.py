"""Estimate pre-training: measured rates and memory → hours, cores, GPUs, disk and memory."""

from __future__ import annotations

from functools import cache
from math import ceil
from typing import NamedTuple

import torch

from bench.plan.estimate import StepEstimate, count
from bench.plan.request import PlanRequest
from bench.plan.results import BenchResults, LoaderResult, MemoryResult, NotMeasured, StepResult
from train.checkpoint import KEEP
from train.checkpointer import MILESTONE
from train.config import Config
from train.model import SimCLR


class ModelSize(NamedTuple):
    """The bytes of a checkpoint (weights, and two moments of Adam for each) and the width of the features."""

    checkpoint_bytes: int
    feature_width: int


@cache
def model_size(arch: str, size: int) -> ModelSize:
    """Compute the size of a model without allocating its weights."""
    with torch.device("meta"):
        model = SimCLR(arch, size)
    first, *_ = model.projector.parameters()  # [F, F]
    weights, buffers = (sum(tensor.numel() * tensor.element_size() for tensor in tensors)
                        for tensors in (model.parameters(), model.buffers()))  # fmt: skip
    return ModelSize(3 * weights + buffers, first.shape[1])


def estimate_training(
    request: PlanRequest, results: BenchResults, bytes_per_image: float, shards: str = ""
) -> StepEstimate:
    """Estimate pre-training on the requested GPUs. shards: the fingerprint of the shards to train on, if known."""
    nodes = f"{count(request.nodes, 'node')} × {count(request.used_gpus_per_node, 'GPU')}"
    estimate = StepEstimate("pre-train", shape=nodes)
    rate, basis = gpu_rate(request, results.trainer)
    (estimate.missing if rate is None else estimate.assumed).append(basis)
    if rate is not None:
        _estimate_time(estimate, request, rate, bytes_per_image, bound=not shards)
    if isinstance(results.trainer, StepResult) and results.trainer.batch != request.images_per_gpu:
        estimate.assumed.append(f"images/s as measured with {results.trainer.batch} images per step on one GPU, not "
                                f"with the planned {request.images_per_gpu:,}")  # fmt: skip
    if request.batch_size != Config.batch_size:
        estimate.assumed.append(f"this plan can't tell whether batches of {request.batch_size:,} images train as "
                                f"well as the published ones of {Config.batch_size}, or with which --lr")  # fmt: skip
    checkpoint = _estimate_checkpoints(estimate, request)
    _estimate_loading(estimate, request, results.loader, rate, shards, checkpoint)
    _check_gpu_memory(estimate, request, results.memory)
    return estimate


def gpu_rate(request: PlanRequest, trainer: StepResult | NotMeasured) -> tuple[float | None, str]:
    """Return the images/s of training on one GPU and a description of its basis; None if neither given nor measured."""
    cure = "on a machine with the GPU, or give --gpu-rate=IMAGES_PER_S"
    if request.gpu_rate is not None:
        return request.gpu_rate, f"{request.gpu_rate:,.1f} images/s per GPU: given by --gpu-rate, not measured"
    if isinstance(trainer, NotMeasured):
        return None, f"GPU-hours: {trainer} {cure}"
    if not trainer.machine.gpu:
        return None, ("GPU-hours: not measured (bench-step.json comes from a CPU); "
                      f"run: python -m bench.step SHARDS --rows=ours {cure}")  # fmt: skip
    return trainer.images_per_s, (f"{trainer.images_per_s:,.1f} images/s per GPU, if yours is as fast: "
                                  f"bench-step.json, batch {trainer.batch}; {trainer.machine}")  # fmt: skip


def _estimate_time(
    estimate: StepEstimate, request: PlanRequest, rate: float, bytes_per_image: float, bound: bool
) -> None:
    """Set the hours. bound: whether bytes_per_image is an upper bound."""
    estimate.hours = request.images * request.epochs / rate / request.gpus / 3600
    estimate.gpu_hours = estimate.hours * request.gpus
    read_rate = f"{'at most ' if bound else ''}{request.gpus * rate * bytes_per_image / 1e6:,.0f} MB/s"
    estimate.assumed.append(f"reads {read_rate}")
    if request.gpus > 1:
        estimate.assumed.append(f"{request.gpus} GPUs are {request.gpus} times as fast as one: communication between "
                                "them is not measured")  # fmt: skip


def _estimate_loading(
    estimate: StepEstimate, request: PlanRequest, loader: LoaderResult | NotMeasured, rate: float | None, shards: str,
    checkpoint: int,
) -> None:  # fmt: skip
    """Set the cores, if the GPU's rate is known, and the main memory. checkpoint: its bytes."""
    if isinstance(loader, NotMeasured):
        estimate.missing.append(f"cores and main memory: {loader}")
        return
    _estimate_cores(estimate, loader, rate, shards)
    if loader.gpu_mb is None:
        estimate.missing.append("main memory: not measured (bench-io.json comes from a machine without a GPU); run: "
                                "python -m bench.io SHARDS on a machine with the GPU")  # fmt: skip
        return
    estimate.memory_mb = request.used_gpus_per_node * loader.gpu_mb + 2 * checkpoint / 2**20
    estimate.assumed.append(f"main memory: {loader.gpu_mb:,.0f} MB per GPU, dali-fused-to-gpu in bench-io.json, and "
                            "two copies of a checkpoint while it is written")  # fmt: skip


def _estimate_cores(estimate: StepEstimate, loader: LoaderResult, rate: float | None, shards: str) -> None:
    """Set the cores that make views as fast as a GPU consumes them."""
    others = ", on shards other than --shards" if shards not in ("", loader.shards) else ""
    basis = f"a core makes the views of {1000 / loader.cpu_ms:,.0f} images/s: {loader.row} in bench-io.json{others}"
    if rate is None:
        estimate.assumed.append(f"{basis}; {loader.machine}")
        return
    busy = rate * loader.cpu_ms / 1000
    estimate.cores = ceil(busy) + 1
    estimate.core_hours = (estimate.gpu_hours or 0) * estimate.cores
    estimate.shape += f" × {count(estimate.cores, 'core')}"
    estimate.assumed.append(f"{basis}, so {busy:.1f} cores feed a GPU with --views=cpu, and one more drives it; "
                            f"{loader.machine}")  # fmt: skip


def _check_gpu_memory(estimate: StepEstimate, request: PlanRequest, memory: MemoryResult | NotMeasured) -> None:
    batch = request.images_per_gpu
    if isinstance(memory, NotMeasured):
        estimate.missing.append(f"GPU memory: {memory} on a machine with the GPU")
    elif not memory.machine.gpu:
        estimate.missing.append("GPU memory: not measured (bench-memory.json comes from a CPU); run: python -m "
                                "bench.memory on a machine with the GPU")  # fmt: skip
    elif (peak := memory.peak_mb(batch)) is None:
        estimate.missing.append(f"GPU memory: not measured for {batch} images; run: python -m bench.memory "
                                f"--batches={batch} on a machine with the GPU")  # fmt: skip
    else:
        fits = "" if peak <= memory.there_mb else (
            f", more than the {memory.there_mb:,.0f} MB available: add --recompute or --micro-batch to FLAGS")
        estimate.assumed.append(f"GPU memory: {peak:,.0f} MB for {batch} images, plain steps in bench-memory.json{fits}"
                                f"; {memory.machine.gpu}")  # fmt: skip


def _estimate_checkpoints(estimate: StepEstimate, request: PlanRequest) -> int:
    """Set the disk space of all checkpoints, and return the bytes of one."""
    checkpoint = model_size(request.arch, request.size).checkpoint_bytes
    most = KEEP + request.epochs // MILESTONE + 2
    estimate.disk_gb = most * checkpoint / 1e9
    estimate.assumed.append(f"disk: at most {most} checkpoints of {checkpoint / 1e6:,.0f} MB ({request.arch} with "
                            f"Adam's moments): the newest {KEEP}, one every {MILESTONE} epochs, the best, and one "
                            "being written")  # fmt: skip
    return checkpoint


def estimate_cpu_training(
    request: PlanRequest, trainer: StepResult, memory: MemoryResult | NotMeasured
) -> StepEstimate:
    """Estimate pre-training on the CPU that `trainer` was measured on."""
    cores = trainer.machine.cores
    estimate = StepEstimate("pre-train on a CPU", gpu_hours=0, cores=cores, shape=count(cores, "core"))
    estimate.hours = request.images * request.epochs / trainer.images_per_s / 3600
    estimate.core_hours = estimate.hours * cores
    estimate.assumed.append(f"{trainer.images_per_s:,.2f} images/s in total, on this CPU alone: bench-step.json, batch "
                            f"{trainer.batch}; {trainer.machine}")  # fmt: skip
    _estimate_checkpoints(estimate, request)
    if isinstance(memory, MemoryResult) and not memory.machine.gpu:
        estimate.memory_mb = memory.peak_mb(trainer.batch)
    if estimate.memory_mb is None:
        estimate.missing.append(f"memory: not measured on a CPU for a batch of {trainer.batch}; run there: python -m "
                                f"bench.memory --batches={trainer.batch}")  # fmt: skip
    else:
        estimate.assumed.append(f"memory: a plain step on {trainer.batch} images in bench-memory.json")
    return estimate
