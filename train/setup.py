"""A run at its beginning: loader, model and optimiser as its settings ask, or why that can't be."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from pipeline.augmentation import Augmentation
from pipeline.loader import ViewLoader, choose_view_device, two_view_loader
from shard.errors import InputError
from shard.machine import cores
from shard.manifest import Manifest, read_manifest
from train.config import Config, divisors
from train.device import make_fast, resolve
from train.distributed.batchnorm import convert_sync_batchnorm
from train.distributed.ranks import Ranks
from train.large_batch import recompute_blocks
from train.model import SimCLR
from train.optim import make_optimizer
from train.rng import seed_all
from train.state import TrainState

FEW_PARTNERS = 0.1  # of the images, below which a recipe that wants them hardly has any


class Setup(NamedTuple):
    """What a run starts with. config: with device and precision resolved. state: at step 0."""

    config: Config
    manifest: Manifest
    augmentation: Augmentation
    loader: ViewLoader
    state: TrainState


def set_up(config: Config, ranks: Ranks | None = None) -> Setup:
    """Create the loader, model and optimizer that `config` asks for. Raises InputError if that is impossible."""
    config, ranks = resolve(config), ranks or Ranks()
    manifest = read_manifest(config.shards)
    share = _share_of_batch(config, ranks.world)
    augmentation = Augmentation(size=config.size, crop_area=(config.crop_min, 1.0), flip_probability=config.flip,
                                blur_probability=config.blur, patient_positive=config.patient_positive,
                                mean=manifest.pixel_mean,
                                std=manifest.pixel_std)  # fmt: skip
    device = torch.device("cuda", torch.cuda.current_device()) if config.device == "cuda" else torch.device("cpu")
    workers = config.workers or max(1, cores() // ranks.local_world_size)
    make_fast(device)
    where, why = choose_view_device(config.views, config.backend, device, workers)
    if ranks.first:
        print(f"views are made on the {where.upper()}: {why}")
        _warn_of_small_images(config, manifest)
    half = config.precision == "fp16" and config.dali  # what autocast would make of them anyway
    loader = two_view_loader(config.backend, config.shards, manifest, augmentation, batch_size=share, device=device,
                             views=where, half=half, workers=workers, seed=config.seed,
                             rank=ranks.rank, world=ranks.world)  # fmt: skip
    if ranks.first:
        _say_partners(config, loader, manifest.images("train"))
    torch.manual_seed(config.seed)  # for the weights; views are drawn from the loader's own generators
    model = SimCLR(config.arch).to(memory_format=torch.channels_last).to(device)
    seed_all(config.seed + ranks.rank)
    if ranks.world > 1 and config.sync_batchnorm:
        convert_sync_batchnorm(model, device)
    if config.recompute:
        recompute_blocks(model)
    optimizer = make_optimizer(config.optimizer, model, lr=config.lr, weight_decay=config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    forward = torch.compile(model) if config.compile else model
    state = TrainState(model, forward, optimizer, scaler, device, len(loader))
    return Setup(config, manifest, augmentation, loader, state)


def _say_partners(config: Config, loader: ViewLoader, images: int) -> None:
    """How many images the recipe's part about patients applies to, where it has one."""
    if not config.patient_positive and config.same_patient == "negatives":
        return
    found = loader.count_paired(in_shard=config.patient_positive > 0)
    where = " in their shard" if config.patient_positive else ""
    print(f"{found} of {images} training images ({found / images:.1%}) have another of their patient{where}")
    if found < FEW_PARTNERS * images:
        asked = [f"--patient-positive={config.patient_positive:g}"] if config.patient_positive else []
        asked += [f"--same-patient={config.same_patient}"] if config.same_patient != "negatives" else []
        print(f"warning: {' and '.join(asked)} act{'s' * (len(asked) == 1)} on so few images that the run is almost "
              "one without; look at the shards' patients (python -m shard info), build them with --partners=3 from a "
              "table that names patients, or use --preset=published", file=sys.stderr)  # fmt: skip


def _share_of_batch(config: Config, world: int) -> int:
    """Images a step on each rank."""
    if config.batch_size % world:
        raise InputError(f"--batch-size={config.batch_size}: the batch of all ranks, and {world} can't share it; use "
                         f"--batch-size={config.batch_size // world * world or world}")
    share = config.batch_size // world
    if config.micro_batch and share % config.micro_batch:
        raise InputError(f"--micro-batch={config.micro_batch}: does not divide the {share} images that each of {world} "
                         f"ranks has of --batch-size={config.batch_size}; {divisors(share)} do")  # fmt: skip
    return share


def _warn_of_small_images(config: Config, manifest: Manifest) -> None:
    sharded = manifest.settings["size"]
    if config.size > sharded:
        print(f"warning: --size={config.size}: views are larger than the images in {config.shards}, of which the short "
              f"side is {sharded} px; they will be enlarged. Shard anew with --size={config.size} or more, or lower it",
              file=sys.stderr)  # fmt: skip
