"""Plot image pairs as the network sees them, computed by each backend, into a PNG."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from pipeline.augmentation import Augmentation, View
from pipeline.loader import ViewBackend, has_dali, make_views
from pipeline.partners import Patients
from pipeline.sampler import Batch
from pipeline.torchvision_views import decode, sample_views
from shard.address import Place
from shard.cache import AS_SET, CacheFlags, open_shards
from shard.fetch import Fetcher
from shard.files import write_bytes
from shard.flags import SHARDS, Flag, validate_call
from shard.manifest import read_manifest


@validate_call
def preview(
    shards: Annotated[Place, SHARDS], *,
    out: Annotated[Path, Flag("PNG to write.", metavar="FILE")] = Path("views.png"),
    images: Annotated[int, Flag("Number of training images to show.", low=1, high=64)] = 6,
    size: Annotated[int, Flag("Side of a view in pixels.", low=16, high=2048)] = 224,
    seed: Annotated[int, Flag("Seed of the views, as in python -m train.", low=0, high=2**63 - 1)] = 0,
    patient_positive: Annotated[float, Flag("Probability that view 2 shows another image of the patient.",
                                            low=0, high=1)] = 0.0,
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Plot training images with two views of each from every backend, and print the parameters of the views.

    These are the views of the first epoch of the published recipe with this seed. The backends use the same
    parameters, so their views differ by rounding only.

        python -m pipeline preview shards --out=views.png
    """
    augmentation = Augmentation(size=size, patient_positive=patient_positive)
    png, lines = plot_preview(open_shards(shards, cache), augmentation, images=images, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, png)
    print("\n".join([*lines, f"{out} written"]))


def plot_preview(shards: Path, augmentation: Augmentation, *, images: int, seed: int) -> tuple[bytes, list[str]]:
    """Plot random training images and their views.

    Returns the PNG and its description: one line per view and a last one on all. Raises InputError as the loader does.
    """
    manifest, patient_positive = read_manifest(shards), augmentation.patient_positive
    augmentation = replace(augmentation, mean=0.0, std=1.0)  # plotted as grey levels, so not normalised
    fetcher, patients = Fetcher(shards, manifest, "train"), Patients(shards, manifest, "train")
    indices = np.random.default_rng(seed).permutation(len(fetcher))[:images]
    batch, view2_indices = Batch(0, 0, indices), indices
    if patient_positive:
        patients.check(patient_positive)
        view2_indices = patients.pair(patient_positive, seed, batch).view2_indices
    backends: list[ViewBackend] = [name for name in get_args(ViewBackend) if has_dali() or name == "torchvision"]
    views = {name: next(make_views(name, fetcher, [batch], augmentation=augmentation, seed=seed,
                                   device=torch.device("cpu"), workers=1, patients=patients))
             for name in backends}  # fmt: skip
    rows, lines = [], []
    for row, (index, view2_index) in enumerate(zip(indices.tolist(), view2_indices.tolist(), strict=True)):
        image1, image2 = decode(fetcher, index), decode(fetcher, view2_index)
        key = fetcher.key(index)
        panels = [(f"{key}\n{image1.shape[2]}×{image1.shape[1]}", image1)]
        for view, parameters in enumerate(sample_views(augmentation, seed, 0, index, image1, image2)):
            partner = f" (of {fetcher.key(view2_index)})" if view and view2_index != index else ""
            lines.append(f"{key} view {view + 1}{partner}: {_describe(parameters)}")
            for name in backends:
                title = f"view {view + 1}{', partner' * bool(partner)}, {name}\n{_describe(parameters, short=True)}"
                panels.append((title, views[name][view][row]))
        rows.append(panels)
    return _plot(rows), [*lines, f"{len(indices)} images with two views each by {', '.join(backends)}"]


def _plot(rows: list[list[tuple[str, torch.Tensor]]]) -> bytes:
    """Render rows of (title, image [1, H, W] in 0…1) as a PNG."""
    figure, axes = plt.subplots(len(rows), len(rows[0]), squeeze=False, layout="constrained",
                                figsize=(2.3 * len(rows[0]), 2.7 * len(rows)))  # fmt: skip
    for line, panels in zip(axes, rows, strict=True):
        for axis, (title, image) in zip(line, panels, strict=True):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=6.5)
            axis.axis("off")
    png = io.BytesIO()
    figure.savefig(png, dpi=110, format="png")
    plt.close(figure)
    return png.getvalue()


def _describe(view: View, *, short: bool = False) -> str:
    crop = f"{view.width}×{view.height} at {view.left},{view.top}{', flipped' if view.flip else ''}"
    if short:
        return f"{crop}\nσ {view.sigma:.1f}, b {view.brightness:.2f}, c {view.contrast:.2f}"
    return f"crop {crop}, blur {view.sigma:.2f} px, brightness {view.brightness:.2f}, contrast {view.contrast:.2f}"
