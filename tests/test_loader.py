"""The loaders with every backend: complete epochs, equal batches, and resuming."""

from __future__ import annotations

import dataclasses
import gc
import json
import multiprocessing
import shutil
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from pipeline import torchvision_views
from pipeline.augmentation import Augmentation
from pipeline.loader import ViewLoader, choose_view_device, has_dali, image_loader, make_views, two_view_loader
from pipeline.partners import Patients
from pipeline.sampler import BatchSampler
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.manifest import read_manifest
from tests.conftest import DALI, SMALL, Shards, run_module
from tests.test_fetch import first_tar, flip_bit, middle_of

CPU = torch.device("cpu")
VIEW_BACKENDS = ["torchvision", *(["dali-fused", "dali-stock"] if has_dali() else [])]
BACKENDS: list[Any] = ["torchvision", *(["dali"] if has_dali() else [])]
# Views equal the raw images, so that their bytes identify them.
IDENTITY = Augmentation(size=96, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_probability=0, blur_probability=0,
                        brightness=0, contrast=0, mean=0.0, std=1 / 255)  # fmt: skip


def loader_of(shards: Shards, backend: str, **settings: Any) -> ViewLoader:
    """A loader that computes views with the given backend. two_view_loader chooses dali-stock on a GPU only."""
    settings = {"augmentation": Augmentation(size=16), "batch_size": 16, "workers": 1, **settings}
    loader = two_view_loader("torchvision" if backend == "torchvision" else "dali", shards.folder, shards.manifest,
                             device=CPU, **settings)  # fmt: skip
    if backend != "dali-stock":
        return loader
    fetcher, patients = (kind(shards.folder, shards.manifest, "train") for kind in (Fetcher, Patients))
    sampler = BatchSampler(shards.manifest.shard_sizes("train"), settings["batch_size"], settings.get("seed", 0),
                           settings.get("rank", 0), settings.get("world", 1))  # fmt: skip
    views = partial(make_views, "dali-stock", fetcher, augmentation=settings["augmentation"], device=CPU,
                    seed=settings.get("seed", 0), workers=settings["workers"], patients=patients)  # fmt: skip
    return ViewLoader(sampler, views, loader.state_dict()["fingerprint"], fetcher.key, patients)


def epoch_of(loader: Any) -> torch.Tensor:
    """The rest of the epoch, [N, 2, 1, S, S]."""
    return torch.cat([torch.stack(batch, 1) for batch in loader])


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
@pytest.mark.parametrize(("world", "batch_size"), [(1, 16), (2, 7), (3, 16), (8, 4)])
def test_epoch_yields_each_image_at_most_once_over_all_ranks(
    raw_shards: Shards, backend: str, world: int, batch_size: int
) -> None:
    images = raw_shards.manifest.images("train")
    fetcher = Fetcher(raw_shards.folder, raw_shards.manifest, "train")
    known = {fetcher.read(index) for index in range(images)}
    assert len(known) == images and images % (world * batch_size)
    loaders = [loader_of(raw_shards, backend, rank=rank, world=world, batch_size=batch_size, augmentation=IDENTITY)
               for rank in range(world)]  # fmt: skip
    dropped = []
    for _ in range(4):
        epochs = [list(loader) for loader in loaders]
        assert {len(epoch) for epoch in epochs} == {len(loader) for loader in loaders} == {
            images // (batch_size * world)}  # fmt: skip
        views = torch.cat([view1 for epoch in epochs for view1, _ in epoch])
        seen = [view.round().to(torch.uint8).numpy().tobytes() for view in views]
        assert len(seen) == len(set(seen)) and set(seen) <= known
        assert images - len(seen) <= batch_size * world - 1
        dropped.append(frozenset(known - set(seen)))
    assert len(set(dropped)) > 1


def test_all_backends_yield_equal_views_in_equal_order(shards: Shards) -> None:
    """They may differ by rounding only."""
    augmentation = Augmentation(size=48, mean=0.4, std=0.2)
    first, *others = [epoch_of(loader_of(shards, backend, augmentation=augmentation, seed=5))
                      for backend in VIEW_BACKENDS]  # fmt: skip
    for other in others:
        assert first.shape == other.shape and (first - other).abs().max() * 0.2 * 255 < 0.05


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_batches_depend_on_seed_and_epoch_but_not_on_workers(shards: Shards, backend: str) -> None:
    loader, other = loader_of(shards, backend, workers=1), loader_of(shards, backend, workers=2)
    first, second = epoch_of(loader), epoch_of(loader)
    assert torch.equal(epoch_of(other), first) and torch.equal(epoch_of(other), second)
    assert not torch.equal(first, second)
    assert not torch.equal(epoch_of(loader_of(shards, backend, seed=1)), first)
    assert (first[:, 0] != first[:, 1]).flatten(1).any(1).all()
    assert len(first) == len(loader) * 16 == shards.manifest.images("train") // 16 * 16


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_views_of_an_image_depend_on_neither_batch_size_nor_ranks(shards: Shards, backend: str) -> None:
    def views(batch_size: int, rank: int, world: int) -> set[bytes]:
        loader = loader_of(shards, backend, batch_size=batch_size, rank=rank, world=world, seed=3)
        return {pair.numpy().tobytes() for pair in epoch_of(loader)}

    single = views(1, 0, 1)
    assert len(single) == shards.manifest.images("train")
    parts = [views(7, rank, 2) for rank in range(2)]
    assert parts[0] < single and parts[1] < single and not parts[0] & parts[1]


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_loader_resumes_bit_for_bit_from_any_step(shards: Shards, backend: str) -> None:
    loader = loader_of(shards, backend, batch_size=8)
    states, batches = [json.loads(json.dumps(loader.state_dict(), default=list))], []
    for _ in range(2):
        for view1, view2 in loader:
            batches.append(torch.stack([view1, view2]))
            states.append(loader.state_dict())
    assert len(batches) == 2 * len(loader) and (states[-1]["epoch"], states[-1]["step"]) == (2, 0)
    for done in (1, len(loader) - 1, len(loader), len(loader) + 3):
        other = loader_of(shards, backend, batch_size=8, workers=2)
        next(iter(other))  # a loader that is already in use
        other.load_state_dict(states[done])
        rest = [torch.stack(views) for views in other]  # of the epoch
        assert len(rest) == len(loader) - done % len(loader)
        assert all(map(torch.equal, rest, batches[done:]))
        assert other.state_dict()["step"] == 0


def test_iterating_again_continues_the_current_epoch(shards: Shards) -> None:
    epoch = list(loader_of(shards, "torchvision", batch_size=8))
    loader = loader_of(shards, "torchvision", batch_size=8)
    start = list(islice(loader, 3))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(start + list(loader), epoch, strict=True))


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [({"seed": 1}, "seed was 0, is 1"), ({"batch_size": 8}, "batch_size was 16, is 8"),
     ({"augmentation": Augmentation(size=17)}, "augmentation was .*'size': 16.*, is .*'size': 17"),
     ({"world": 2}, "ranks was 1, is 2")],
)  # fmt: skip
def test_load_state_dict_refuses_other_settings(shards: Shards, backend: str, changed: Any, message: str) -> None:
    loader = loader_of(shards, backend)
    next(iter(loader))
    with pytest.raises(InputError, match=message):
        loader_of(shards, backend, **changed).load_state_dict(loader.state_dict())


def test_load_state_dict_refuses_other_shards_and_backends(shards: Shards, raw_shards: Shards) -> None:
    state = loader_of(shards, "torchvision").state_dict()
    with pytest.raises(InputError, match=r"shards was \w+, is \w+"):
        loader_of(raw_shards, "torchvision").load_state_dict(state)
    if has_dali():
        with pytest.raises(InputError, match="backend was torchvision, is dali-fused"):
            loader_of(shards, "dali-fused").load_state_dict(state)


def test_killed_worker_raises_input_error_where_its_batch_is_awaited(shards: Shards) -> None:
    """The kernel kills workers when memory runs out. PyTorch's signal handler would raise anywhere in the process."""
    before = set(psutil.Process().children())
    batches = iter(loader_of(shards, "torchvision", batch_size=4))
    next(batches)
    (worker,) = set(psutil.Process().children()) - before
    worker.kill()
    time.sleep(0.5)
    with pytest.raises(InputError, match=r"a worker process died .*; lower --workers=1"):
        for _ in range(100):
            next(batches)


def test_workers_of_a_spawned_process_exit_silently(shards: Shards, capfd: pytest.CaptureFixture[str]) -> None:
    """The benchmarks spawn processes. Workers that are spawned by those would abort with a message."""
    process = multiprocessing.get_context("spawn").Process(target=_start_and_drop, args=(shards.folder,))
    process.start()
    process.join(120)
    assert process.exitcode == 0 and "terminate" not in capfd.readouterr().err


def _start_and_drop(folder: Path) -> None:
    shards = Shards(folder, read_manifest(folder))
    for _ in range(5):  # spawned workers aborted in one of three attempts
        loader = loader_of(shards, "torchvision", augmentation=Augmentation(size=32), workers=2)
        next(iter(loader))
        del loader
        gc.collect()


@pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")
def test_workers_do_not_collect_garbage_of_the_parent_process(shards: Shards) -> None:
    """Collecting a forked copy of a dropped DALI pipeline would block the worker forever."""
    gc.disable()
    try:
        for seed in range(3):
            next(iter(loader_of(shards, "dali-fused", seed=seed)))
        fetcher = Fetcher(shards.folder, shards.manifest, "train")
        results = torchvision_views.map_in_workers(_collect, fetcher, BatchSampler((40,), 4).batches(0, 0), 1)
        assert [next(results) for _ in range(5)] == [0] * 5
    finally:
        gc.enable()


def _collect(batch: Any) -> int:
    gc.collect()
    return 0


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_resuming_at_an_epoch_with_other_ranks_yields_equal_joint_batches(shards: Shards, backend: str) -> None:
    single = loader_of(shards, backend, batch_size=16)
    epoch_of(single)
    state, expected = single.state_dict(), list(single)
    ranks = [loader_of(shards, backend, batch_size=8, rank=rank, world=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    for (view1, view2), *parts in zip(expected, *ranks, strict=True):
        assert torch.equal(view1, torch.cat([part[0] for part in parts]))
        assert torch.equal(view2, torch.cat([part[1] for part in parts]))


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_yielded_batches_are_not_overwritten(shards: Shards, backend: str) -> None:
    loader = loader_of(shards, backend, batch_size=8)
    kept = [(view1, view1.clone()) for _ in range(3) for view1, _ in loader]
    assert all(torch.equal(view, copy) for view, copy in kept)


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
@pytest.mark.parametrize("damage", ["flipped", "truncated", "deleted"])
def test_shard_damaged_between_epochs_raises_input_error_naming_tar_and_key(
    shards: Shards, tmp_path: Path, backend: str, damage: str
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards.folder, folder)
    copied = Shards(folder, read_manifest(folder))
    loader, tar = loader_of(copied, backend, batch_size=8), first_tar(copied)
    epoch_of(loader)
    if damage == "flipped":
        flip_bit(tar, middle_of(copied, 7))
    elif damage == "truncated":
        with tar.open("r+b") as file:
            file.truncate(middle_of(copied, 7))
    else:
        tar.unlink()
    reason = {"flipped": "its bytes have changed", "truncated": "ends at", "deleted": "No such file"}[damage]
    with pytest.raises(InputError, match=rf"^{tar}, image \w+: {reason}.*put back the shards"):
        for _ in range(4):  # prefetched batches are still intact
            epoch_of(loader)


def test_train_command_reports_a_corrupt_shard_in_one_line(shards: Shards, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards.folder, folder)
    copied = Shards(folder, read_manifest(folder))
    flip_bit(first_tar(copied), middle_of(copied, 7))
    done = run_module("train", f"--shards={folder}", f"--out={tmp_path / 'run'}", "--epochs=1", DALI, *SMALL)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "its bytes have changed" in last and "put back the shards" in last


def test_memory_does_not_grow_over_epochs(shards: Shards) -> None:
    """Within 5 % over twenty epochs."""
    backend = "dali-fused" if has_dali() else "torchvision"
    loader = loader_of(shards, backend, batch_size=8, augmentation=Augmentation(size=64), workers=2)

    def after(epochs: int) -> int:
        for _ in range(epochs):
            epoch_of(loader)
        return psutil.Process().memory_info().rss

    before = after(10)
    assert after(20) < 1.05 * before


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_view_loader_refuses_a_batch_larger_than_the_split(shards: Shards, backend: Any) -> None:
    images = shards.manifest.images("train")
    with pytest.raises(InputError, match=rf"--batch-size={images}: .* on 2 ranks; lower it to {images // 2} or less"):
        two_view_loader(backend, shards.folder, shards.manifest, Augmentation(size=16), batch_size=images, device=CPU,
                        world=2)  # fmt: skip


def test_choose_view_device_gives_device_and_reason() -> None:
    cuda = torch.device("cuda")
    assert choose_view_device(None, "dali", CPU) == ("cpu", "training runs on the CPU")
    view_device, reason = choose_view_device(None, "dali", cuda)
    assert view_device == "gpu" and "DALI" in reason
    assert choose_view_device("cpu", "dali", cuda)[0] == "cpu"
    assert choose_view_device("gpu", "dali", cuda)[0] == "gpu"
    assert choose_view_device(None, "torchvision", cuda)[0] == "cpu"
    with pytest.raises(InputError, match="--views=gpu: needs a GPU to train on"):
        choose_view_device("gpu", "dali", CPU)
    with pytest.raises(InputError, match="--views=gpu: needs --dali"):
        choose_view_device("gpu", "torchvision", cuda)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_image_loader_yields_each_image_once_in_index_order(
    shards: Shards, raw_shards: Shards, encoding: str
) -> None:
    encoded = shards if encoding == "jpeg" else raw_shards

    def load(backend: Any, workers: int) -> torch.Tensor:
        loader = image_loader(backend, encoded.folder, encoded.manifest, split="train", size=48, mean=0.4, std=0.2,
                              batch_size=13, device=CPU, workers=workers)  # fmt: skip
        images = torch.cat(list(loader))
        assert len(loader) == -(-len(images) // 13) and torch.equal(torch.cat(list(loader)), images)
        return images

    fetcher = Fetcher(encoded.folder, encoded.manifest, "train")
    means = [torchvision_views.decode(fetcher, index).mean() for index in range(len(fetcher))]
    for backend in BACKENDS:
        images = load(backend, 2)
        assert images.shape == (len(fetcher), 1, 48, 48)
        assert (images.mean((1, 2, 3)) * 0.2 + 0.4 - torch.stack(means)).abs().max() < 0.01
        assert (images - load("torchvision", 1)).abs().max() * 0.2 * 255 < 0.05


@pytest.mark.parametrize("size", [32, 96, 150])  # smaller than, equal to and larger than the images
def test_bicubic_image_loader_equals_pillow(shards: Shards, size: int) -> None:
    """On float images; on 8-bit images Pillow rounds between its two passes."""
    fetcher = Fetcher(shards.folder, shards.manifest, "train")
    expected = []
    for index in range(5):
        pixels = Image.fromarray((torchvision_views.decode(fetcher, index)[0] * 255).numpy())
        expected.append(np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255))
    for backend in BACKENDS:
        loader = image_loader(backend, shards.folder, shards.manifest, split="train", size=size, mean=0.0, std=1 / 255,
                              batch_size=5, device=CPU, workers=1, interpolation="bicubic",
                              samples=range(5))  # fmt: skip
        found = next(iter(loader)).numpy()[:, 0]
        assert np.abs(found - np.stack(expected)).max() < 0.15, backend  # DALI tabulates the kernel


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_size", [5, 40, 50, 1000])
def test_image_loader_with_more_workers_than_batches_yields_all_images(
    shards: Shards, backend: Any, batch_size: int
) -> None:
    def load(batch_size: int, workers: int) -> torch.Tensor:
        return torch.cat(list(image_loader(backend, shards.folder, shards.manifest, split="train", size=32, mean=0.0,
                                           std=1.0, batch_size=batch_size, device=CPU, workers=workers)))  # fmt: skip

    assert torch.equal(load(batch_size, 4 if backend == "dali" else 2), load(8, 1))


def test_loader_length_comes_from_the_manifest(shards: Shards) -> None:
    thousand = dataclasses.replace(
        shards.manifest, shards=tuple(dataclasses.replace(part, samples=1000) for part in shards.manifest.shards)
    )
    loader = two_view_loader("torchvision", shards.folder, thousand, Augmentation(), batch_size=64, device=CPU, world=3)
    images = 1000 * len(thousand.of_split("train"))
    assert len(loader) == images // 192 == BatchSampler((images,), 64, world=3).steps
