"""The folds of the recipe study: patients who are tested by encoders that never saw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from probe.fewshot import Rows
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.files import write_bytes
from shard.manifest import Manifest
from shard.progress import Progress
from shard.read import read_labels
from shard.write import build

FOLDS = 5
CHOOSING = "valid"  # its patients choose the recipe, and are never tested


def assign_folds(labels: pd.DataFrame, findings: tuple[str, ...], seed: int = 0) -> Rows:
    """Assign each image to the fold, 0 to FOLDS - 1, that tests its patient; -1 for patients who choose the recipe.

    Patients are dealt out by their rarest finding, in a random order, so that each fold gets as many of each.
    """
    patients = labels[labels["split"] != CHOOSING].groupby("patient")[[*findings]].max() == 1
    rarity = patients.sum().sort_values()
    names = [*rarity.index, "none"]
    rarest = patients[rarity.index].to_numpy().argmax(axis=1)
    rarest[~patients.any(axis=1).to_numpy()] = len(names) - 1
    order = np.random.default_rng(seed).permutation(len(patients))
    order = order[np.argsort(rarest[order], kind="stable")]
    fold = pd.Series(np.argsort(order) % FOLDS, patients.index)
    assigned: Rows = labels["patient"].map(fold).fillna(-1).astype(np.int64).to_numpy()
    return assigned


def fold_splits(labels: pd.DataFrame, folds: Rows, fold: int) -> pd.DataFrame:
    """Replace the splits: the patients of `fold` are test, all others train."""
    result: pd.DataFrame = labels.assign(split=np.where(folds == fold, "test", "train"))
    return result


def build_fold_shards(shards: Path, manifest: Manifest, folds: Rows, out: Path) -> list[Path]:
    """Write shards of each fold, whose training images are those of all other patients, and return their folders.

    They keep the pixels of the given JPEG shards. Shards that exist already are kept. Raises InputError for raw shards.
    """
    if manifest.settings["encoding"] != "jpeg":
        raise InputError(f"{shards}: contains raw images; the study copies JPEG shards: build them without "
                         "--encoding=raw")  # fmt: skip
    targets = [out / f"shards-{fold}" for fold in range(FOLDS)]
    if all((target / "manifest.json").exists() for target in targets):
        return targets
    images = out / "images"
    labels = read_labels(shards, manifest, tuple(manifest.counts))
    _export_images(shards, manifest, labels, images)
    for fold, target in enumerate(targets):
        table = fold_splits(labels, folds, fold)[["key", "patient", "split", *manifest.findings]]
        table.insert(0, "path", table["key"] + ".jpg")
        file = out / f"fold-{fold}.csv"
        write_bytes(file, table.to_csv(index=False).encode())
        build(images, target, dataset="csv", table=file, findings=",".join(manifest.findings),
              size=manifest.settings["size"], partners=manifest.settings["partners"],
              shard_size=manifest.settings["shard_size"])  # fmt: skip
    return targets


def _export_images(shards: Path, manifest: Manifest, labels: pd.DataFrame, folder: Path) -> None:
    """Write the JPEG of every image to KEY.jpg."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = iter(labels["key"])
    with Progress("copying images", len(labels)) as progress:
        for split in manifest.counts:
            fetcher = Fetcher(shards, manifest, split)
            for number in range(len(fetcher)):
                (folder / f"{next(keys)}.jpg").write_bytes(fetcher.read(number))
                progress.advance()
