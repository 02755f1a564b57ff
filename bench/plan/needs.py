"""Needs: rates that other benches measured → hours, cores, GPUs, disk and memory of each step for an archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.plan.rates import Missing, Rates, Sharder, Trainer
from bench.plan.request import Need, PlanRequest, count
from bench.plan.training import gpu_rate, need_of_training, need_on_cpu, weigh_model
from probe.baselines import SIDE
from shard.manifest import Manifest

BESIDE_BYTES = 3072  # an image's headers, labels and line of the index: about 2.7 kB
RESNETS = 3  # that a report runs: the trained one, random weights, ImageNet's
COPIES = 3  # of all features that a report holds at its peak, rounded up: read, standardised, in float64 for a fit
LEARNING_H = 4.0  # that the probe may take beside features: the time probe.sbatch has by itself
MB = 2**20


@dataclass(frozen=True)
class Weight:
    """Bytes of an image in the shards, how that is known, and the fingerprint of those it is of; else it is a bound."""

    bytes: float
    known: str
    shards: str = ""


def weigh(request: PlanRequest, shards: Path | None, manifest: Manifest | None) -> Weight:
    """Bytes of an image by the manifest of shards where there is one; else as if it were not compressed."""
    if manifest is not None:
        side, images = manifest.settings["size"], sum(shard.samples for shard in manifest.shards)
        mean = sum(shard.tar_bytes + shard.index_bytes for shard in manifest.shards) / images
        scaled = f", by area from {side} px to {request.short_side}" if side != request.short_side else ""
        return Weight(mean * (request.short_side / side) ** 2, f"the mean of {images:,} in {shards}{scaled}",
                      manifest.fingerprint())  # fmt: skip
    short, long = request.sides
    pixels = min(request.short_side, short) ** 2 * long / short  # images are never enlarged
    return Weight(pixels + BESIDE_BYTES, "not measured: as if not compressed, a byte a pixel and 3 kB beside, of which "
                                         "JPEGs take a part; --shards=SHARDS measures")  # fmt: skip


def list_needs(request: PlanRequest, rates: Rates, weight: Weight) -> list[Need]:
    """Of sharding, pre-training and probing; and of pre-training on a CPU, where one was measured."""
    training = need_of_training(request, rates, weight.bytes, weight.shards)
    needs = [_shard(request, rates.sharder, weight), training, _probe(request, rates.trainer, training)]
    if isinstance(rates.trainer, Trainer) and not rates.trainer.machine.gpu:
        needs.insert(2, need_on_cpu(request, rates.trainer, rates.memory))
    return needs


def _shard(request: PlanRequest, sharder: Sharder | Missing, weight: Weight) -> Need:
    shape = f"{count(request.tasks, 'task')} × {count(request.cores, 'core')}"
    need = Need("shard", gpu_hours=0, cores=request.cores, shape=shape)
    need.disk_gb, need.at_most = request.images * weight.bytes / 1e9, [] if weight.shards else ["disk_gb"]
    need.assumed.append(f"disk: {weight.bytes / 1e3:.1f} kB an image, {weight.known}")
    if isinstance(sharder, Missing):
        need.missing.append(str(sharder))
        return need
    source = sharder.nearest(request.megapixels)
    rate = source.images_per_s * source.megapixels / request.megapixels
    largest = max(sum(request.shards[task :: request.tasks])
                  for task in range(request.tasks))  # images, as the build deals them
    need.hours, need.core_hours = largest / rate / request.cores / 3600, request.images / rate / 3600
    need.assumed += [
        f"{rate:,.1f} images/s a core: {source.images_per_s:,.1f} of {source.name} in bench-shard.json, of its sources "
        f"the nearest in size and of those the slowest, scaled by megapixels from {source.megapixels:.2f} to "
        f"{request.megapixels:.2f}; {sharder.machine}",
        f"on {count(request.cores, 'core')} {request.cores} times as many, if none waits for the disk; "
        "the largest task has "
        f"{largest:,} images",
    ]  # fmt: skip
    if not sharder.builds:
        need.missing.append("memory: not measured; run: python -m bench.shard on Linux")
        return need
    build = min(sharder.builds, key=lambda one: abs(one.rows - request.images))
    need.memory_mb = build.process_mb * max(1.0, request.images / build.rows) + request.cores * build.worker_mb
    need.assumed.append(f"memory: {build.process_mb:,.0f} MB for {build.rows:,} rows, in proportion for more, and "
                        f"{build.worker_mb:,.0f} MB a core")  # fmt: skip
    return need


def _probe(request: PlanRequest, trainer: Trainer | Missing, training: Need) -> Need:
    """Features of every image under each encoder, on one GPU, and what is learned from them."""
    need = Need("probe", cores=training.cores, shape="1 GPU")
    if training.cores:
        need.shape += f" × {count(training.cores, 'core')}"
    width = weigh_model(request.arch)[1]
    features = 4 * request.images * (RESNETS * width + SIDE**2)  # float32
    need.disk_gb, need.memory_mb = features / 1e9, COPIES * features / MB
    need.assumed += [
        f"disk: features in float32 of {RESNETS} ResNets, {width} each, and of a thumbnail, {SIDE**2}",
        f"main memory: {COPIES} times the features, counted in the code, not measured; what a GPU's driver takes is "
        "not in it",
    ]  # fmt: skip
    need.missing.append(f"what is learned from the features: no bench measures it at this size; --time leaves it "
                        f"{LEARNING_H:g} h, and FLAGS=--shots=1,5,10,50 leaves fits on all labels out")  # fmt: skip
    rate, _ = gpu_rate(request, trainer)
    if rate is None:
        need.missing.append("hours: follow from the rate of a GPU, see pre-train")
        return need
    need.at_most = ["hours", "core_hours", "gpu_hours"]
    need.hours = need.gpu_hours = RESNETS * request.images / rate / 3600
    need.core_hours = need.hours * training.cores if training.cores else None
    need.assumed.append(f"hours: under each of {RESNETS} ResNets features of an image take at most what training on it "
                        "takes: one view forward in float32, for two forward and backward")  # fmt: skip
    return need
