"""How many images/s does each loader give, and how far is it from decoding alone?

python -m bench.io SHARDS. One image is two views. All rows read the same shards in the same run, a turn each a
round, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from bench.machine import describe_machine
from pipeline.loader import Backend, has_dali, two_view_loader
from pipeline.recipe import Recipe
from pipeline.reference import ShardImages
from shard.cli import run
from shard.errors import InputError
from shard.files import write_bytes
from shard.machine import cores
from shard.manifest import Manifest, read_manifest

PUBLISHED_RATE = 152  # images/s: 224,316 images × 100 epochs in 41 hours
Counts = Iterator[int]  # how many images each batch had


def bench(
    shards: Path, *, size: int = 224, batch_size: int = 64, workers: int = 0, rounds: int = 5, seconds: float = 2.0,
    json_out: Path = Path("bench-io.json"),
) -> None:  # fmt: skip
    """Print images/s of each loader that can run here and of decoding alone, and write them as JSON.

    Each row has a turn of SECONDS in each round, its start-up and first batches left out; median and range are over
    rounds. "published" is what the study ran: PIL in RGB, torchvision's transforms, DataLoader workers.
    """
    for name, value, low in (("rounds", rounds, 1), ("batch-size", batch_size, 1), ("size", size, 32),
                             ("workers", workers, 0)):  # fmt: skip
        if value < low:
            raise InputError(f"--{name}={value}: wants a number of at least {low}")
    if not seconds > 0:
        raise InputError(f"--seconds={seconds}: wants a number above 0")
    manifest = read_manifest(shards)
    if manifest.images("train") < batch_size:
        raise InputError(f"--batch-size={batch_size}: {shards} has {manifest.images('train')} images; lower it")
    json_out.parent.mkdir(parents=True, exist_ok=True)
    workers = workers or cores()
    recipe = Recipe(size=size, mean=manifest.pixel_mean, std=manifest.pixel_std)
    rows = _rows(shards, manifest, recipe, batch_size, workers)
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for _ in tqdm(range(rounds), desc="rounds", unit=" rounds", disable=None):
        for name, start in rows.items():
            rates[name].append(_measure(start(), seconds, workers))
    _report(rates, shards, manifest, size=size, batch_size=batch_size, workers=workers, json_out=json_out)


def _measure(batches: Counts, seconds: float, workers: int) -> float:
    """Images/s of one turn; the first batches, which start-up delays and prefetching hastens, are left out.

    Workers deliver in bursts of as many batches as there are workers, so only whole bursts are counted, two at least.
    """
    for _ in range(workers + 3):
        next(batches)
    images, bursts, begun = 0, 0, time.perf_counter()
    while time.perf_counter() - begun < seconds or bursts < 2:
        images += sum(next(batches) for _ in range(workers))
        bursts += 1
    return images / (time.perf_counter() - begun)


def _rows(
    shards: Path, manifest: Manifest, recipe: Recipe, batch_size: int, workers: int
) -> dict[str, Callable[[], Counts]]:
    """How to start each row."""

    def views(backend: Backend, device: str) -> Counts:
        """Our own loader, epoch after epoch."""
        loader = two_view_loader(backend, shards, manifest, recipe, batch_size=batch_size, device=torch.device(device),
                                 workers=workers)  # fmt: skip
        while True:
            for view1, _ in loader:
                yield len(view1)

    def decode(device: str) -> Counts:
        from pipeline.dali import decode_batches

        return decode_batches(shards, manifest, "train", batch_size=batch_size, device=torch.device(device),
                              threads=workers)  # fmt: skip

    def published() -> Counts:
        """The study's loader, epoch after epoch."""
        loader = DataLoader(_Published(ShardImages(shards, manifest, "train"), recipe), batch_size, shuffle=True,
                            num_workers=workers, drop_last=True)  # fmt: skip
        while True:
            for view1, _ in loader:
                yield len(view1)

    rows: dict[str, Callable[[], Counts]] = {}
    if has_dali():
        rows["decode"] = lambda: decode("cpu")
        rows["dali-stock"] = lambda: views("dali", "cpu")
        if torch.cuda.is_available():
            rows["decode-gpu"] = lambda: decode("cuda")
            rows["dali-gpu"] = lambda: views("dali", "cuda")
    rows["torchvision"] = lambda: views("torchvision", "cpu")
    if manifest.settings["encoding"] == "jpeg":
        rows["published"] = published
    return rows


class _Published(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The study's loader: each JPEG decoded by PIL to RGB and augmented twice by torchvision's transforms."""

    def __init__(self, images: ShardImages, recipe: Recipe) -> None:
        self._images = images
        self._augment = v2.Compose([
            v2.RandomResizedCrop(recipe.size, scale=recipe.crop_area, ratio=recipe.crop_ratio),
            v2.RandomHorizontalFlip(recipe.flip_probability),
            v2.RandomApply([v2.GaussianBlur(23, recipe.blur_sigma)], p=recipe.blur_probability),
            v2.ColorJitter(brightness=recipe.brightness, contrast=recipe.contrast),
            v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([recipe.mean] * 3, [recipe.std] * 3),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(io.BytesIO(self._images.content(number))).convert("RGB")
        return self._augment(image), self._augment(image)


def _report(rates: dict[str, list[float]], shards: Path, manifest: Manifest, json_out: Path, **settings: int) -> None:
    rows: list[dict[str, Any]] = []
    print(f"\n{shards}: {manifest.images('train')} training images, {settings}")
    print(f"{'row':14}{'images/s':>10}{'low':>9}{'high':>9}{'of decode':>11}{'× published 152/s':>19}")
    for name, values in rates.items():
        median = statistics.median(values)
        decode = rates.get("decode-gpu" if name.endswith("-gpu") else "decode")
        share = median / statistics.median(decode) if decode else None
        rows.append({"name": name, "images_per_s": {"median": median, "low": min(values), "high": max(values)},
                     "share_of_decode": share, "rounds": len(values)})  # fmt: skip
        shown = "n/a" if share is None else f"{share:.0%}"
        print(f"{name:14}{median:10.0f}{min(values):9.0f}{max(values):9.0f}{shown:>11}{median / PUBLISHED_RATE:18.1f}×")
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    content = {"machine": machine, "shards": manifest.fingerprint(), "settings": settings, "rows": rows}
    write_bytes(json_out, (json.dumps(content, indent=1) + "\n").encode())
    print(f"{json_out} written")


if __name__ == "__main__":
    run("python -m bench.io", bench)
