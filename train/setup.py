"""Create the loader, model and optimizer of a run."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from pipeline.augmentation import Augmentation, ViewDevice
from pipeline.loader import ViewLoader, two_view_loader
from shard.errors import InputError
from shard.machine import cores
from shard.manifest import Manifest, read_manifest
from train.config import Config, divisors
from train.device import configure_backend, describe_precision, fit_to_device, resolve
from train.distributed.batchnorm import convert_sync_batchnorm
from train.distributed.ranks import Ranks
from train.large_batch import apply_activation_checkpointing
from train.model import SimCLR
from train.optim import make_optimizer
from train.rng import seed_all
from train.state import TrainState

FEW_PARTNERS = 0.1  # fraction of images with a partner, below which a recipe that uses partners has little effect


class Setup(NamedTuple):
    """What a run starts with. config: with device and precision resolved. state: at step 0.

    loader: views are made where --views says or, by default and for auto, on the GPU if there is one.
    """

    config: Config
    manifest: Manifest
    augmentation: Augmentation
    loader: ViewLoader
    state: TrainState


def set_up(config: Config, ranks: Ranks | None = None) -> Setup:
    """Create the loader, model and optimizer that `config` asks for. Raises InputError if that is impossible."""
    asked, config, ranks = config.precision, resolve(config), ranks or Ranks()
    manifest = read_manifest(config.folder)
    augmentation = Augmentation(size=config.size, crop_area=(config.crop_min, 1.0), flip_probability=config.flip,
                                blur_probability=config.blur, patient_positive=config.patient_positive,
                                mean=manifest.pixel_mean,
                                std=manifest.pixel_std)  # fmt: skip
    device = torch.device("cuda", torch.cuda.current_device()) if config.device == "cuda" else torch.device("cpu")
    configure_backend(device)
    loader = make_loader(config, manifest, augmentation, device, ranks)
    if ranks.first:
        _warn_of_small_images(config, manifest)
        _report_partners(config, loader, manifest.images("train"))
    torch.manual_seed(config.seed)  # for the weights; the loader has separate generators
    model = fit_to_device(SimCLR(config.arch, config.size, freeze_batchnorm=config.freeze_batchnorm), device,
                          config.precision)
    if ranks.first:
        print(f"the model trains in {describe_precision(asked, config.precision, device, model)}")
    seed_all(config.seed + ranks.rank)
    if ranks.world > 1 and config.sync_batchnorm:
        convert_sync_batchnorm(model, device)
    if config.recompute:
        apply_activation_checkpointing(model, config.arch)
    optimizer = make_optimizer(config.optimizer, model, lr=config.lr, weight_decay=config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    forward = torch.compile(model) if config.compile else model
    state = TrainState(model, forward, optimizer, scaler, device, len(loader))
    return Setup(config, manifest, augmentation, loader, state)


def make_loader(
    config: Config, manifest: Manifest, augmentation: Augmentation, device: torch.device, ranks: Ranks,
    views: ViewDevice | None = None,
) -> ViewLoader:  # fmt: skip
    """Create a rank's loader of the training images. views: where views are made; None for what --views says."""
    if views is None and config.views != "auto":
        views = config.views
    half = config.precision == "fp16" and config.dali  # autocast would convert them anyway
    return two_view_loader(
        config.backend, config.folder, manifest, augmentation, batch_size=_per_rank_batch_size(config, ranks.world),
        device=device, views=views, half=half, workers=config.workers or max(1, cores() // ranks.local_world_size),
        seed=config.seed, rank=ranks.rank, world=ranks.world,
    )  # fmt: skip


def _report_partners(config: Config, loader: ViewLoader, images: int) -> None:
    """Print how many images have another image of their patient, if the recipe uses them; warn if they are few."""
    if not config.patient_positive and config.same_patient == "negatives":
        return
    found = loader.count_paired(in_shard=config.patient_positive > 0)
    where = " in their shard" if config.patient_positive else ""
    print(f"{found} of {images} training images ({found / images:.1%}) have another image of the same patient{where}")
    if found < FEW_PARTNERS * images:
        flags = [f"--patient-positive={config.patient_positive:g}"] if config.patient_positive else []
        flags += [f"--same-patient={config.same_patient}"] if config.same_patient != "negatives" else []
        print(f"warning: {' and '.join(flags)} appl{'ies' if len(flags) == 1 else 'y'} to so few images that the "
              "effect is negligible; check the shards' patients (python -m shard info), build them with "
              "--partners=3 from a table that names patients, or use --preset=published", file=sys.stderr)  # fmt: skip


def _per_rank_batch_size(config: Config, world: int) -> int:
    """Return the number of images per step on each rank."""
    if config.batch_size % world:
        raise InputError(f"--batch-size={config.batch_size}: not divisible by the {world} ranks; use "
                         f"--batch-size={config.batch_size // world * world or world}")
    share = config.batch_size // world
    if config.micro_batch and share % config.micro_batch:
        raise InputError(f"--micro-batch={config.micro_batch}: does not divide the {share} images of each of {world} "
                         f"ranks at --batch-size={config.batch_size}; {divisors(share)} do")  # fmt: skip
    return share


def _warn_of_small_images(config: Config, manifest: Manifest) -> None:
    sharded = manifest.settings["size"]
    if config.size > sharded:
        print(f"warning: --size={config.size}: views are larger than the images in {config.shards}, whose short side "
              f"is {sharded} px, and will be upsampled; build shards with --size={config.size} or more, or lower it",
              file=sys.stderr)  # fmt: skip
