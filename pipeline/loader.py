"""two_view_loader and image_loader: the only place that chooses a backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.augmentation import Augmentation, ViewDevice, smallest_view_size
from pipeline.partners import Patients
from pipeline.sampler import Batch, BatchSampler, cut_into_batches
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.machine import cores
from shard.manifest import Manifest

Backend = Literal["dali", "torchvision"]
ViewBackend = Literal["dali-fused", "dali-stock", "torchvision"]
Views = tuple[torch.Tensor, torch.Tensor]

# A core makes 1,000 to 2,500 images/s (two 224 px views of a 390×320 JPEG each), and an H100 trains a ResNet-50, we
# estimate, on about 1,400; python -m bench.io says what they are on your machine.
CORES_THAT_FEED_A_GPU = 4


class ViewLoader:
    """Two independently drawn views of each image, every image at most once an epoch.

    Iterated, it gives the batches that are left of the epoch it stands in, at first all: (view1, view2), each
    [B, 1, S, S] on the device. An epoch has images // (batch_size · world) of them on every rank; those left out are
    others each epoch. A sample's views depend on seed, epoch and sample alone.
    """

    def __init__(
        self, sampler: BatchSampler, start: Callable[[Iterator[Batch]], Iterator[Views]], fingerprint: dict[str, Any],
        key: Callable[[int], str], patients: Patients,
    ) -> None:  # fmt: skip
        """start: batches → their views. fingerprint: settings that must be equal for a state to be loaded."""
        self._sampler, self._start, self._fingerprint = sampler, start, fingerprint
        self._key, self._patients = key, patients
        self._epoch, self._step = 0, 0
        self._views: Iterator[Views] | None = None

    def __len__(self) -> int:
        """Batches in a whole epoch, the same on every rank."""
        return self._sampler.steps

    def __iter__(self) -> Iterator[Views]:
        if self._views is None:
            self._views = self._start(self._sampler.batches(self._epoch, self._step))
        epoch, views = self._epoch, self._views
        while self._epoch == epoch and views is self._views:
            made = next(views)
            self._step += 1
            if self._step == len(self):
                self._epoch, self._step = epoch + 1, 0
            yield made

    def keys(self, epoch: int, step: int) -> list[str]:
        """The keys of the images of a step, on all ranks."""
        return [self._key(number) for number in self._samples(epoch, step).tolist()]

    def patients(self, epoch: int, step: int) -> torch.Tensor:
        """A number for the patient of each image of a step, on all ranks: [B · world] int64."""
        return torch.from_numpy(self._patients.numbers[self._samples(epoch, step)])

    def paired(self, *, in_shard: bool) -> int:
        """Count the images whose patient has another image in the split or, with in_shard, in the same shard."""
        return self._patients.paired(in_shard=in_shard)

    def _samples(self, epoch: int, step: int) -> Any:
        joint = replace(self._sampler, batch_size=self._sampler.batch_size * self._sampler.world, rank=0, world=1)
        return next(joint.batches(epoch, step)).indices

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: after the last batch it gave."""
        return {"epoch": self._epoch, "step": self._step, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken: on a CPU, the batches that follow are the same bit for bit.

        Raises InputError where the state is of other shards or settings; between epochs the ranks may be others.
        """
        then = state.get("fingerprint", {})  # earlier versions made none
        differing = [f"{name} {then.get(name)} there, {now} here" for name, now in self._fingerprint.items()
                     if then.get(name) != now and not (name == "ranks" and state["step"] == 0)]  # fmt: skip
        if differing:
            raise InputError(f"the loader's state is of other batches: {'; '.join(differing)}; go on with the settings "
                             "it was made with, or start anew")  # fmt: skip
        self._epoch, self._step, self._views = state["epoch"], state["step"], None


class ImageLoader:
    """Every image of a split once, in the order of the shards: [B, 1, S, S] float32 on the device, the last B short."""

    def __init__(self, batches: list[Batch], start: Callable[[Iterator[Batch]], Iterator[torch.Tensor]]) -> None:
        self._batches, self._start = batches, start

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self._start(iter(self._batches))


def two_view_loader(
    backend: Backend, folder: Path, manifest: Manifest, augmentation: Augmentation, *, split: str = "train",
    batch_size: int,
    device: torch.device, views: ViewDevice = "auto", half: bool = False, workers: int = 0, seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> ViewLoader:  # fmt: skip
    """A loader of two views of each image, as `augmentation` draws them.

    dali makes them on the GPU by stock operators, or on the CPU by the fused operator: where views says; "auto" is
    settled by choose_views. half: float16, which torchvision does not make. workers: threads or processes, 0 for one
    a core. Raises InputError where the split is smaller than a batch on every rank or the backend can't be had.
    """
    images = manifest.images(split)
    if images < batch_size * world:
        ranks = f" on {world} ranks" if world > 1 else ""
        raise InputError(f"--batch-size={batch_size}: {folder} has {images} images in split {split!r}, fewer than a "
                         f"batch{ranks}; lower it to {max(1, images // world)} or less")  # fmt: skip
    workers = workers or cores()
    where = choose_views(views, backend, device, workers)[0]
    maker: ViewBackend = "torchvision" if backend == "torchvision" else "dali-fused" if where == "cpu" else "dali-stock"
    sampler = BatchSampler(tuple(shard.samples for shard in manifest.of_split(split)), batch_size, seed, rank, world)
    fingerprint = {"shards": manifest.fingerprint(), "split": split, "augmentation": asdict(augmentation),
                   "backend": maker,
                   "views": where, "batch_size": batch_size * world, "ranks": world, "half": half,
                   "seed": seed}  # fmt: skip
    fetcher = Fetcher(folder, manifest, split)
    patients = Patients(folder, manifest, split)
    if augmentation.patient_positive:
        patients.check(augmentation.patient_positive)
    start = partial(make_views, maker, fetcher, augmentation=augmentation, seed=seed, device=device, workers=workers,
                    half=half,
                    patients=patients)  # fmt: skip
    return ViewLoader(sampler, start, fingerprint, fetcher.key, patients)


def make_views(
    maker: ViewBackend, fetcher: Fetcher, batches: Iterable[Batch], *, augmentation: Augmentation, seed: int,
    device: torch.device,
    workers: int, half: bool = False, patients: Patients | None = None,
) -> Iterator[Views]:  # fmt: skip
    """Both views of each batch's images: dali-fused and torchvision on the CPU, dali-stock on the device.

    patients: of the split, where the augmentation takes second views from partners.
    """
    if augmentation.patient_positive:
        assert patients is not None
        batches = map(partial(patients.pair, augmentation.patient_positive, seed), batches)
    if augmentation.size < (least := smallest_view_size(augmentation)):
        raise InputError(f"--size={augmentation.size}: views want at least {least} pixels a side")
    if maker == "torchvision":
        if half:
            raise InputError("half: torchvision makes float32 alone; use backend 'dali'")
        from pipeline import torchvision_views  # torchvision takes a second: DALI's users need not wait for it

        return torchvision_views.view_batches(fetcher, batches, augmentation, seed=seed, device=device, workers=workers)
    made: Iterator[Views] = _dali().view_batches(fetcher, batches, augmentation, seed=seed, device=device,
                                                 fused=maker == "dali-fused", threads=workers, half=half)  # fmt: skip
    return made


def choose_views(views: ViewDevice, backend: Backend, device: torch.device, workers: int) -> tuple[ViewDevice, str]:
    """Where views are made, "cpu" or "gpu", and why. Raises InputError where they can't be made on the GPU."""
    if views == "gpu" and (backend == "torchvision" or device.type != "cuda"):
        missing = "a GPU to train on" if backend == "dali" else "--dali"
        raise InputError(f"--views=gpu: wants {missing}; use --views=cpu")
    if views != "auto":
        return views, f"--views={views}"
    if device.type != "cuda":
        return "cpu", "there is no GPU to make them on"
    if backend == "torchvision":
        return "cpu", "torchvision makes them there; --dali is many times as fast"
    if workers >= CORES_THAT_FEED_A_GPU:
        return "cpu", f"{workers} cores feed the GPU, which then only trains"
    return "gpu", f"{workers} cores might keep the GPU waiting; it takes {CORES_THAT_FEED_A_GPU}"


def decode_batches(
    fetcher: Fetcher, batches: Iterable[Batch], *, device: torch.device, threads: int
) -> Iterator[int]:
    """Batches read and decoded by DALI and nothing else, as how many images each has: the limit of every loader."""
    counts: Iterator[int] = _dali().decode_batches(fetcher, batches, device=device, threads=threads)
    return counts


def image_loader(
    backend: Backend, folder: Path, manifest: Manifest, *, split: str, size: int, mean: float, std: float,
    batch_size: int, device: torch.device, workers: int = 0, samples: Sequence[int] | None = None,
    interpolation: str = "bilinear",
) -> ImageLoader:  # fmt: skip
    """A loader of whole images resized to size × size and normalised, in the order of shard.read.read_labels.

    samples: the numbers of those wanted, in the order wanted; None for all. interpolation: bilinear or bicubic.
    """
    if backend == "dali":
        make = _dali().image_batches
    else:
        from pipeline import torchvision_views  # as above

        make = torchvision_views.image_batches
    start = partial(make, Fetcher(folder, manifest, split), size=size, mean=mean, std=std, device=device,
                    workers=workers or cores(), interpolation=interpolation)  # fmt: skip
    wanted = range(manifest.images(split)) if samples is None else samples
    return ImageLoader(cut_into_batches(wanted, batch_size), start)


def default_backend() -> Backend:
    """DALI where it is installed, for who has no reason to choose."""
    return "dali" if has_dali() else "torchvision"


def has_dali() -> bool:
    """Whether DALI is installed here."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def _dali() -> Any:
    """pipeline.dali, imported only where it is asked for: it takes a second, and is not to be had everywhere."""
    if not has_dali():
        raise InputError("--dali: NVIDIA DALI is not installed; pip install nvidia-dali-cuda120 (Linux only), "
                         "or leave --dali out to use torchvision")
    from pipeline import dali

    return dali
