"""What pre-training takes: rates of step, loader and memory → hours, cores, GPUs, disk and memory."""

from __future__ import annotations

from functools import cache
from math import ceil

import torch

from bench.plan.rates import Loader, Memory, Missing, Rates, Trainer
from bench.plan.request import Need, PlanRequest, count
from pipeline.loader import CORES_THAT_FEED_A_GPU
from train.checkpoint import KEEP
from train.checkpointer import MILESTONE
from train.config import Arch, Config
from train.model import SimCLR


def need_of_training(request: PlanRequest, rates: Rates, bytes_an_image: float, shards: str = "") -> Need:
    """Of pre-training on the GPUs that are wished for. shards: the fingerprint of those it will read, where known."""
    need = Need("pre-train", shape=f"{count(request.nodes, 'node')} × {count(request.gpus_a_node, 'GPU')}")
    rate, said = gpu_rate(request, rates.trainer)
    (need.missing if rate is None else need.assumed).append(said)
    if rate is not None:
        need.hours = request.images * request.epochs / rate / request.gpus / 3600
        need.gpu_hours = need.hours * request.gpus
        need.assumed.append(f"{'' if shards else 'at most '}{request.gpus * rate * bytes_an_image / 1e6:,.0f} MB/s are "
                            "read, and in the first epoch by each rank all shards once, to check them")  # fmt: skip
        if request.gpus > 1:
            need.assumed.append(f"on {request.gpus} GPUs {request.gpus} times as many: what they tell one another "
                                "is in no "
                                "rate")  # fmt: skip
    if isinstance(rates.trainer, Trainer) and rates.trainer.batch != request.images_a_gpu:
        need.assumed.append(f"images/s as measured with {rates.trainer.batch} images a step on one GPU, not the "
                            f"{request.images_a_gpu:,} that are planned")  # fmt: skip
    if request.batch_size != Config.batch_size:
        need.assumed.append(f"whether batches of {request.batch_size:,} images learn as much as the published ones of "
                            f"{Config.batch_size}, and at which --lr, is not in this plan")  # fmt: skip
    checkpoint = _keep_checkpoints(request, need)
    if isinstance(rates.loader, Missing):
        need.missing.append(f"cores and main memory: {rates.loader}")
    else:
        _feed(rates.loader, rate, shards, need)
        if rates.loader.gpu_mb is None:
            need.missing.append("main memory: not measured (bench-io.json is of a machine without a GPU); run: python "
                                "-m bench.io SHARDS on one with the GPU")  # fmt: skip
        else:
            need.memory_mb = request.gpus_a_node * rates.loader.gpu_mb + 2 * checkpoint / 2**20
            need.assumed.append(f"main memory: {rates.loader.gpu_mb:,.0f} MB a GPU, dali-fused-to-gpu in bench-io.json,"
                                " and a checkpoint twice while it is written")  # fmt: skip
    _fit_gpu(request, rates.memory, need)
    return need


def gpu_rate(request: PlanRequest, trainer: Trainer | Missing) -> tuple[float | None, str]:
    """Images/s that one GPU trains on, None where they are neither stated nor measured; and which it is, in words."""
    cure = "on a machine with the GPU, or state --gpu-rate=IMAGES_PER_S"
    if request.gpu_rate is not None:
        return request.gpu_rate, f"{request.gpu_rate:,.1f} images/s a GPU: stated by --gpu-rate, not measured"
    if isinstance(trainer, Missing):
        return None, f"GPU-hours: {trainer} {cure}"
    if not trainer.machine.gpu:
        return None, ("GPU-hours: not measured (bench-step.json is of a CPU, which tells nothing of a GPU); run: "
                      f"python -m bench.step SHARDS --rows=ours {cure}")  # fmt: skip
    return trainer.images_per_s, (f"{trainer.images_per_s:,.1f} images/s a GPU, if yours is as fast: bench-step.json, "
                                  f"batch {trainer.batch}; {trainer.machine}")  # fmt: skip


@cache
def weigh_model(arch: Arch) -> tuple[int, int]:
    """Bytes of a checkpoint, which holds weights and Adam's two moments of each; and how wide features are."""
    with torch.device("meta"):
        model = SimCLR(arch)
    first, *_ = model.projector.parameters()  # [F, F]
    weights, buffers = (sum(tensor.numel() * tensor.element_size() for tensor in tensors)
                        for tensors in (model.parameters(), model.buffers()))  # fmt: skip
    return 3 * weights + buffers, first.shape[1]


def _feed(loader: Loader, rate: float | None, shards: str, need: Need) -> None:
    """The cores that make views as fast as a GPU trains on them, where that is known."""
    others = ", of other shards than --shards" if shards not in ("", loader.shards) else ""
    said = f"a core makes the views of {1000 / loader.cpu_ms:,.0f} images/s: {loader.row} in bench-io.json{others}"
    if rate is None:
        need.assumed.append(f"{said}; {loader.machine}")
        return
    busy = rate * loader.cpu_ms / 1000
    need.cores = max(CORES_THAT_FEED_A_GPU, ceil(busy) + 1)
    need.core_hours = (need.gpu_hours or 0) * need.cores
    need.shape += f" × {count(need.cores, 'core')}"
    need.assumed.append(f"{said}, so {busy:.1f} feed a GPU, and one more drives it; from {CORES_THAT_FEED_A_GPU} on "
                        f"training makes views on the CPU; {loader.machine}")  # fmt: skip


def _fit_gpu(request: PlanRequest, memory: Memory | Missing, need: Need) -> None:
    if isinstance(memory, Missing):
        need.missing.append(f"GPU memory: {memory} on a machine with the GPU")
    elif not memory.machine.gpu:
        need.missing.append("GPU memory: not measured (bench-memory.json is of a CPU); run: python -m bench.memory on "
                            "a machine with the GPU")  # fmt: skip
    elif (peak := memory.at(request.images_a_gpu)) is None:
        need.missing.append(f"GPU memory: not measured for {request.images_a_gpu} images; run: python -m bench.memory "
                            f"--batches={request.images_a_gpu} on a machine with the GPU")  # fmt: skip
    else:
        fits = "" if peak <= memory.there_mb else (
            f", more than the {memory.there_mb:,.0f} MB there: put --recompute or --micro-batch into FLAGS")
        need.assumed.append(f"GPU memory: {peak:,.0f} MB for {request.images_a_gpu} images, plain steps in "
                            f"bench-memory.json{fits}; {memory.machine.gpu}")  # fmt: skip


def _keep_checkpoints(request: PlanRequest, need: Need) -> int:
    """The disk for them; bytes of one."""
    checkpoint = weigh_model(request.arch)[0]
    most = KEEP + request.epochs // MILESTONE + 2
    need.disk_gb = most * checkpoint / 1e9
    need.assumed.append(f"disk: at most {most} checkpoints of {checkpoint / 1e6:,.0f} MB ({request.arch}, "
                        f"Adam's moments):"
                        f" the newest {KEEP}, each {MILESTONE}th epoch's, the best, one being written")  # fmt: skip
    return checkpoint


def need_on_cpu(request: PlanRequest, trainer: Trainer, memory: Memory | Missing) -> Need:
    """Of pre-training on the CPU that `trainer` is of: its figures, and no GPU's."""
    cores = trainer.machine.cores
    need = Need("pre-train on a CPU", gpu_hours=0, cores=cores, shape=count(cores, "core"))
    need.hours = request.images * request.epochs / trainer.images_per_s / 3600
    need.core_hours = need.hours * cores
    need.assumed.append(f"{trainer.images_per_s:,.2f} images/s in all, of this CPU alone: bench-step.json, batch "
                        f"{trainer.batch}; {trainer.machine}")  # fmt: skip
    _keep_checkpoints(request, need)
    if isinstance(memory, Memory) and not memory.machine.gpu:
        need.memory_mb = memory.at(trainer.batch)
    if need.memory_mb is None:
        need.missing.append(f"memory: not measured on a CPU for a batch of {trainer.batch}; run there: python -m "
                            f"bench.memory --batches={trainer.batch}")  # fmt: skip
    else:
        need.assumed.append(f"memory: a plain step on {trainer.batch} images in bench-memory.json")
    return need
