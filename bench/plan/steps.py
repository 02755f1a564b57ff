"""Estimate every step of the workflow for an archive: sharding, pre-training and probing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.plan.estimate import StepEstimate, count
from bench.plan.request import PlanRequest
from bench.plan.results import BenchResults, NotMeasured, SharderResult, StepResult
from bench.plan.training import estimate_cpu_training, estimate_training, gpu_rate, model_size
from probe.baselines import SIDE
from probe.settings import Settings
from probe.used_images import REFERENCE
from shard.formats import TASKS
from shard.manifest import Manifest

OVERHEAD_BYTES = 3072  # headers, labels and index line of an image: about 2.7 kB
ENCODERS = 3  # of the architecture that a report compares: the trained one, random weights, ImageNet's
FEATURE_COPIES = 3  # copies in memory at a report's peak (raw, standardised, float64), rounded up
TEST_SHARE = 0.1  # of the images; CheXpert's splits for testing have 0.4 %, those of ChestX-ray14 23 %
PROBING_H = 4.0  # hours for everything but features; the --time of slurm/probe.sbatch
MB = 2**20


@dataclass(frozen=True)
class StoredImageSize:
    """The mean size of an image in the shards.

    basis: how it is known. shards: the fingerprint of the shards it was measured on; empty for an upper bound.
    """

    bytes: float
    basis: str
    shards: str = ""


def stored_image_size(request: PlanRequest, shards: Path | None, manifest: Manifest | None) -> StoredImageSize:
    """Return the measured mean size of existing shards, scaled by area, or the uncompressed size as an upper bound."""
    if manifest is not None:
        side, images = manifest.settings["size"], sum(shard.samples for shard in manifest.shards)
        mean = sum(shard.tar_bytes + shard.index_bytes for shard in manifest.shards) / images
        scaled = f", by area from {side} px to {request.short_side}" if side != request.short_side else ""
        return StoredImageSize(mean * (request.short_side / side) ** 2, f"the mean of {images:,} in {shards}{scaled}",
                               manifest.fingerprint())  # fmt: skip
    short, long = request.sides
    pixels = min(request.short_side, short) ** 2 * long / short  # images are never enlarged
    return StoredImageSize(pixels + OVERHEAD_BYTES, "not measured: the uncompressed size, a byte for each pixel and 3 "
                           "kB of headers; JPEGs take a fraction of that; --shards=SHARDS measures it")  # fmt: skip


def estimate_steps(request: PlanRequest, results: BenchResults, size: StoredImageSize) -> list[StepEstimate]:
    """Estimate sharding, pre-training and probing, and pre-training on a CPU if one was measured."""
    training = estimate_training(request, results, size.bytes, size.shards)
    steps = [_estimate_sharding(request, results.sharder, size), training,
             _estimate_probing(request, results.trainer, training)]  # fmt: skip
    if isinstance(results.trainer, StepResult) and not results.trainer.machine.gpu:
        steps.insert(2, estimate_cpu_training(request, results.trainer, results.memory))
    return steps


def _estimate_sharding(
    request: PlanRequest, sharder: SharderResult | NotMeasured, size: StoredImageSize
) -> StepEstimate:
    shape = f"{count(request.tasks, 'task')} × {count(request.cores, 'core')}"
    estimate = StepEstimate("shard", gpu_hours=0, cores=request.cores, shape=shape)
    estimate.disk_gb, estimate.at_most = request.images * size.bytes / 1e9, [] if size.shards else ["disk_gb"]
    estimate.assumed.append(f"disk: {size.bytes / 1e3:.1f} kB per image, {size.basis}")
    if isinstance(sharder, NotMeasured):
        estimate.missing.append(str(sharder))
        return estimate
    source = sharder.nearest(request.megapixels)
    rate = source.images_per_s * source.megapixels / request.megapixels
    # The build distributes the shards over the tasks in turn.
    largest_task = max(sum(request.shards[task :: request.tasks]) for task in range(request.tasks))
    estimate.hours, estimate.core_hours = largest_task / rate / request.cores / 3600, request.images / rate / 3600
    estimate.assumed += [
        f"{rate:,.1f} images/s per core: {source.images_per_s:,.1f} of {source.name} in bench-shard.json, the slowest "
        f"of the sources nearest in size, scaled by megapixels from {source.megapixels:.2f} to "
        f"{request.megapixels:.2f}; {sharder.machine}",
        f"{count(request.cores, 'core')} are {request.cores} times as fast as one, unless the disk limits them; "
        f"the largest task has {largest_task:,} images",
    ]  # fmt: skip
    if not sharder.builds:
        estimate.missing.append("memory: not measured; run: python -m bench.shard on Linux")
        return estimate
    build = min(sharder.builds, key=lambda one: abs(one.rows - request.images))
    estimate.memory_mb = build.process_mb * max(1.0, request.images / build.rows) + request.cores * build.worker_mb
    estimate.assumed.append(f"memory: {build.process_mb:,.0f} MB for {build.rows:,} rows, proportionally more for more "
                            f"rows, and {build.worker_mb:,.0f} MB per core")  # fmt: skip
    return estimate


def _estimate_probing(
    request: PlanRequest, trainer: StepResult | NotMeasured, training: StepEstimate
) -> StepEstimate:
    """Estimate the features under each encoder on one GPU of the images that a report uses, and the probes on them."""
    estimate = StepEstimate("probe", cores=training.cores, shape="1 GPU")
    if training.cores:
        estimate.shape += f" × {count(training.cores, 'core')}"
    width = model_size(request.arch, request.size).feature_width
    support = len(TASKS) * Settings.draws * 2 * max(map(int, Settings.shots))
    images = min(request.images, support + REFERENCE + round(request.images * TEST_SHARE))
    features = 4 * images * (ENCODERS * width + SIDE**2)  # bytes, in float32
    estimate.disk_gb, estimate.memory_mb = features / 1e9, FEATURE_COPIES * features / MB
    estimate.assumed += [
        f"features of {images:,} images: at most {support:,} of support sets, {REFERENCE:,} to standardise by, and a "
        f"test split of {TEST_SHARE:.0%} of all",
        f"disk: float32 features of {ENCODERS} encoders, {width} each, and of a thumbnail, {SIDE**2}",
        f"main memory: {FEATURE_COPIES} times the features, derived from the code, not measured, excluding the GPU's "
        "driver",
    ]  # fmt: skip
    estimate.missing.append(f"the probes: not measured at this size by any benchmark; --time allows {PROBING_H:g} h")
    rate, _ = gpu_rate(request, trainer)
    if rate is None:
        estimate.missing.append("hours: derived from the rate of a GPU, see pre-train")
        return estimate
    estimate.at_most = ["hours", "core_hours", "gpu_hours"]
    estimate.hours = estimate.gpu_hours = ENCODERS * images / rate / 3600
    estimate.core_hours = estimate.hours * training.cores if training.cores else None
    estimate.assumed.append(f"hours: for each of {ENCODERS} encoders, the features of an image take at most the "
                            "time to train on it: one view forward in float32, against two forward and "
                            "backward")  # fmt: skip
    return estimate
