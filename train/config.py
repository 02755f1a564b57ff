"""Config: all settings of a run, validated once and saved in its checkpoints. The defaults are the published recipe."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipeline.augmentation import Augmentation
from shard.address import Address, Place, absolute_place
from shard.cache import open_shards
from shard.errors import InputError
from shard.flags import SHARDS, Flag, check_ranges
from shard.manifest import parse_manifest
from train.architectures import check_arch
from train.presets import PRESETS, Preset, SamePatient
from train.trackers.open import TrackerName

Optimizer = Literal["adam", "adamw", "lars"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
FP16_NEEDS_GPU = "--precision=fp16: needs a GPU; on a CPU use bf16 or fp32"
Device = Literal["auto", "cpu", "cuda"]
ViewChoice = Literal["auto", "cpu", "gpu"]
IMAGENET = "imagenet"  # as --init

# A resumed run may change these. They decide where and how fast the same numbers are computed, or which are logged.
# The view device changes the views, so the loader's part of the fingerprint includes it.
# Of --init the fingerprint includes the weights as loaded; their path may change.
MAY_CHANGE_ON_RESUME = {"shards", "out", "preset", "init", "init_input", "workers", "views", "recompute", "limit_steps",
                        "log_every", "log", "checkpoint_minutes", "online_every", "resume", "accept"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a pre-training run, and the flags of `python -m train`.

    The values are complete: `preset` only names the recipe that supplied the defaults. train.device.resolve replaces
    "auto" as device and precision.
    """

    shards: Annotated[Place, SHARDS]
    out: Annotated[Path, Flag("Folder for the run's checkpoints and journal.", "data", metavar="DIR")]
    dali: Annotated[bool, Flag("Load images with NVIDIA DALI instead of torchvision.", "data")] = False
    arch: Annotated[str, Flag("Encoder: resnet18, resnet34, resnet50, resnet101, or timm/NAME for a model of timm, "
                              "such as timm/densenet121.", "recipe", metavar="NAME")] = "resnet50"
    init: Annotated[str, Flag("Weights that the encoder starts from: a run, a checkpoint, a file or folder of "
                              "weights, a name that is downloaded (timm/NAME, hf-hub:ORG/NAME), or imagenet.",
                              "recipe", metavar="PATH|imagenet", default="random weights")] = ""
    init_input: Annotated[str, Flag("How the images of --init's weights were normalised, if no config or card states "
                                    "it: imagenet, torchxrayvision, or mean=M,std=S with range=LOW/HIGH as needed.",
                                    "recipe", metavar="WHAT", default="as stated next to the weights")] = ""
    size: Annotated[int, Flag("Side of a view in pixels.", "recipe", 32, 1024)] = 224
    epochs: Annotated[int, Flag("Passes over the training images.", "recipe", 1, 10**5)] = 100
    batch_size: Annotated[int, Flag("Images per step, over all ranks together.", "recipe", 2, 10**6)] = 64
    lr: Annotated[float, Flag("Peak learning rate.", "optimisation", 1e-9, 100)] = 3e-4
    preset: Annotated[Preset, Flag("Recipe that supplies defaults; other flags override them. docs/recipe.md "
                                   "compares the recipes.", "recipe", presets=PRESETS)] = "published"
    temperature: Annotated[float, Flag("Temperature of the NT-Xent loss.", "recipe", 1e-3, 100)] = 0.5
    crop_min: Annotated[float, Flag("Smallest area of a crop, as a fraction of the image.", "recipe", 1e-3, 1)] = (
        Augmentation.crop_area[0])
    flip: Annotated[float, Flag("Probability that a view is flipped.", "recipe", 0, 1)] = Augmentation.flip_probability
    blur: Annotated[float, Flag("Probability that a view is blurred.", "recipe", 0, 1)] = Augmentation.blur_probability
    patient_positive: Annotated[float, Flag("Probability that view 2 shows another image of the patient. Above 0, the "
                                            "shards must be built with --partners.", "recipe", 0, 1)] = (
        Augmentation.patient_positive)
    same_patient: Annotated[SamePatient, Flag("How the loss treats other images of the same patient in the batch; "
                                              "masked ignores them.", "recipe")] = "negatives"
    freeze_batchnorm: Annotated[bool, Flag("Whether BatchNorm normalises by the statistics of --init's weights and "
                                           "keeps them.", "recipe")] = False
    optimizer: Annotated[Optimizer, Flag("Optimizer; lars is meant for batches of thousands of images.",
                                          "optimisation")] = "adam"
    schedule: Annotated[Schedule, Flag("Learning rate after the warm-up.", "optimisation")] = "constant"
    warmup_epochs: Annotated[float, Flag("Epochs of linear warm-up; fractions are allowed.", "optimisation",
                                         0, 10**5)] = 0.0
    weight_decay: Annotated[float, Flag("Weight decay, except on biases, norm layers and position embeddings.",
                                          "optimisation", 0, 10)] = 0.0
    clip: Annotated[float, Flag("Largest gradient norm; 0 never clips.", "optimisation", 0, 10**6)] = 0.0
    recompute: Annotated[bool, Flag("Recompute activations in the backward pass. This needs less memory and gives the "
                                    "same gradient.", "memory")] = False
    micro_batch: Annotated[int, Flag("Images that each rank embeds at a time; 0 embeds all at once. Memory no longer "
                                     "grows with the batch, but BatchNorm sees only these images.", "memory",
                                     0, 10**6)] = 0
    sync_batchnorm: Annotated[bool, Flag("Whether BatchNorm sees the views of all ranks or only of its own.",
                                         "memory")] = True
    precision: Annotated[Precision, Flag("Floating-point format. auto is fp16 with a gradient scaler on a GPU, bf16 on "
                                         "a CPU with instructions for it, else fp32.", "device")] = "auto"
    device: Annotated[Device, Flag("Device to train on; auto takes a GPU if there is one.", "device")] = "auto"
    compile: Annotated[bool, Flag("Compile the model with torch.compile.", "device")] = False
    views: Annotated[ViewChoice | None, Flag(
        "Where views are made. auto measures both ways on a GPU, before the first step of a run, and takes the faster.",
        "device", default="gpu with --dali and a GPU, else cpu")] = None
    workers: Annotated[int, Flag("Loader threads; 0 starts one per core.", "device", 0, 4096)] = 0
    seed: Annotated[int, Flag("Seed of weights, order and views.", "recipe", 0, 2**31 - 2**16)] = 0
    limit_steps: Annotated[int, Flag("Stop after this many steps, for a trial; 0 trains all epochs.", "checkpoints",
                                     0, 10**12)] = 0
    log_every: Annotated[int, Flag("Steps between two lines of the journal.", "watching", 1, 10**6)] = 50
    checkpoint_minutes: Annotated[float, Flag("Minutes between checkpoints within an epoch; 0 writes them only after "
                                              "epochs.", "checkpoints", 0, 10**5)] = 10.0
    log: Annotated[tuple[TrackerName, ...], Flag(
        "Where to follow the run, beside metrics.jsonl: tensorboard, csv, mlflow, wandb.", "watching",
        metavar="NAME,…")] = ("tensorboard",)
    online_every: Annotated[int, Flag("Epochs between online probes on held-out training patients; 0 runs none and "
                                      "keeps no best checkpoint.", "watching", 0, 10**5)] = 10
    resume: Annotated[str, Flag("auto resumes from the newest checkpoint in --out, never refuses to, and PATH starts "
                                "a new run from another run's checkpoint.", "checkpoints",
                                metavar="auto|never|PATH")] = "auto"
    accept: Annotated[tuple[str, ...], Flag("Differences from the resumed run to allow. The error about them lists "
                                            "their names.", "checkpoints", metavar="NAME,…")] = ()

    def __post_init__(self) -> None:
        check_ranges(Config, vars(self))
        check_arch(self.arch, self.size)
        if self.init and self.resume not in ("auto", "never"):
            raise InputError(f"--init={self.init} --resume={self.resume}: both say where the encoder starts; --resume "
                             "continues another run with its projector and optimizer; keep one of them")  # fmt: skip
        if self.init_input and not self.init:
            raise InputError(f"--init-input={self.init_input}: describes the weights of --init; give --init=PATH too")
        if self.freeze_batchnorm and not self.init:
            what, other = (("--preset=continued", "--preset=patient") if self.preset == "continued" else
                           ("--freeze-batchnorm", "omit it"))  # fmt: skip
            raise InputError(f"{what}: keeps the BatchNorm statistics of other weights, and random ones have none; "
                             f"give --init=PATH too, or {other}")
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise InputError(f"--micro-batch={self.micro_batch}: does not divide --batch-size={self.batch_size}; "
                             f"{divisors(self.batch_size)} do")
        if self.warmup_epochs > self.epochs:
            raise InputError(f"--warmup-epochs={self.warmup_epochs:g}: more than --epochs={self.epochs}; lower it")
        if self.precision == "fp16" and self.device == "cpu":
            raise InputError(FP16_NEEDS_GPU)
        if self.compile and self.recompute:
            raise InputError("--compile --recompute: the compiler itself decides what to recompute; omit one of them")
        if self.recompute:
            from train.large_batch import check_recompute  # imported here because PyTorch takes a second

            check_recompute(self.arch, self.size)
        if self.compile and shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
            raise InputError(f"--compile: PyTorch needs the compiler {compiler}, which is not installed; on Debian: "
                             "apt install g++")  # fmt: skip

    @property
    def backend(self) -> Literal["dali", "torchvision"]:
        """The loader's backend."""
        return "dali" if self.dali else "torchvision"

    @property
    def folder(self) -> Path:
        """The folder to read shards from: that of --shards or, for an address, its copy in the cache."""
        return open_shards(self.shards)

    def plain(self) -> dict[str, str | int | float | bool | None]:
        """Return all settings as the plain values that a checkpoint keeps, with absolute paths, without secrets."""
        plain = {name: absolute_place(value) if isinstance(value, (Path, Address)) else
                 ",".join(value) if isinstance(value, tuple) else value
                 for name, value in vars(self).items()}  # fmt: skip
        if self.resume not in ("auto", "never"):
            plain["resume"] = str(Path(self.resume).expanduser().absolute())
        if self.init and self.init != IMAGENET:
            from train.weights.source import parse_source  # which imports PyTorch

            plain["init"] = str(parse_source(self.init).absolute())
        return plain

    def decisive(self) -> dict[str, str | int | float | bool | None]:
        """Return the settings that decide the weights after a step. A resumed run must agree in all of them."""
        decisive = {name: value for name, value in self.plain().items() if name not in MAY_CHANGE_ON_RESUME}
        if self.schedule == "constant":  # does not depend on the last epoch
            decisive["epochs"] = "any"
        return decisive


def check_batch(shards: Place, batch_size: int) -> None:
    """Raise InputError if the folder has no shards, or fewer training images than a batch."""
    images = parse_manifest(open_shards(shards)).images("train")
    if images < batch_size:
        raise InputError(f"--batch-size={batch_size}: {shards} has {images} images in split 'train', fewer than a "
                         f"batch; lower it to {images} or less")  # fmt: skip


def divisors(number: int) -> str:
    """Return the four largest proper divisors of `number` as text, for a message."""
    fitting = [part for part in range(1, number // 2 + 1) if number % part == 0][-4:]
    return ", ".join(map(str, fitting))
