"""What every loader promises, for each way to make views: audited epochs, the same batches, stopping and going on."""

from __future__ import annotations

import dataclasses
import gc
import json
import multiprocessing
import shutil
import time
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
from pipeline.loader import ViewLoader, choose_views, has_dali, image_loader, make_views, two_view_loader
from pipeline.sampler import BatchSampler
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.manifest import read_manifest
from tests.conftest import DALI, SMALL, Shards, run_module
from tests.test_fetch import first_tar, flip_byte, middle_of

CPU = torch.device("cpu")
MAKERS = ["torchvision", *(["dali-fused", "dali-stock"] if has_dali() else [])]
BACKENDS: list[Any] = ["torchvision", *(["dali"] if has_dali() else [])]
# With every augmentation off, a view is the image itself: its bytes say which it was.
OFF = Augmentation(size=96, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_probability=0, blur_probability=0,
                   brightness=0,
                   contrast=0, mean=0.0, std=1 / 255)  # fmt: skip


def loader_of(made: Shards, maker: str, **changed: Any) -> ViewLoader:
    """A loader of the given kind; dali-stock, which a loader chooses on a GPU alone, is put in on the CPU."""
    given: dict[str, Any] = {"augmentation": Augmentation(size=16), "batch_size": 16, "workers": 1, **changed}
    augmentation = given.pop("augmentation")
    backend: Any = "torchvision" if maker == "torchvision" else "dali"
    loader = two_view_loader(backend, made.folder, made.manifest, augmentation, device=CPU, **given)
    if maker == "dali-stock":
        fetcher = Fetcher(made.folder, made.manifest, "train")
        loader._start = lambda batches: make_views("dali-stock", fetcher, batches, augmentation=augmentation,
                                                   device=CPU,
                                                   seed=given.get("seed", 0), workers=given["workers"],
                                                   patients=loader._patients)  # fmt: skip
    return loader


def epoch_of(loader: Any) -> torch.Tensor:
    return torch.cat([torch.stack(batch, 1) for batch in loader])


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("world", "batch_size"), [(1, 16), (2, 7), (3, 16), (5, 3), (8, 4)])
def test_epochs_are_audited_over_ranks(raw_shards: Shards, maker: str, world: int, batch_size: int) -> None:
    images = raw_shards.manifest.images("train")
    fetcher = Fetcher(raw_shards.folder, raw_shards.manifest, "train")
    known = {fetcher.read(number) for number in range(images)}
    assert len(known) == images and images % (world * batch_size)
    loaders = [loader_of(raw_shards, maker, rank=rank, world=world, batch_size=batch_size, augmentation=OFF)
               for rank in range(world)]  # fmt: skip
    left_out = []
    for _ in range(4):
        epochs = [list(loader) for loader in loaders]
        assert {len(epoch) for epoch in epochs} == {len(loader) for loader in loaders} == {
            images // (batch_size * world)}  # fmt: skip
        views = torch.cat([view1 for epoch in epochs for view1, _ in epoch])
        seen = [view.round().to(torch.uint8).numpy().tobytes() for view in views]
        assert len(seen) == len(set(seen)) and set(seen) <= known
        assert images - len(seen) <= batch_size * world - 1
        left_out.append(frozenset(known - set(seen)))
    assert len(set(left_out)) > 1


def test_every_maker_shows_the_same_views_in_the_same_order(shards: Shards) -> None:
    """Their arithmetic differs by rounding, and by nothing else: not by what is drawn, nor by the order."""
    augmentation = Augmentation(size=48, mean=0.4, std=0.2)
    first, *others = [epoch_of(loader_of(shards, maker, augmentation=augmentation, seed=5)) for maker in MAKERS]
    for other in others:
        assert first.shape == other.shape and (first - other).abs().max() * 0.2 * 255 < 0.05


@pytest.mark.parametrize("maker", MAKERS)
def test_same_seed_same_batches_whatever_the_workers_and_all_else_differs(shards: Shards, maker: str) -> None:
    loader, twin = loader_of(shards, maker, workers=1), loader_of(shards, maker, workers=2)
    first, second = epoch_of(loader), epoch_of(loader)
    assert torch.equal(epoch_of(twin), first) and torch.equal(epoch_of(twin), second)
    assert not torch.equal(first, second)
    assert not torch.equal(epoch_of(loader_of(shards, maker, seed=1)), first)
    assert (first[:, 0] != first[:, 1]).flatten(1).any(1).all()
    assert len(first) == len(loader) * 16 == shards.manifest.images("train") // 16 * 16


@pytest.mark.parametrize("maker", MAKERS)
def test_a_sample_gets_the_same_views_whatever_the_batch_and_the_ranks(shards: Shards, maker: str) -> None:
    def views(batch_size: int, rank: int, world: int) -> set[bytes]:
        loader = loader_of(shards, maker, batch_size=batch_size, rank=rank, world=world, seed=3)
        return {pair.numpy().tobytes() for pair in epoch_of(loader)}

    one = views(1, 0, 1)
    assert len(one) == shards.manifest.images("train")
    parts = [views(7, rank, 2) for rank in range(2)]
    assert parts[0] < one and parts[1] < one and not parts[0] & parts[1]


@pytest.mark.parametrize("maker", MAKERS)
def test_a_loader_goes_on_bit_for_bit_from_anywhere(shards: Shards, maker: str) -> None:
    loader = loader_of(shards, maker, batch_size=8)
    states, given = [json.loads(json.dumps(loader.state_dict(), default=list))], []
    for _ in range(2):
        for view1, view2 in loader:
            given.append(torch.stack([view1, view2]))
            states.append(loader.state_dict())
    assert len(given) == 2 * len(loader) and (states[-1]["epoch"], states[-1]["step"]) == (2, 0)
    for done in (1, len(loader) - 1, len(loader), len(loader) + 3):
        other = loader_of(shards, maker, batch_size=8, workers=2)
        next(iter(other))  # it has begun elsewhere
        other.load_state_dict(states[done])
        rest = [torch.stack(views) for views in other]  # what is left of the epoch
        assert len(rest) == len(loader) - done % len(loader)
        assert all(map(torch.equal, rest, given[done:]))
        assert other.state_dict()["step"] == 0


def test_leaving_an_epoch_and_coming_back_goes_on_in_it(shards: Shards) -> None:
    whole = list(loader_of(shards, "torchvision", batch_size=8))
    loader = loader_of(shards, "torchvision", batch_size=8)
    begun = list(islice(loader, 3))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(begun + list(loader), whole, strict=True))


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("changed", "told"),
    [({"seed": 1}, "seed 0 there, 1 here"), ({"batch_size": 8}, "batch_size 16 there, 8 here"),
     ({"augmentation": Augmentation(size=17)}, "augmentation .*'size': 16.* there, .*'size': 17"),
     ({"world": 2}, "ranks 1 there, 2 here")],
)  # fmt: skip
def test_a_state_of_other_batches_is_refused(shards: Shards, maker: str, changed: Any, told: str) -> None:
    loader = loader_of(shards, maker)
    next(iter(loader))
    with pytest.raises(InputError, match=told):
        loader_of(shards, maker, **changed).load_state_dict(loader.state_dict())


def test_a_state_of_other_shards_or_another_backend_is_refused(shards: Shards, raw_shards: Shards) -> None:
    state = loader_of(shards, "torchvision").state_dict()
    with pytest.raises(InputError, match=r"shards \w+ there, \w+ here"):
        loader_of(raw_shards, "torchvision").load_state_dict(state)
    if has_dali():
        with pytest.raises(InputError, match="backend torchvision there, dali-fused here"):
            loader_of(shards, "dali-fused").load_state_dict(state)


def test_a_worker_that_is_killed_ends_in_a_line(shards: Shards) -> None:
    """As the kernel does where memory runs out; told where a batch is wanted, not wherever its reader stands."""
    before = set(psutil.Process().children())
    batches = iter(loader_of(shards, "torchvision", batch_size=4))
    next(batches)
    (worker,) = set(psutil.Process().children()) - before
    worker.kill()
    time.sleep(0.5)
    with pytest.raises(InputError, match=r"a process that makes views has ended .* Lower --workers=1"):
        for _ in range(100):
            next(batches)


def test_workers_of_a_spawned_process_leave_without_a_word(shards: Shards, capfd: pytest.CaptureFixture[str]) -> None:
    """As the bench's rows and a user's own processes are; spawned in their turn, they would abort aloud."""
    process = multiprocessing.get_context("spawn").Process(target=_begin_and_drop, args=(shards.folder,))
    process.start()
    process.join(120)
    assert process.exitcode == 0 and "terminate" not in capfd.readouterr().err


def _begin_and_drop(folder: Path) -> None:
    manifest = read_manifest(folder)
    plan = BatchSampler(tuple(shard.samples for shard in manifest.of_split("train")), 16)
    for _ in range(5):  # one pair of workers in three aborted
        made = make_views("torchvision", Fetcher(folder, manifest, "train"), plan.batches(0, 0),
                          augmentation=Augmentation(size=32),
                          seed=0, device=torch.device("cpu"), workers=2)  # fmt: skip
        next(made)
        del made
        gc.collect()


@pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")
def test_workers_collect_nothing_of_their_parents(shards: Shards) -> None:
    """DALI's pipelines that wait to be collected, of which a worker is given a copy, would kill it."""
    gc.disable()
    try:
        for seed in range(3):
            next(iter(loader_of(shards, "dali-fused", seed=seed)))
        fetcher = Fetcher(shards.folder, shards.manifest, "train")
        made = torchvision_views._in_workers(_collect, fetcher, iter(BatchSampler((40,), 4).batches(0, 0)), 1)
        assert [next(made) for _ in range(5)] == [0] * 5
    finally:
        gc.enable()


def _collect(batch: Any) -> int:
    """How many pipelines a worker finds to collect; it would not live to tell."""
    gc.collect()
    return 0


@pytest.mark.parametrize("maker", MAKERS)
def test_between_epochs_other_ranks_may_go_on_with_the_same_joint_batches(shards: Shards, maker: str) -> None:
    one = loader_of(shards, maker, batch_size=16)
    epoch_of(one)
    state, wanted = one.state_dict(), list(one)
    ranks = [loader_of(shards, maker, batch_size=8, rank=rank, world=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    for (view1, view2), *parts in zip(wanted, *ranks, strict=True):
        assert torch.equal(view1, torch.cat([part[0] for part in parts]))
        assert torch.equal(view2, torch.cat([part[1] for part in parts]))


@pytest.mark.parametrize("maker", MAKERS)
def test_batches_kept_are_not_written_over(shards: Shards, maker: str) -> None:
    loader = loader_of(shards, maker, batch_size=8)
    kept = [(view1, view1.clone()) for _ in range(3) for view1, _ in loader]
    assert all(torch.equal(view, copy) for view, copy in kept)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("harm", ["rot", "shrink", "gone"])
def test_shards_harmed_between_epochs_end_in_an_error_naming_tar_and_key(
    shards: Shards, tmp_path: Path, maker: str, harm: str
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards.folder, folder)
    copied = Shards(folder, read_manifest(folder))
    loader, tar = loader_of(copied, maker, batch_size=8), first_tar(copied)
    epoch_of(loader)
    if harm == "rot":
        flip_byte(tar, middle_of(copied, 7))
    elif harm == "shrink":
        with tar.open("r+b") as file:
            file.truncate(middle_of(copied, 7))
    else:
        tar.unlink()
    told = {"rot": "its bytes have changed", "shrink": "ends at", "gone": "No such file"}[harm]
    with pytest.raises(InputError, match=rf"^{tar}, image \w+: {told}.*put back the shards"):
        for _ in range(4):  # what was read ahead is still good
            epoch_of(loader)


def test_a_train_command_whose_shards_rot_says_so_in_a_line(shards: Shards, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards.folder, folder)
    flip_byte(folder / shards.manifest.of_split("train")[0].tar, 5000)
    done = run_module("train", f"--shards={folder}", f"--out={tmp_path / 'run'}", "--epochs=1", DALI, *SMALL)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "sha256" in done.stderr.splitlines()[-1] and "put back the shards" in done.stderr.splitlines()[-1]


def test_memory_stays_flat_over_epochs(shards: Shards) -> None:
    """Twenty epochs more than ten take no more memory: within 5 %."""
    maker = MAKERS[-1] if not has_dali() else "dali-fused"
    loader = loader_of(shards, maker, batch_size=8, augmentation=Augmentation(size=64), workers=2)

    def after(epochs: int) -> int:
        for _ in range(epochs):
            epoch_of(loader)
        return psutil.Process().memory_info().rss

    before = after(10)
    assert after(20) < 1.05 * before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_larger_than_the_split_is_refused(shards: Shards, backend: Any) -> None:
    images = shards.manifest.images("train")
    with pytest.raises(InputError, match=rf"--batch-size={images}: .* on 2 ranks; lower it to {images // 2} or less"):
        two_view_loader(backend, shards.folder, shards.manifest, Augmentation(size=16), batch_size=images, device=CPU,
                        world=2)  # fmt: skip


def test_where_views_are_made_and_why() -> None:
    cuda = torch.device("cuda")
    assert choose_views("auto", "dali", CPU, 8)[0] == "cpu"
    assert choose_views("auto", "dali", cuda, 8) == ("cpu", "8 cores feed the GPU, which then only trains")
    where, why = choose_views("auto", "dali", cuda, 2)
    assert where == "gpu" and "2 cores" in why
    assert choose_views("cpu", "dali", cuda, 1)[0] == "cpu" and choose_views("gpu", "dali", cuda, 64)[0] == "gpu"
    assert choose_views("auto", "torchvision", cuda, 2)[0] == "cpu"
    with pytest.raises(InputError, match="--views=gpu: wants a GPU to train on"):
        choose_views("gpu", "dali", CPU, 2)
    with pytest.raises(InputError, match="--views=gpu: wants --dali"):
        choose_views("gpu", "torchvision", cuda, 2)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_whole_images_come_once_in_the_order_of_the_index(shards: Shards, raw_shards: Shards, encoding: str) -> None:
    made = shards if encoding == "jpeg" else raw_shards

    def load(backend: Any, workers: int) -> torch.Tensor:
        loader = image_loader(backend, made.folder, made.manifest, split="train", size=48, mean=0.4, std=0.2,
                              batch_size=13, device=CPU, workers=workers)  # fmt: skip
        images = torch.cat(list(loader))
        assert len(loader) == -(-len(images) // 13) and torch.equal(torch.cat(list(loader)), images)
        return images

    fetcher = Fetcher(made.folder, made.manifest, "train")
    means = [torchvision_views.decode(fetcher, number).mean() for number in range(len(fetcher))]
    for backend in BACKENDS:
        images = load(backend, 2)
        assert images.shape == (len(fetcher), 1, 48, 48)
        assert (images.mean((1, 2, 3)) * 0.2 + 0.4 - torch.stack(means)).abs().max() < 0.01
        assert (images - load("torchvision", 1)).abs().max() * 0.2 * 255 < 0.05


@pytest.mark.parametrize("size", [32, 96, 150])  # smaller, as they are, larger
def test_whole_images_are_resized_bicubically_as_pillow_does(shards: Shards, size: int) -> None:
    """Of floats: of 8 bits it rounds between its two passes."""
    fetcher = Fetcher(shards.folder, shards.manifest, "train")
    wanted = []
    for number in range(5):
        pixels = Image.fromarray((torchvision_views.decode(fetcher, number)[0] * 255).numpy())
        wanted.append(np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255))
    for backend in BACKENDS:
        loader = image_loader(backend, shards.folder, shards.manifest, split="train", size=size, mean=0.0, std=1 / 255,
                              batch_size=5, device=CPU, workers=1, interpolation="bicubic",
                              samples=range(5))  # fmt: skip
        found = next(iter(loader)).numpy()[:, 0]
        assert np.abs(found - np.stack(wanted)).max() < 0.15, backend  # DALI looks the kernel up in a table


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_size", [5, 40, 50, 1000])
def test_splits_of_few_batches_come_whole_from_many_workers(shards: Shards, backend: Any, batch_size: int) -> None:
    def load(batch_size: int, workers: int) -> torch.Tensor:
        return torch.cat(list(image_loader(backend, shards.folder, shards.manifest, split="train", size=32, mean=0.0,
                                           std=1.0, batch_size=batch_size, device=CPU, workers=workers)))  # fmt: skip

    assert torch.equal(load(batch_size, 4 if backend == "dali" else 2), load(8, 1))


def test_length_comes_from_the_manifest(shards: Shards) -> None:
    thousand = dataclasses.replace(
        shards.manifest, shards=tuple(dataclasses.replace(part, samples=1000) for part in shards.manifest.shards)
    )
    loader = two_view_loader("torchvision", shards.folder, thousand, Augmentation(), batch_size=64, device=CPU, world=3)
    images = 1000 * len(thousand.of_split("train"))
    assert len(loader) == images // 192 == BatchSampler((images,), 64, world=3).steps
