"""Second views from another image of the patient: shards that hold them, who is drawn, and every backend's views."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import prefetch
from pipeline.augmentation import Augmentation
from pipeline.dali_inputs import BatchInputs, fused_parameters
from pipeline.loader import ViewLoader, make_views
from pipeline.partners import Patients
from pipeline.sampler import Batch, BatchSampler
from pipeline.view_parameters import sample_partners, sample_view_parameters
from shard.assignment import group_by_patient, pack_groups
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.manifest import read_manifest
from shard.merge import merge
from shard.read import label_frame
from shard.write import build
from tests.conftest import Shards
from tests.test_loader import CPU, MAKERS, OFF, epoch_of, loader_of
from tests.test_view_parameters import numpys_uniforms

RECIPE = Augmentation(size=32, mean=0.4, std=0.2, patient_positive=0.5)
KEPT = 2  # partners, at most, in a shard


@pytest.fixture(scope="session")
def raw_partner_shards(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The same, not compressed."""
    return built(radiographs, tmp_path_factory.mktemp("raw-partner-shards"), encoding="raw")


def built(radiographs: Path, out: Path, **settings: Any) -> Shards:
    build(radiographs, out, **{"size": 96, "shard_size": 40, "partners": KEPT, "workers": 1, **settings})
    return Shards(out, read_manifest(out))


def hashes_of(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}


# Shards.


@pytest.mark.parametrize("most", [2, 3, 7])
def test_groups_are_of_one_patient_as_even_as_can_be_and_never_cut(most: int) -> None:
    patients = np.random.default_rng(most).integers(0, 40, 300)
    groups = group_by_patient(patients, most)
    assert sorted(np.concatenate(groups)) == list(range(300))
    assert all(len(set(patients[places])) == 1 and len(places) <= most for places in groups)
    for patient, images in Counter(patients.tolist()).items():
        sizes = sorted(len(places) for places in groups if patients[places[0]] == patient)
        assert len(sizes) == -(-images // most) and sizes[-1] - sizes[0] <= 1
    assert [int(places[0]) for places in groups] == sorted(int(places[0]) for places in groups)
    for shard_size in (most, 25, 1000):
        shards = pack_groups(groups, shard_size)
        assert sorted(np.concatenate(shards)) == list(range(300)) and max(map(len, shards)) <= shard_size
        assert all((np.diff(shard) > 0).all() for shard in shards)
        assert all(sum(places[0] in shard for shard in map(set, shards)) == 1 == sum(
            set(places) <= set(shard) for shard in shards) for places in groups)  # fmt: skip
        assert all(len(one) + most > shard_size for one in shards[:-1])  # no room was left for another


def test_an_images_partners_lie_in_its_shard_and_never_in_another_split(partner_shards: Shards) -> None:
    manifest = partner_shards.manifest
    everyone = pd.concat(label_frame(partner_shards.folder, [shard], manifest.findings).assign(shard=shard.tar)
                         for shard in manifest.shards)  # fmt: skip
    assert len(everyone) == 121 and everyone["key"].is_unique
    images = everyone.groupby("patient")["key"].transform("size")
    together = everyone.groupby(["patient", "shard"])["key"].transform("size")
    assert (together >= np.minimum(images, 2)).all() and (together >= np.minimum(images, KEPT + 1) - 1).all()
    assert (everyone.groupby("shard")["split"].nunique() == 1).all() and (images > 1).sum() > 50


def test_the_same_bytes_whatever_the_workers_and_parts_and_others_by_seed(
    radiographs: Path, partner_shards: Shards, tmp_path: Path
) -> None:
    wanted = hashes_of(partner_shards.folder)
    built(radiographs, tmp_path / "two", workers=2)
    for part in (2, 0, 1):
        build(radiographs, tmp_path / "parts", size=96, shard_size=40, partners=KEPT, workers=1, part=part, parts=3)
    merge(tmp_path / "parts")
    assert hashes_of(tmp_path / "two") == hashes_of(tmp_path / "parts") == wanted
    assert hashes_of(built(radiographs, tmp_path / "seed", seed=1).folder).keys() >= {"manifest.json"}
    assert hashes_of(tmp_path / "seed")["train-000000.tar"] != wanted["train-000000.tar"]


def test_shards_without_partners_are_those_of_before_there_were_any(shards: Shards) -> None:
    assert "partners" not in shards.manifest.settings  # else they would be built anew


def test_partners_take_no_room_and_the_build_says_so(
    radiographs: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = built(radiographs, tmp_path / "made")
    said = capsys.readouterr().out
    contents = [sum(shard.tar_bytes for shard in one.manifest.shards) for one in (made, shards)]
    assert abs(contents[0] - contents[1]) <= 10240 * len(made.manifest.shards)  # a tar ends on a whole record
    with_partners = sum(int(counts[counts > 1].sum()) for counts in (
        label_frame(made.folder, [shard], ())["patient"].value_counts() for shard in made.manifest.shards))  # fmt: skip
    assert f"{with_partners} of 121 images" in said and "0 bytes more on the disk" in said
    copies = sum(int((counts * np.minimum(counts - 1, KEPT)).sum()) for counts in (
        label_frame(made.folder, [shard], ())["patient"].value_counts() for shard in made.manifest.shards))  # fmt: skip
    assert f"would be {copies} images, {copies / 121:.1f} times" in said


def test_shards_of_other_partners_are_not_taken_for_these(radiographs: Path, partner_shards: Shards) -> None:
    for other in (0, KEPT + 1):
        with pytest.raises(InputError, match=f"holds shards of another build .partners {KEPT} there"):
            built(radiographs, partner_shards.folder, partners=other)


def test_more_partners_than_a_shard_holds_are_refused(radiographs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--partners=40: wants a number from 0 to 39"):
        built(radiographs, tmp_path / "out", partners=40)
    assert not (tmp_path / "out").exists()


# Who is drawn.


def test_partners_are_drawn_as_by_hand() -> None:
    members, starts = np.array([4, 7, 1, 9, 2, 3, 0]), np.zeros((10, 2), np.int64)
    for begin, end in ((0, 2), (2, 6), (6, 7)):
        starts[members[begin:end]] = begin, end
    samples = np.array([7, 1, 0, 3, 9, 2, 4])
    for epoch in range(200):
        drawn = sample_partners(0.6, 5, epoch, samples, starts[samples], members)
        for sample, partner in zip(samples.tolist(), drawn.tolist(), strict=True):
            begin, end = starts[sample]
            others = [*members[begin:end]]
            others[others.index(sample)] = others[-1]
            whether, which = (numpys_uniforms(5, epoch, sample, view)[7] for view in (1, 0))
            wanted = others[int(which * (len(others) - 1))] if len(others) > 1 and whether < 0.6 else sample
            assert partner == wanted


def test_each_partner_is_as_likely_and_the_probability_is_kept() -> None:
    members, samples = np.array([5, 6, 7, 8]), np.tile([5, 8], 1)
    starts = np.tile([0, 4], (2, 1))
    drawn = np.array([sample_partners(0.5, 0, epoch, samples, starts, members) for epoch in range(8000)])
    for column, sample in enumerate(samples.tolist()):
        shares = {other: float((drawn[:, column] == other).mean()) for other in (5, 6, 7, 8)}
        assert shares.pop(sample) == pytest.approx(0.5, abs=0.03)
        assert all(share == pytest.approx(1 / 6, abs=0.025) for share in shares.values())
    never = sample_partners(0.0, 0, 0, samples, starts, members)
    always = sample_partners(1.0, 0, 0, samples, starts, members)
    assert (never == samples).all() and (always != samples).all()


def test_an_image_without_a_partner_is_its_own(partner_shards: Shards) -> None:
    patients = Patients(partner_shards.folder, partner_shards.manifest, "train")
    frames = [label_frame(partner_shards.folder, [shard], ())["patient"] + f" {shard.tar}"
              for shard in partner_shards.manifest.of_split("train")]  # fmt: skip
    place = pd.concat(frames).to_numpy()
    alone = ~pd.Series(place).duplicated(keep=False).to_numpy()
    plan = BatchSampler(tuple(shard.samples for shard in partner_shards.manifest.of_split("train")), len(place))
    batch = patients.pair(1.0, 0, next(plan.batches(0, 0)))
    assert (place[batch.partners] == place[batch.indices]).all()
    assert ((batch.partners == batch.indices) == alone[batch.indices]).all() and 0 < alone.sum() < len(place)


def test_partners_are_others_by_seed_and_by_epoch(partner_shards: Shards) -> None:
    patients = Patients(partner_shards.folder, partner_shards.manifest, "train")
    samples = np.arange(partner_shards.manifest.images("train"))
    drawn = {tuple(patients.pair(0.5, seed, Batch(epoch, 0, samples)).partners) for seed in (0, 1) for epoch in (0, 1)}
    assert len(drawn) == 4


# Views.


def test_every_maker_makes_the_same_views_of_the_same_partners(partner_shards: Shards) -> None:
    first, *others = [epoch_of(loader_of(partner_shards, maker, augmentation=RECIPE, seed=5)) for maker in MAKERS]
    for other in others:
        assert first.shape == other.shape and (first - other).abs().max() * 0.2 * 255 < 0.05
    without = epoch_of(loader_of(partner_shards, MAKERS[0], augmentation=Augmentation(size=32, mean=0.4, std=0.2),
                                 seed=5))
    assert torch.equal(first[:, 0], without[:, 0])
    same = (first[:, 1] == without[:, 1]).flatten(1).all(1)
    assert 0.3 < same.float().mean() < 0.9  # view 2 of an image that stands for itself is what it was


@pytest.mark.parametrize("maker", MAKERS)
def test_epochs_are_audited(raw_partner_shards: Shards, maker: str) -> None:
    """View 1 shows every image at most once, view 2 the image or another of its patient in its shard."""
    folder, manifest = raw_partner_shards.folder, raw_partner_shards.manifest
    fetcher = Fetcher(folder, manifest, "train")
    number_of = {fetcher.read(number): number for number in range(len(fetcher))}
    patients = Patients(folder, manifest, "train").numbers
    samples = [shard.samples for shard in manifest.of_split("train")]
    shard_of = np.repeat(np.arange(len(samples)), samples)
    augmentation = Augmentation(**{**vars(OFF), "patient_positive": 0.7})
    loaders = [loader_of(raw_partner_shards, maker, rank=rank, world=2, batch_size=7, augmentation=augmentation)
               for rank in range(2)]  # fmt: skip
    others = Counter[bool]()
    for _ in range(2):
        pairs = [[number_of[view.round().to(torch.uint8).numpy().tobytes()] for view in pair]
                 for loader in loaders for pair in epoch_of(loader)]  # fmt: skip
        first, second = np.array(pairs).T
        assert len(set(first)) == len(first) == len(fetcher) // 14 * 14
        assert (patients[first] == patients[second]).all() and (shard_of[first] == shard_of[second]).all()
        others.update((first != second).tolist())
    assert others[True] > 20 and others[False] > 20


@pytest.mark.parametrize("maker", MAKERS)
def test_a_loader_goes_on_bit_for_bit_with_the_same_partners(partner_shards: Shards, maker: str) -> None:
    def loader() -> ViewLoader:
        return loader_of(partner_shards, maker, batch_size=8, augmentation=RECIPE)

    whole, stopped = loader(), loader()
    given = [torch.stack(batch) for _ in range(2) for batch in whole]
    list(islice(stopped, 5))
    gone_on = loader()
    gone_on.load_state_dict(copy.deepcopy(stopped.state_dict()))
    rest = [torch.stack(batch) for _ in range(2) for batch in gone_on]
    assert len(rest) == len(given) - 5 and all(map(torch.equal, rest, given[5:]))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_sample_gets_the_same_partner_whatever_the_batch_the_ranks_and_the_workers(
    partner_shards: Shards, maker: str
) -> None:
    def views(batch_size: int, rank: int, world: int, workers: int) -> set[bytes]:
        loader = loader_of(partner_shards, maker, batch_size=batch_size, rank=rank, world=world, workers=workers,
                           augmentation=RECIPE)  # fmt: skip
        return {pair.numpy().tobytes() for pair in epoch_of(loader)}

    one = views(1, 0, 1, 1)
    parts = [views(7, rank, 2, 2) for rank in range(2)]
    assert parts[0] < one and parts[1] < one and not parts[0] & parts[1]


@pytest.mark.parametrize("maker", MAKERS)
def test_only_partners_that_are_drawn_are_read_and_decoded(
    partner_shards: Shards, maker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = partner_shards.folder, partner_shards.manifest
    fetcher, patients = Fetcher(folder, manifest, "train"), Patients(folder, manifest, "train")
    plan = BatchSampler(tuple(shard.samples for shard in manifest.of_split("train")), 16)
    batch = patients.pair(0.5, 0, next(plan.batches(0, 0)))
    drawn = int((batch.partners != batch.indices).sum())
    assert 0 < drawn < 16
    read: list[int] = []
    monkeypatch.setattr(fetcher, "read", lambda number: (read.append(number), Fetcher.read(fetcher, number))[1])
    if maker == "torchvision":
        from pipeline import torchvision_views

        torchvision_views._make_views(fetcher, RECIPE, 0, batch)
        assert len(read) == 16 + drawn
        return
    contents = prefetch._read(fetcher, batch)
    assert len(read) == 16 + drawn and len(contents) == 32
    given: dict[str, Any] = {"augmentation": RECIPE, "seed": 0, "device": CPU, "workers": 1, "patients": patients}
    wanted = next(make_views(maker, fetcher, [batch], **given))  # type: ignore[arg-type]
    # Where none is drawn DALI gets what no decoder could make anything of.
    whole = BatchInputs._next

    def spoilt(feed: Any) -> tuple[Any, ...]:
        encoded, others, *rest = whole(feed)
        paired = rest[-1]
        return (encoded, [other if its else np.zeros(9, np.uint8) for other, its in zip(others, paired, strict=True)],
                *rest)  # fmt: skip

    monkeypatch.setattr(BatchInputs, "_next", spoilt)
    found = next(make_views(maker, fetcher, [batch], **given))  # type: ignore[arg-type]
    assert all(map(torch.equal, found, wanted))


def test_the_box_of_a_partner_is_its_own_crop_and_the_images_the_other() -> None:
    samples = np.arange(64)
    batch = Batch(0, 0, samples, np.where(samples % 2, samples + 1, samples))
    shapes = np.repeat([[96, 120], [110, 96]], 64, axis=0)
    shapes[64::2] = shapes[0]  # an image that stands for itself
    drawn, start, extent, its_start, its_extent, paired = fused_parameters(RECIPE, 0, batch, shapes)
    crops = sample_view_parameters(RECIPE, 0, 0, samples, np.stack(np.split(shapes, 2), axis=1))
    corners = np.concatenate([crops[..., :2], crops[..., :2] + crops[..., 2:4]], axis=2)  # [B, 2, 4]
    joint = np.concatenate([corners[..., :2].min(1), corners[..., 2:].max(1)], axis=1)
    for view, box in enumerate((np.c_[start, start + extent], np.c_[its_start, its_start + its_extent])):
        assert np.array_equal(box, np.where(paired[:, None], corners[:, view], joint))
        assert np.array_equal(drawn[:, view, :2], crops[:, view, :2] - box[:, :2])


@pytest.mark.parametrize("maker", [maker for maker in MAKERS if maker != "torchvision"])
def test_a_partner_that_can_not_be_decoded_is_named(
    partner_shards: Shards, maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = partner_shards.folder, partner_shards.manifest
    fetcher, patients = Fetcher(folder, manifest, "train"), Patients(folder, manifest, "train")
    samples = np.arange(8)
    batch = patients.pair(0.5, 0, Batch(0, 0, samples))
    spoilt = next(number for number in batch.partners.tolist() if number not in samples)
    read = fetcher.read
    monkeypatch.setattr(fetcher, "read", lambda number: bytes(99) if number == spoilt else read(number))
    with pytest.raises(InputError, match=f"image {fetcher.key(spoilt)}: can't be decoded"):
        next(make_views(maker, fetcher, [batch], augmentation=RECIPE, seed=0, device=CPU, workers=1, patients=patients))


def test_shards_without_partners_are_refused(shards: Shards) -> None:
    with pytest.raises(InputError, match=r"--patient-positive=0.5: the shards .* shard build .* --partners=3"):
        loader_of(shards, MAKERS[0], augmentation=RECIPE)


def test_a_loader_names_the_patients_of_a_step_on_all_ranks(partner_shards: Shards) -> None:
    patients = Patients(partner_shards.folder, partner_shards.manifest, "train").numbers
    loaders = [loader_of(partner_shards, MAKERS[0], rank=rank, world=2, batch_size=7) for rank in range(2)]
    samples = tuple(shard.samples for shard in partner_shards.manifest.of_split("train"))
    samplers = [BatchSampler(samples, 7, rank=rank, world=2) for rank in range(2)]
    for step, parts in enumerate(zip(*(islice(sampler.batches(3, 0), 4) for sampler in samplers), strict=True)):
        wanted = np.concatenate([patients[part.indices] for part in parts])
        assert all(loader.patients(3, step).tolist() == wanted.tolist() for loader in loaders)
