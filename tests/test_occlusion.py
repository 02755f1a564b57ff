"""Occlusion maps: what covering a patch does to the probes' decision, against a slow twin, for any network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from probe.encoder import Encoder
from probe.features import read_features, read_images
from probe.occlusion import CELLS, PATCH, cover, occlusion_maps, spread
from probe.page.figures import plot_maps
from probe.settings import Settings
from probe.study import Study, open_study
from tests.conftest import Shards
from train.frozen_features import Features, standardise
from train.weights.preprocessing import Input

SIDE, CPU = 48, torch.device("cpu")


class Corner(nn.Module):
    """Features of the upper left quarter alone: its brightness and contrast."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        corner = images[:, 0, : SIDE // 2, : SIDE // 2].flatten(1)
        return torch.stack([corner.mean(1), corner.std(1), (corner > 0).float().mean(1)], dim=1)


@pytest.fixture
def study(shards: Shards, tmp_path: Path) -> Study:
    weights = tmp_path / "e.pth"
    torch.save(timm.create_model("test_resnet", in_chans=1).state_dict(), weights)
    settings = Settings(encoders=(f"e=timm/test_resnet={weights}",), shards=shards.folder, out=tmp_path / "out",
                        input="e:mean=0.5,std=0.25,size=48", shots=("3",), draws=3, baselines=(), maps=2,
                        device="cpu")  # fmt: skip
    opened = open_study(settings)
    encoder = Encoder("Corner", "", Corner(), Input(SIDE, shards.manifest.pixel_mean, shards.manifest.pixel_std))
    return replace(opened, encoders=[encoder])


def features_of(study: Study) -> Features:
    (encoder,) = study.encoders
    return read_features([encoder], study.settings.folder, study.manifest, tuple(study.manifest.counts),
                         cache=study.settings.out, batch_size=32, device=CPU, workers=1,
                         rows=study.rows)[encoder.name]  # fmt: skip


def test_maps_are_those_of_scikit_learn_on_covered_images(study: Study) -> None:
    """A slow twin: for each patch an image is covered by hand, and each draw's probe is fitted by scikit-learn."""
    (encoder,), features = study.encoders, features_of(study)
    maps = occlusion_maps(study, encoder, features, CPU)
    assert [one.label for one in maps] == [1, 0] * len(study.drawn)
    for one in maps[:2]:
        draws = study.drawn[one.task]
        rows = [row for row in draws.test if study.labels[one.task].iloc[row] == one.label]
        images = read_images(study.settings.folder, study.manifest, tuple(study.manifest.counts),
                             study.rows[rows].tolist(), encoder.input, batch_size=8, device=CPU, workers=1)  # fmt: skip
        grey = images[:, 0].numpy() * encoder.input.std + encoder.input.mean
        (place,) = [n for n, image in enumerate(grey) if np.allclose(image.clip(0, 1), one.image, atol=1e-6)]
        falls = []
        for top in range(CELLS - PATCH + 1):
            for left in range(CELLS - PATCH + 1):
                covered = images[place : place + 1].clone()
                side = SIDE // CELLS
                covered[..., top * side : (top + PATCH) * side, left * side : (left + PATCH) * side] = 0
                joint = np.concatenate([features, Corner()(covered).numpy()])
                standard = standardise(joint, np.append(study.reference, False))
                decisions = []
                for draw in range(3):
                    support, labels = (part[draw] for part in draws.support(3))
                    probe = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
                    decisions.append(probe.fit(standard[support].astype(float), labels).decision_function(
                        standard.astype(float)))  # fmt: skip
                mean = np.mean(decisions, axis=0)
                falls.append((mean[rows[place]] - mean[-1]) / mean[draws.test].std())
        assert np.allclose(one.change, spread(np.array(falls)), atol=1e-4)


def test_map_is_zero_where_the_network_does_not_look(study: Study) -> None:
    maps = occlusion_maps(study, study.encoders[0], features_of(study), CPU)
    seen = CELLS // 2 + PATCH - 1  # cells that share a patch with the corner
    for one in maps:
        assert np.abs(one.change[: CELLS // 2, : CELLS // 2]).max() > 0.01
        assert not one.change[seen:].any() and not one.change[:, seen:].any()


def test_number_of_maps_is_that_of_the_setting(study: Study) -> None:
    for number in (0, 1, 3):
        chosen = replace(study, settings=replace(study.settings, maps=number))
        assert len(occlusion_maps(chosen, study.encoders[0], features_of(study), CPU)) == number * len(study.drawn)


def test_every_pixel_is_covered_once_by_the_cells_of_a_grid() -> None:
    """Sides that CELLS does not divide, too."""
    for side in (32, 50, 224):
        copies = cover(torch.ones(1, side, side))
        covered = (copies == 0).sum(dim=0)[0]
        assert len(copies) == (CELLS - PATCH + 1) ** 2 and covered.min() == 1 and covered.max() == PATCH**2


def test_picture_names_where_the_score_comes_from(study: Study) -> None:
    maps = occlusion_maps(study, study.encoders[0], features_of(study), CPU)
    one = maps[0]._replace(change=np.pad(np.ones((4, 4)), ((8, 0), (0, 8))))
    picture = plot_maps(one.task, [one])
    assert picture.kind == "png" and picture.content.startswith(b"\x89PNG")
    assert picture.alt.endswith(f"{one.task}. Areas that add most: present, lower left +1.00 SD.")


def test_task_without_the_headline_s_shots_has_no_map(study: Study) -> None:
    """Its probes were trained on fewer examples, so its scores are not those of the report's tables."""
    few = next(iter(study.drawn))
    less = replace(study, measured={**study.measured, few: []})
    tasks = {one.task for one in occlusion_maps(less, study.encoders[0], features_of(study), CPU)}
    assert tasks == set(study.drawn) - {few}
