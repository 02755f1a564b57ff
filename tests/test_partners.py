"""Second views from another image of the patient: shards, sampling, and every backend's views."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import torchvision_views
from pipeline.augmentation import Augmentation
from pipeline.dali_inputs import BatchInputs, fused_parameters
from pipeline.loader import ViewLoader, make_views
from pipeline.partners import Patients
from pipeline.prefetch import prefetch
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
from tests.test_loader import CPU, IDENTITY, VIEW_BACKENDS, epoch_of, loader_of
from tests.test_view_parameters import numpy_uniforms

AUGMENTATION = Augmentation(size=32, mean=0.4, std=0.2, patient_positive=0.5)
PARTNERS = 2  # of an image in its shard, at most


@pytest.fixture(scope="session")
def raw_partner_shards(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Raw shards with partners."""
    return build_shards(radiographs, tmp_path_factory.mktemp("raw-partner-shards"), encoding="raw")


def build_shards(radiographs: Path, out: Path, **settings: Any) -> Shards:
    build(radiographs, out, **{"size": 96, "shard_size": 40, "partners": PARTNERS, "workers": 1, **settings})
    return Shards(out, read_manifest(out))


def hashes_of(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}


# Shards.


@pytest.mark.parametrize("limit", [2, 3, 7])
def test_groups_are_balanced_within_a_patient_and_never_split_over_shards(limit: int) -> None:
    patients = np.random.default_rng(limit).integers(0, 40, 300)
    groups = group_by_patient(patients, limit)
    assert sorted(np.concatenate(groups)) == list(range(300))
    assert all(len(set(patients[rows])) == 1 and len(rows) <= limit for rows in groups)
    for patient, images in Counter(patients.tolist()).items():
        sizes = sorted(len(rows) for rows in groups if patients[rows[0]] == patient)
        assert len(sizes) == -(-images // limit) and sizes[-1] - sizes[0] <= 1
    assert [int(rows[0]) for rows in groups] == sorted(int(rows[0]) for rows in groups)
    for shard_size in (limit, 25, 1000):
        shards = pack_groups(groups, shard_size)
        assert sorted(np.concatenate(shards)) == list(range(300)) and max(map(len, shards)) <= shard_size
        assert all((np.diff(shard) > 0).all() for shard in shards)
        assert all(sum(rows[0] in shard for shard in map(set, shards)) == 1 == sum(
            set(rows) <= set(shard) for shard in shards) for rows in groups)  # fmt: skip
        assert all(len(shard) + limit > shard_size for shard in shards[:-1])  # too full for another group


def test_partners_are_in_the_same_shard_and_split(partner_shards: Shards) -> None:
    manifest = partner_shards.manifest
    frame = pd.concat(label_frame(partner_shards.folder, [shard], manifest.findings).assign(shard=shard.tar)
                      for shard in manifest.shards)  # fmt: skip
    assert len(frame) == 121 and frame["key"].is_unique
    of_patient = frame.groupby("patient")["key"].transform("size")
    in_shard = frame.groupby(["patient", "shard"])["key"].transform("size")
    assert (in_shard >= np.minimum(of_patient, 2)).all()
    assert (in_shard >= np.minimum(of_patient, PARTNERS + 1) - 1).all()
    assert (frame.groupby("shard")["split"].nunique() == 1).all() and (of_patient > 1).sum() > 50


def test_shards_depend_on_the_seed_but_not_on_workers_and_parts(
    radiographs: Path, partner_shards: Shards, tmp_path: Path
) -> None:
    expected = hashes_of(partner_shards.folder)
    build_shards(radiographs, tmp_path / "two", workers=2)
    for part in (2, 0, 1):
        build(radiographs, tmp_path / "parts", size=96, shard_size=40, partners=PARTNERS, workers=1, part=part, parts=3)
    merge(tmp_path / "parts")
    assert hashes_of(tmp_path / "two") == hashes_of(tmp_path / "parts") == expected
    assert hashes_of(build_shards(radiographs, tmp_path / "seed", seed=1).folder).keys() >= {"manifest.json"}
    assert hashes_of(tmp_path / "seed")["train-000000.tar"] != expected["train-000000.tar"]


def test_manifest_of_shards_without_partners_has_no_such_setting(shards: Shards) -> None:
    assert "partners" not in shards.manifest.settings  # else shards of earlier versions would be rebuilt


def test_partners_take_no_disk_space_and_the_build_reports_it(
    radiographs: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_partners = build_shards(radiographs, tmp_path / "partners")
    printed = capsys.readouterr().out
    sizes = [sum(shard.tar_bytes for shard in built.manifest.shards) for built in (with_partners, shards)]
    # tar pads its end to a full record.
    assert abs(sizes[0] - sizes[1]) <= 10240 * len(with_partners.manifest.shards)
    counts = [label_frame(with_partners.folder, [shard], ())["patient"].value_counts()
              for shard in with_partners.manifest.shards]  # fmt: skip
    paired = sum(int(images[images > 1].sum()) for images in counts)
    assert f"{paired} of 121 images" in printed and "this takes no disk space" in printed
    copies = sum(int((images * np.minimum(images - 1, PARTNERS)).sum()) for images in counts)
    assert f"would add {copies} images, {copies / 121:.1f} times" in printed


def test_build_refuses_a_folder_with_shards_of_other_partners(radiographs: Path, partner_shards: Shards) -> None:
    for other in (0, PARTNERS + 1):
        with pytest.raises(InputError, match=f"contains shards of another build .partners {PARTNERS} there"):
            build_shards(radiographs, partner_shards.folder, partners=other)


def test_build_refuses_more_partners_than_a_shard_contains(radiographs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--partners=40: must be a number from 0 to 39"):
        build_shards(radiographs, tmp_path / "out", partners=40)
    assert not (tmp_path / "out").exists()


# Sampling.


def test_sampled_partners_equal_a_reference_implementation() -> None:
    members, bounds = np.array([4, 7, 1, 9, 2, 3, 0]), np.zeros((10, 2), np.int64)
    for start, end in ((0, 2), (2, 6), (6, 7)):
        bounds[members[start:end]] = start, end
    indices = np.array([7, 1, 0, 3, 9, 2, 4])
    for epoch in range(200):
        partners = sample_partners(0.6, 5, epoch, indices, bounds[indices], members)
        for index, partner in zip(indices.tolist(), partners.tolist(), strict=True):
            start, end = bounds[index]
            others = [*members[start:end]]
            others[others.index(index)] = others[-1]
            whether, which = (numpy_uniforms(5, epoch, index, view)[7] for view in (1, 0))
            expected = others[int(which * (len(others) - 1))] if len(others) > 1 and whether < 0.6 else index
            assert partner == expected


def test_partners_are_equally_likely_and_sampled_with_the_given_probability() -> None:
    members, indices = np.array([5, 6, 7, 8]), np.array([5, 8])
    bounds = np.tile([0, 4], (2, 1))
    partners = np.array([sample_partners(0.5, 0, epoch, indices, bounds, members) for epoch in range(8000)])
    for column, index in enumerate(indices.tolist()):
        frequencies = {other: float((partners[:, column] == other).mean()) for other in (5, 6, 7, 8)}
        assert frequencies.pop(index) == pytest.approx(0.5, abs=0.03)
        assert all(frequency == pytest.approx(1 / 6, abs=0.025) for frequency in frequencies.values())
    never = sample_partners(0.0, 0, 0, indices, bounds, members)
    always = sample_partners(1.0, 0, 0, indices, bounds, members)
    assert (never == indices).all() and (always != indices).all()


def test_partners_are_of_the_same_patient_and_shard_or_the_image_itself(partner_shards: Shards) -> None:
    patients = Patients(partner_shards.folder, partner_shards.manifest, "train")
    frames = [label_frame(partner_shards.folder, [shard], ())["patient"] + f" {shard.tar}"
              for shard in partner_shards.manifest.of_split("train")]  # fmt: skip
    group = pd.concat(frames).to_numpy()  # of patient and shard
    single = ~pd.Series(group).duplicated(keep=False).to_numpy()
    sampler = BatchSampler(partner_shards.manifest.shard_sizes("train"), len(group))
    batch = patients.pair(1.0, 0, next(sampler.batches(0, 0)))
    assert (group[batch.partners] == group[batch.indices]).all()
    assert ((batch.partners == batch.indices) == single[batch.indices]).all() and 0 < single.sum() < len(group)


def test_partners_differ_by_seed_and_epoch(partner_shards: Shards) -> None:
    patients = Patients(partner_shards.folder, partner_shards.manifest, "train")
    indices = np.arange(partner_shards.manifest.images("train"))
    partners = {tuple(patients.pair(0.5, seed, Batch(epoch, 0, indices)).partners)
                for seed in (0, 1) for epoch in (0, 1)}  # fmt: skip
    assert len(partners) == 4


# Views.


def test_all_backends_yield_equal_views_of_partners(partner_shards: Shards) -> None:
    first, *others = [epoch_of(loader_of(partner_shards, backend, augmentation=AUGMENTATION, seed=5))
                      for backend in VIEW_BACKENDS]  # fmt: skip
    for other in others:
        assert first.shape == other.shape and (first - other).abs().max() * 0.2 * 255 < 0.05
    unpaired = dataclasses.replace(AUGMENTATION, patient_positive=0.0)
    without = epoch_of(loader_of(partner_shards, VIEW_BACKENDS[0], augmentation=unpaired, seed=5))
    assert torch.equal(first[:, 0], without[:, 0])
    same = (first[:, 1] == without[:, 1]).flatten(1).all(1)
    assert 0.3 < same.float().mean() < 0.9  # view 2 of an image without a partner does not change


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_epoch_shows_each_image_once_with_itself_or_a_partner(raw_partner_shards: Shards, backend: str) -> None:
    folder, manifest = raw_partner_shards.folder, raw_partner_shards.manifest
    fetcher = Fetcher(folder, manifest, "train")
    index_of = {fetcher.read(index): index for index in range(len(fetcher))}
    patients = Patients(folder, manifest, "train").ids
    sizes = manifest.shard_sizes("train")
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    augmentation = dataclasses.replace(IDENTITY, patient_positive=0.7)
    loaders = [loader_of(raw_partner_shards, backend, rank=rank, world=2, batch_size=7, augmentation=augmentation)
               for rank in range(2)]  # fmt: skip
    partnered = Counter[bool]()
    for _ in range(2):
        pairs = [[index_of[view.round().to(torch.uint8).numpy().tobytes()] for view in pair]
                 for loader in loaders for pair in epoch_of(loader)]  # fmt: skip
        first, second = np.array(pairs).T
        assert len(set(first)) == len(first) == len(fetcher) // 14 * 14
        assert (patients[first] == patients[second]).all() and (shard_of[first] == shard_of[second]).all()
        partnered.update((first != second).tolist())
    assert partnered[True] > 20 and partnered[False] > 20


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_loader_resumes_bit_for_bit_with_the_same_partners(partner_shards: Shards, backend: str) -> None:
    def loader() -> ViewLoader:
        return loader_of(partner_shards, backend, batch_size=8, augmentation=AUGMENTATION)

    uninterrupted, stopped, resumed = loader(), loader(), loader()
    batches = [torch.stack(batch) for _ in range(2) for batch in uninterrupted]
    list(islice(stopped, 5))
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    rest = [torch.stack(batch) for _ in range(2) for batch in resumed]
    assert len(rest) == len(batches) - 5 and all(map(torch.equal, rest, batches[5:]))


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_partners_depend_on_neither_batch_size_nor_ranks_nor_workers(partner_shards: Shards, backend: str) -> None:
    def views(batch_size: int, rank: int, world: int, workers: int) -> set[bytes]:
        loader = loader_of(partner_shards, backend, batch_size=batch_size, rank=rank, world=world, workers=workers,
                           augmentation=AUGMENTATION)  # fmt: skip
        return {pair.numpy().tobytes() for pair in epoch_of(loader)}

    single = views(1, 0, 1, 1)
    parts = [views(7, rank, 2, 2) for rank in range(2)]
    assert parts[0] < single and parts[1] < single and not parts[0] & parts[1]


@pytest.mark.parametrize("backend", VIEW_BACKENDS)
def test_only_sampled_partners_are_read_and_decoded(
    partner_shards: Shards, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = partner_shards.folder, partner_shards.manifest
    fetcher, patients = Fetcher(folder, manifest, "train"), Patients(folder, manifest, "train")
    batch = patients.pair(0.5, 0, next(BatchSampler(partner_shards.manifest.shard_sizes("train"), 16).batches(0, 0)))
    sampled = int((batch.partners != batch.indices).sum())
    assert 0 < sampled < 16
    read: list[int] = []
    monkeypatch.setattr(fetcher, "read", lambda index: (read.append(index), Fetcher.read(fetcher, index))[1])
    if backend == "torchvision":
        torchvision_views.make_views(fetcher, AUGMENTATION, 0, batch)
        assert len(read) == 16 + sampled
        return
    [(_, contents)] = prefetch(fetcher, [batch])
    assert len(read) == 16 + sampled and len(contents) == 32
    settings: dict[str, Any] = {"augmentation": AUGMENTATION, "seed": 0, "device": CPU, "workers": 1,
                                "patients": patients}  # fmt: skip
    expected = next(make_views(backend, fetcher, [batch], **settings))
    # Replace the images of view 2 that are no partners by bytes that no decoder accepts.
    iterate, garbage = BatchInputs.__iter__, np.zeros(9, np.uint8)

    def spoiled(inputs: BatchInputs) -> Iterator[tuple[Any, ...]]:
        for encoded, encoded2, *rest, has_partner in iterate(inputs):
            yield (encoded, [jpeg if keep else garbage for jpeg, keep in zip(encoded2, has_partner, strict=True)],
                   *rest, has_partner)  # fmt: skip

    monkeypatch.setattr(BatchInputs, "__iter__", spoiled)
    found = next(make_views(backend, fetcher, [batch], **settings))
    assert all(map(torch.equal, found, expected))


def test_box_contains_the_crop_of_each_partner_or_both_crops_of_one_image() -> None:
    indices = np.arange(64)
    batch = Batch(0, 0, indices, np.where(indices % 2, indices + 1, indices))
    shapes = np.repeat([[96, 120], [110, 96]], 64, axis=0)
    shapes[64::2] = shapes[0]  # of images without a partner
    parameters, start, shape, start2, shape2, has_partner = fused_parameters(AUGMENTATION, 0, batch, shapes)
    crops = sample_view_parameters(AUGMENTATION, 0, 0, indices, np.stack(np.split(shapes, 2), axis=1))
    corners = np.concatenate([crops[..., :2], crops[..., :2] + crops[..., 2:4]], axis=2)  # [B, 2, 4]
    joint = np.concatenate([corners[..., :2].min(1), corners[..., 2:].max(1)], axis=1)
    for view, box in enumerate((np.c_[start, start + shape], np.c_[start2, start2 + shape2])):
        assert np.array_equal(box, np.where(has_partner[:, None], corners[:, view], joint))
        assert np.array_equal(parameters[:, view, :2], crops[:, view, :2] - box[:, :2])


@pytest.mark.parametrize("backend", [backend for backend in VIEW_BACKENDS if backend != "torchvision"])
def test_undecodable_partner_is_named(
    partner_shards: Shards, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = partner_shards.folder, partner_shards.manifest
    fetcher, patients = Fetcher(folder, manifest, "train"), Patients(folder, manifest, "train")
    indices = np.arange(8)
    batch = patients.pair(0.5, 0, Batch(0, 0, indices))
    corrupt = next(index for index in batch.partners.tolist() if index not in indices)
    read = fetcher.read
    monkeypatch.setattr(fetcher, "read", lambda index: bytes(99) if index == corrupt else read(index))
    with pytest.raises(InputError, match=f"image {fetcher.key(corrupt)}: can't be decoded"):
        next(make_views(backend, fetcher, [batch], augmentation=AUGMENTATION, seed=0, device=CPU, workers=1,
                        patients=patients))  # fmt: skip


def test_loader_refuses_shards_built_without_partners(shards: Shards) -> None:
    with pytest.raises(InputError, match=r"--patient-positive=0.5: the shards .* shard build .* --partners=3"):
        loader_of(shards, VIEW_BACKENDS[0], augmentation=AUGMENTATION)


def test_loader_patients_cover_all_ranks(partner_shards: Shards) -> None:
    patients = Patients(partner_shards.folder, partner_shards.manifest, "train").ids
    loaders = [loader_of(partner_shards, VIEW_BACKENDS[0], rank=rank, world=2, batch_size=7) for rank in range(2)]
    samplers = [BatchSampler(partner_shards.manifest.shard_sizes("train"), 7, rank=rank, world=2) for rank in range(2)]
    for step, parts in enumerate(zip(*(islice(sampler.batches(3, 0), 4) for sampler in samplers), strict=True)):
        expected = np.concatenate([patients[part.indices] for part in parts])
        assert all(loader.patients(3, step).tolist() == expected.tolist() for loader in loaders)
