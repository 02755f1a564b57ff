"""The recipes of the study, declared before any is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bench.recipe.pooling import POOLINGS
from shard.errors import InputError

Arm = Literal["continued", "from random weights", ""]
CONTINUED: Arm = "continued"
RANDOM: Arm = "from random weights"
LITE0, RESNET18 = "timm/tf_efficientnet_lite0", "resnet18"
# Shared by all cells unless a cell changes it. Views are made on the CPU, so that they are the same on every machine.
BASE: dict[str, Any] = {
    "size": 96, "epochs": 30, "batch_size": 128, "schedule": "cosine", "warmup_epochs": 1.0, "precision": "fp32",
    "views": "cpu", "online_every": 0, "log_every": 10,
}  # fmt: skip
# The recipe that the first study chose. Values are written out: presets may change.
PATIENT: dict[str, Any] = {
    "temperature": 0.2, "crop_min": 0.3, "flip": 0.0, "patient_positive": 0.5, "same_patient": "masked",
}  # fmt: skip
FROM_IMAGENET: dict[str, Any] = {"init": "", "init_input": "mean=0.5,std=0.5"}  # init: the path, filled in later
_CONTINUED: dict[str, Any] = {"arch": LITE0, **FROM_IMAGENET, **PATIENT, "lr": 5e-4, "epochs": 10}
RANDOM_LR = 1e-3  # of runs from random weights
_RESNET: dict[str, Any] = {"arch": RESNET18, **PATIENT, "lr": RANDOM_LR}


def file_name(name: str) -> str:
    """Return a cell's name without spaces and commas."""
    return name.replace(",", "").replace(" ", "-")


@dataclass(frozen=True)
class Cell:
    """A recipe of the grid. settings: the changes to BASE. arm: the choice that it is a candidate for.

    pooling: of POOLINGS, if features are not means. trained: the name of the cell whose run it evaluates; "" for its
    own.
    """

    name: str
    arm: Arm
    settings: dict[str, Any] = field(default_factory=dict)
    pooling: str = ""
    trained: str = ""

    @property
    def folder(self) -> str:
        """The name as that of a folder and as a value of --cells."""
        return file_name(self.name)

    def all_settings(self) -> dict[str, Any]:
        """Return the settings of BASE, updated with the cell's own."""
        return {**BASE, **self.settings}

    def sizes(self) -> tuple[int, int]:
        """Return the sizes of images to evaluate it on: that of its views, and larger ones.

        In a crop the body is larger than in the whole image, so an encoder may read larger images better.
        """
        size = self.all_settings()["size"]
        return size, size + 32


def _continued(name: str, **changes: Any) -> Cell:
    return Cell(f"continued, {name}", CONTINUED, {**_CONTINUED, **changes})


def _resnet(name: str, **changes: Any) -> Cell:
    return Cell(f"ResNet-18, {name}", RANDOM, {**_RESNET, **changes})


CELLS: tuple[Cell, ...] = (
    _continued("base"),
    _continued("lr 1e-4", lr=1e-4),
    _continued("lr 2e-3", lr=2e-3),
    _continued("3 epochs", epochs=3),
    _continued("30 epochs", epochs=30),
    _continued("100 epochs", epochs=100),
    _continued("64 px", size=64),
    _continued("128 px", size=128),
    _continued("128 px, 30 epochs", size=128, epochs=30),
    _continued("frozen BatchNorm", freeze_batchnorm=True),
    _continued("frozen BatchNorm, 128 px", freeze_batchnorm=True, size=128),
    _continued("crop 0.1", crop_min=0.1),
    _continued("crop 0.6", crop_min=0.6),
    _continued("flip", flip=0.5),
    _continued("no blur", blur=0.0),
    _continued("temperature 0.1", temperature=0.1),
    _continued("no partners", patient_positive=0.0),
    _continued("partners always", patient_positive=1.0),
    _continued("published views and loss", **{"temperature": 0.5, "crop_min": 0.2, "flip": 0.5,
                                              "patient_positive": 0.0, "same_patient": "negatives"}),
    Cell("EfficientNet-Lite0, random weights", "", {"arch": LITE0, **PATIENT, "lr": RANDOM_LR}),
    Cell("ResNet-18, published", "", {"arch": RESNET18, "lr": RANDOM_LR}),
    _resnet("patient"),
    _resnet("patient, 64 px", size=64),
    _resnet("patient, 128 px", size=128),
)  # fmt: skip
POOLED = "continued, frozen BatchNorm"
# Declared after the choice was made, so not candidates for it.
CELLS += tuple(replace(cell, name=f"{cell.name}, {pooling}", arm="", pooling=pooling, trained=cell.name)
               for cell in CELLS if cell.name == POOLED for pooling in POOLINGS)  # fmt: skip


def choose_cells(names: Sequence[str]) -> list[Cell]:
    """Return the named cells, or all cells if no name is given."""
    known = {cell.name: cell for cell in CELLS} | {cell.folder: cell for cell in CELLS}
    for name in names:
        if name not in known:
            raise InputError(f"--cells={name}: no such cell; available: {'; '.join(cell.folder for cell in CELLS)}")
    chosen = {known[name].name for name in names} or {cell.name for cell in CELLS}
    return [cell for cell in CELLS if cell.name in chosen]
