"""A PNG of view pairs: what the network sees of a radiograph, by each backend."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import get_args

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from pipeline import torchvision_views
from pipeline.augmentation import Augmentation, View
from pipeline.loader import ViewBackend, has_dali, make_views
from pipeline.partners import Patients
from pipeline.sampler import Batch
from shard.cli import check_numbers
from shard.fetch import Fetcher
from shard.files import write_bytes
from shard.manifest import read_manifest


def preview(shards: Path, *, out: Path = Path("views.png"), images: int = 6, size: int = 224, seed: int = 0,
            patient_positive: float = 0.0) -> None:  # fmt: skip
    """Draw rows of image, view 1, view 2 by each backend from the training split of SHARDS, and print the parameters.

    The views are those of the first epoch of a run of the published recipe with this seed. Each backend makes them by
    the same numbers: what differs between them is rounding. With --patient-positive=p, view 2 is often of another
    image of the patient.
    """
    check_numbers(images=(images, 1, 64), size=(size, 16, 2048), seed=(seed, 0, 2**63 - 1),
                  patient_positive=(patient_positive, 0, 1))  # fmt: skip
    content, said = draw_preview(shards, Augmentation(size=size, patient_positive=patient_positive), images=images,
                                 seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)
    print("\n".join([*said, f"{out} written"]))


def draw_preview(shards: Path, augmentation: Augmentation, *, images: int, seed: int) -> tuple[bytes, list[str]]:
    """The PNG, and what it shows in words: a line a view, and one on all. Raises InputError as the loader does."""
    manifest, patient_positive = read_manifest(shards), augmentation.patient_positive
    augmentation = replace(augmentation, mean=0.0, std=1.0)  # shown as grey levels, so nothing is taken out
    fetcher, patients = Fetcher(shards, manifest, "train"), Patients(shards, manifest, "train")
    numbers = np.random.default_rng(seed).permutation(len(fetcher))[:images]
    wanted, seconds = Batch(0, 0, numbers), numbers
    if patient_positive:
        patients.check(patient_positive)
        seconds = patients.pair(patient_positive, seed, wanted).view2_indices
    makers: list[ViewBackend] = [maker for maker in get_args(ViewBackend) if has_dali() or maker == "torchvision"]
    made = {maker: next(make_views(maker, fetcher, [wanted], augmentation=augmentation, seed=seed,
                                   device=torch.device("cpu"),
                                   workers=1, patients=patients)) for maker in makers}  # fmt: skip
    figure, axes = plt.subplots(len(numbers), 1 + 2 * len(makers), squeeze=False, layout="constrained",
                                figsize=(2.3 * (1 + 2 * len(makers)), 2.7 * len(numbers)))  # fmt: skip
    said = []
    for row, (line, number, second) in enumerate(zip(axes, numbers.tolist(), seconds.tolist(), strict=True)):
        image, other = (torchvision_views.decode(fetcher, one) for one in (number, second))
        key = fetcher.key(number)
        pictures = [(f"{key}\n{image.shape[2]}×{image.shape[1]}", image)]
        for view, parameters in enumerate(torchvision_views.draw(augmentation, seed, 0, number, image, other)):
            partner = f" (of {fetcher.key(second)})" if view and second != number else ""
            said.append(f"{key} view {view + 1}{partner}: {_describe(parameters)}")
            for maker in makers:
                title = f"view {view + 1}{', partner' * bool(partner)}, {maker}\n{_describe(parameters, short=True)}"
                pictures.append((title, made[maker][view][row]))
        for axis, (title, picture) in zip(line, pictures, strict=True):
            axis.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=6.5)
            axis.axis("off")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    plt.close(figure)
    return drawn.getvalue(), [*said, f"{len(numbers)} images with two views each by {', '.join(makers)}"]


def _describe(view: View, *, short: bool = False) -> str:
    crop = f"{view.width}×{view.height} at {view.left},{view.top}{', flipped' if view.flip else ''}"
    if short:
        return f"{crop}\nσ {view.sigma:.1f}, b {view.brightness:.2f}, c {view.contrast:.2f}"
    return f"crop {crop}, blur {view.sigma:.2f} px, brightness {view.brightness:.2f}, contrast {view.contrast:.2f}"
