"""Images → frozen features, deterministic, one row an image in the order of the shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.loader import has_dali, image_loader
from shard.manifest import Manifest

Features = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def extract_features(
    modules: Sequence[nn.Module], shards: Path, manifest: Manifest, splits: Sequence[str], *, size: int, mean: float,
    std: float, batch_size: int, device: torch.device, workers: int,
) -> list[Features]:  # fmt: skip
    """Features of every image of the splits under each encoder: a list of [N, F] float32, in float32 throughout.

    Row i belongs to row i of shard.read.read_labels(shards, manifest, splits). Images are resized whole to
    size × size: a centre crop would cut the costophrenic angles off.
    """
    for module in modules:
        module.to(device).eval()
    rows: list[list[torch.Tensor]] = [[] for _ in modules]
    total = sum(manifest.images(split) for split in splits)
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with exact, torch.inference_mode(), tqdm(total=total, desc="features", unit=" images", disable=None) as bar:
        for split in splits:
            loader = image_loader(
                "dali" if has_dali() else "torchvision", shards, manifest, split=split, size=size, mean=mean, std=std,
                batch_size=batch_size, device=device, workers=workers,
            )  # fmt: skip
            for batch in loader:
                for module, kept in zip(modules, rows, strict=True):
                    kept.append(module(batch).float().cpu())
                bar.update(len(batch))
    features = [torch.cat(kept).numpy() for kept in rows]
    assert all(len(matrix) == total for matrix in features), (total, [len(matrix) for matrix in features])
    return features
