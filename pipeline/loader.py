"""two_view_loader and image_loader; the only module that chooses a backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.augmentation import Augmentation, ViewDevice, smallest_view_size
from pipeline.fetch_ahead import with_tars_ahead
from pipeline.partners import Patients
from pipeline.sampler import Batch, BatchSampler, sequential_batches
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.machine import cores
from shard.manifest import Manifest

Backend = Literal["dali", "torchvision"]
ViewBackend = Literal["dali-fused", "dali-stock", "torchvision"]
Views = tuple[torch.Tensor, torch.Tensor]

class ViewLoader:
    """Yields two randomly augmented views of each image, (view1, view2), each [B, 1, S, S] on the device.

    Iterating it yields the remaining batches of the current epoch. An epoch has images // (batch_size · world) batches
    on every rank and contains each image at most once; the images it drops differ between epochs. The views of an
    image depend only on seed, epoch and index.
    """

    def __init__(
        self, sampler: BatchSampler, make_views: Callable[[Iterator[Batch]], Iterator[Views]],
        fingerprint: dict[str, Any], key: Callable[[int], str], patients: Patients,
    ) -> None:  # fmt: skip
        """make_views: batches → their views. fingerprint: settings that a loaded state must have been saved with."""
        self._sampler, self._make_views, self._fingerprint = sampler, make_views, fingerprint
        self._key, self._patients = key, patients
        self._epoch, self._step = 0, 0
        self._views: Iterator[Views] | None = None

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self._sampler.steps

    @property
    def views(self) -> ViewDevice:
        """Where views are computed."""
        device: ViewDevice = self._fingerprint["views"]
        return device

    def __iter__(self) -> Iterator[Views]:
        if self._views is None:
            self._views = self._make_views(self._sampler.batches(self._epoch, self._step))
        epoch, views = self._epoch, self._views
        while self._epoch == epoch and views is self._views:
            batch = next(views)
            self._step += 1
            if self._step == len(self):
                self._epoch, self._step = epoch + 1, 0
            yield batch

    def keys(self, epoch: int, step: int) -> list[str]:
        """Return the keys of the images of a step, over all ranks."""
        return [self._key(index) for index in self._indices(epoch, step).tolist()]

    def patients(self, epoch: int, step: int) -> torch.Tensor:
        """Return an integer patient ID for each image of a step, over all ranks, [B · world] int64."""
        return torch.from_numpy(self._patients.ids[self._indices(epoch, step)])

    def count_paired(self, *, in_shard: bool) -> int:
        """Count the images whose patient has another image in the split or, with in_shard, in the same shard."""
        return self._patients.count_paired(in_shard=in_shard)

    def _indices(self, epoch: int, step: int) -> Any:
        joint = replace(self._sampler, batch_size=self._sampler.batch_size * self._sampler.world, rank=0, world=1)
        return next(joint.batches(epoch, step)).indices

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was yielded, and the fingerprint."""
        return {"epoch": self._epoch, "step": self._step, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position: on a CPU, the following batches are the same bit for bit.

        Raises InputError if the state was saved with other shards or settings. The number of ranks may differ at the
        start of an epoch.
        """
        saved = state.get("fingerprint", {})  # absent in states of earlier versions
        differing = [f"{name} was {saved.get(name)}, is {value}" for name, value in self._fingerprint.items()
                     if saved.get(name) != value and not (name == "ranks" and state["step"] == 0)]  # fmt: skip
        if differing:
            raise InputError(f"the loader's state was saved with other settings: {'; '.join(differing)}; restore them, "
                             "or start from scratch")  # fmt: skip
        self._epoch, self._step, self._views = state["epoch"], state["step"], None


class ImageLoader:
    """Yields every image once, in order: [B, 1, S, S] float32 on the device; the last batch may be smaller."""

    def __init__(
        self, batches: list[Batch], load_images: Callable[[Iterator[Batch]], Iterator[torch.Tensor]]
    ) -> None:
        self._batches, self._load_images = batches, load_images

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self._load_images(iter(self._batches))


def two_view_loader(
    backend: Backend, folder: Path, manifest: Manifest, augmentation: Augmentation, *, split: str = "train",
    batch_size: int, device: torch.device, views: ViewDevice | None = None, half: bool = False, workers: int = 0,
    seed: int = 0, rank: int = 0, world: int = 1,
) -> ViewLoader:  # fmt: skip
    """Create a loader of two augmented views of each image.

    views: where DALI computes them, by stock operators on the GPU or the fused operator on the CPU; None for the
    default of choose_view_device. half: float16 views, DALI only. workers: threads or processes, 0 for one per core.
    Raises InputError if the split has fewer images than a joint batch of all ranks or the backend is unavailable.
    """
    images = manifest.images(split)
    if images < batch_size * world:
        ranks = f" on {world} ranks" if world > 1 else ""
        raise InputError(f"--batch-size={batch_size}: {folder} has {images} images in split {split!r}, fewer than a "
                         f"batch{ranks}; lower it to {max(1, images // world)} or less")  # fmt: skip
    workers = workers or cores()
    view_device = choose_view_device(views, backend, device)[0]
    view_backend: ViewBackend = (
        "torchvision" if backend == "torchvision" else "dali-fused" if view_device == "cpu" else "dali-stock"
    )
    sampler = BatchSampler(manifest.shard_sizes(split), batch_size, seed, rank, world)
    fingerprint = {"shards": manifest.fingerprint(), "split": split, "augmentation": asdict(augmentation),
                   "backend": view_backend, "views": view_device, "batch_size": batch_size * world, "ranks": world,
                   "half": half, "seed": seed}  # fmt: skip
    fetcher = Fetcher(folder, manifest, split)
    patients = Patients(folder, manifest, split)
    if augmentation.patient_positive:
        patients.check(augmentation.patient_positive)
    function = partial(make_views, view_backend, fetcher, augmentation=augmentation, seed=seed, device=device,
                       workers=workers, half=half, patients=patients)  # fmt: skip
    return ViewLoader(sampler, function, fingerprint, fetcher.key, patients)


def make_views(
    view_backend: ViewBackend, fetcher: Fetcher, batches: Iterable[Batch], *, augmentation: Augmentation, seed: int,
    device: torch.device, workers: int, half: bool = False, patients: Patients | None = None,
) -> Iterator[Views]:  # fmt: skip
    """Yield both views of each batch's images, on the device.

    dali-fused and torchvision compute them on the CPU, dali-stock on the device. patients: of the split; required if
    the augmentation has patient_positive.
    """
    if augmentation.patient_positive:
        assert patients is not None
        batches = map(partial(patients.pair, augmentation.patient_positive, seed), batches)
    batches = with_tars_ahead(fetcher, batches)
    if augmentation.size < (smallest := smallest_view_size(augmentation)):
        raise InputError(f"--size={augmentation.size}: too small for views; give {smallest} or more")
    if view_backend == "torchvision":
        if half:
            raise InputError("half: torchvision computes float32 only; use backend 'dali'")
        from pipeline import torchvision_views  # lazily: it takes a second, and the DALI backend does not need it

        return torchvision_views.view_batches(fetcher, batches, augmentation, seed=seed, device=device, workers=workers)
    views: Iterator[Views] = _dali().view_batches(
        fetcher, batches, augmentation, seed=seed, device=device, fused=view_backend == "dali-fused", threads=workers,
        half=half,
    )  # fmt: skip
    return views


def view_devices(backend: Backend, device: torch.device) -> tuple[ViewDevice, ...]:
    """List where views can be computed for training on `device`; the default is first."""
    return ("gpu", "cpu") if backend == "dali" and device.type == "cuda" else ("cpu",)


def choose_view_device(views: ViewDevice | None, backend: Backend, device: torch.device) -> tuple[ViewDevice, str]:
    """Return where views are computed, and the reason. views: where they should be; None for the default.

    Raises InputError if that is impossible.
    """
    possible = view_devices(backend, device)
    if views is not None and views not in possible:
        missing = "a GPU to train on" if backend == "dali" else "--dali"
        raise InputError(f"--views={views}: needs {missing}; use --views=cpu")
    if views is not None:
        return views, f"--views={views}"
    if "gpu" in possible:
        return "gpu", "the default with a GPU and DALI; --views=auto measures both ways"
    if device.type != "cuda":
        return "cpu", "training runs on the CPU"
    return "cpu", "torchvision runs on the CPU; --dali is many times faster"


def decode_batches(
    fetcher: Fetcher, batches: Iterable[Batch], *, device: torch.device, threads: int
) -> Iterator[int]:
    """Read and decode batches with DALI and yield their sizes; an upper bound on the speed of every loader."""
    batches = with_tars_ahead(fetcher, batches)
    sizes: Iterator[int] = _dali().decode_batches(fetcher, batches, device=device, threads=threads)
    return sizes


def image_loader(
    backend: Backend, folder: Path, manifest: Manifest, *, split: str, size: int, mean: float, std: float,
    batch_size: int, device: torch.device, workers: int = 0, samples: Sequence[int] | None = None,
    interpolation: str = "bilinear",
) -> ImageLoader:  # fmt: skip
    """Create a loader of uncropped images, resized to size × size and normalised.

    samples: indices of the images, in the order to load them, as in shard.read.read_labels; None for all.
    interpolation: bilinear or bicubic.
    """
    if backend == "dali":
        image_batches = _dali().image_batches
    else:
        from pipeline import torchvision_views  # lazily, as above

        image_batches = torchvision_views.image_batches
    fetcher = Fetcher(folder, manifest, split)
    function = partial(image_batches, fetcher, size=size, mean=mean, std=std, device=device,
                       workers=workers or cores(), interpolation=interpolation)  # fmt: skip
    indices = range(manifest.images(split)) if samples is None else samples
    batches = sequential_batches(indices, batch_size)
    return ImageLoader(batches, lambda batches: function(with_tars_ahead(fetcher, batches)))


def release_memory() -> None:
    """Free the memory that DALI keeps after its pipelines have been destroyed, on the GPU and pinned."""
    _dali().release_memory()


def default_backend() -> Backend:
    """Return "dali" if it is installed, else "torchvision"."""
    return "dali" if has_dali() else "torchvision"


def has_dali() -> bool:
    """Whether DALI is installed."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def _dali() -> Any:
    """Import pipeline.dali lazily: it takes a second and is not available on every platform."""
    if not has_dali():
        raise InputError("--dali: NVIDIA DALI is not installed; pip install nvidia-dali-cuda120 (Linux only), "
                         "or omit --dali to use torchvision")
    from pipeline import dali

    return dali
