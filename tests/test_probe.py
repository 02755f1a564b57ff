"""Probes against scikit-learn, against slow references, and on synthetic signals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from pipeline.loader import default_backend
from probe.encoder import Encoder
from probe.feature_parts import compute_parts, list_parts
from probe.fewshot import Rows, make_draws
from probe.finetune import finetune
from probe.full_precision import full_precision
from probe.knn import knn_draws
from probe.linear import fit_all, probe_draws
from probe.published_protocol import EPOCHS, LR, noise_features, published_draws
from probe.statistics import resample, score
from shard.progress import Progress
from tests.conftest import Shards
from train.frozen_features import NEIGHBOURS, TEMPERATURE, Features, knn_vote, standardise
from train.weights.preprocessing import Input


def test_standardise_uses_training_rows_only_and_gives_length_one() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 5, (500, 40)).astype(np.float32)
    train = np.arange(500) < 300
    standard = standardise(features, train)
    assert np.square(standard[train]).sum(axis=1).mean() == pytest.approx(1, abs=1e-3)
    moved = features.copy()
    moved[~train] += 100
    assert np.array_equal(standardise(moved, train)[train], standard[train])


def test_feature_that_is_constant_in_the_known_rows_becomes_zero() -> None:
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    features[:30, 1] = 0.25
    features[:30, 2] = 0.25 + 1e-4 * features[:30, 2]  # almost constant: 1e-4 of the others' deviation
    standard = standardise(features, np.arange(50) < 30)
    assert not standard[:, 1:3].any() and np.abs(standard[:, [0, 3]]).max() > 0.5


def test_probe_finds_signal_and_is_at_chance_on_noise(labels: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 16)).astype(np.float32)
    signal = noise.copy()
    signal[:, 3] += 3 * np.nan_to_num(labels["Mass"].to_numpy())
    draws = make_draws(labels, "Mass", shots=10, draws=40, seed=0)
    train = (labels["split"] == "train").to_numpy()
    of_signal, of_noise = (
        score(probe_draws(standardise(features, train), *draws.support(10), draws.test), draws.test_labels,
              labels["patient"].to_numpy()[draws.test], resample(40, 130, replicates=2), draws.balanced)
        for features in (signal, noise)
    )  # fmt: skip
    assert of_signal.of("auroc").both[0] > 0.8 and of_signal.of("accuracy").both[0] > 0.7
    for metric in ("auroc", "accuracy"):
        assert of_noise.of(metric).both[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("width", "shots"), [(6, 10), (512, 10), (40, 1), (16, 50)])
@pytest.mark.parametrize("inverse_l2", [1e-2, 1.0, 100.0])
def test_linear_probe_equals_scikit_learn_for_each_draw(width: int, shots: int, inverse_l2: float) -> None:
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(300, width)) / np.sqrt(width)).astype(np.float32)
    support = np.array([rng.choice(200, 2 * shots, replace=False) for _ in range(5)])
    classes, test = np.tile(np.repeat([1, 0], shots), (5, 1)), np.arange(200, 300)
    found = probe_draws(features, support, classes, test, inverse_l2=inverse_l2)
    for draw in range(5):
        probe = LogisticRegression(C=inverse_l2, tol=1e-10, max_iter=10_000)
        expected = probe.fit(features[support[draw]].astype(float), classes[draw]).decision_function(features[test])
        assert np.abs(found[draw] - expected).max() < 1e-4


def sample_draws(width: int, shots: int, draws: int = 5) -> tuple[Features, Rows, Rows, Rows, Rows]:
    """Features with some signal, support sets and their labels, test rows and their labels."""
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(300, width)) / np.sqrt(width)).astype(np.float32)
    truth = rng.integers(0, 2, 300)
    features[:, 0] += truth.astype(np.float32)
    support = np.array([np.concatenate([rng.choice(np.flatnonzero(truth[:200] == label), shots, replace=False)
                                        for label in (1, 0)]) for _ in range(draws)])  # fmt: skip
    return features, support, truth[support], np.arange(200, 300), truth[200:]


def test_probe_of_all_labels_equals_batched_probe() -> None:
    features, support, classes, test, _ = sample_draws(12, 60, draws=1)
    expected = probe_draws(features, support, classes, test)
    assert np.abs(fit_all(features, support[0], classes[0], test) - expected).max() < 1e-3


@pytest.mark.parametrize("shots", [2, 10, 40])
def test_knn_equals_scikit_learn(shots: int) -> None:
    features, support, classes, test, _ = sample_draws(16, shots)
    found = knn_draws(features, support, classes, test)
    for draw, (rows, labels) in enumerate(zip(support, classes, strict=True)):
        votes = KNeighborsClassifier(min(NEIGHBOURS, 2 * shots), metric="cosine", algorithm="brute",
                                     weights=lambda distance: np.exp(-distance / TEMPERATURE))  # fmt: skip
        expected = votes.fit(features[rows].astype(float), labels).predict_proba(features[test].astype(float))[:, 1]
        assert np.abs(1 / (1 + np.exp(-found[draw])) - expected).max() < 1e-5
        share = knn_vote(features[rows], labels, features[test])
        assert np.abs(share - expected).max() < 1e-5


def test_knn_log_odds_rank_unanimous_neighbours_by_cosine() -> None:
    examples = np.array([[1, 0], [1, 0.1], [0.9, 0.3]], np.float32)
    queries = np.array([[1, 0.1], [0.5, 1], [-1, 0.2]], np.float32)
    near, far, opposite = knn_vote(examples, np.ones(3), queries, log_odds=True)
    assert near > far > opposite > 0


def test_published_protocol_equals_a_linear_layer_trained_draw_by_draw() -> None:
    features, support, classes, test, truth = sample_draws(8, 5)
    members = np.random.default_rng(0).random((5, 100)) < 0.5
    sets = [np.ones_like(members), members]
    on_all, found = published_draws(features, support, classes, test, truth, sets, seed=3, first=7)
    (alone,) = published_draws(features, support, classes, test, truth, sets[:1], seed=3, first=7)
    assert np.array_equal(on_all, alone) and not np.array_equal(on_all, found)
    scaled = torch.from_numpy(features)
    for draw in range(5):
        start = 2 * torch.rand(9, generator=torch.Generator().manual_seed(3 * 10**6 + 7 + draw)) - 1
        layer = nn.Linear(8, 1)
        with torch.no_grad():
            layer.weight[0], layer.bias[0] = start[:8] / np.sqrt(8), start[8] / np.sqrt(8)
        optimizer, accuracies = torch.optim.Adam(layer.parameters(), lr=LR), []
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            logits = layer(scaled[support[draw]])[:, 0]
            nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(classes[draw]).float()).backward()
            optimizer.step()
            right = ((layer(scaled[test])[:, 0] > 0).numpy() == truth)[members[draw]]
            accuracies.append(right.mean())
        assert found.peak[draw] == pytest.approx(max(accuracies), abs=0.021)  # one image may differ by rounding
        assert found.final[draw] == pytest.approx(accuracies[-1], abs=0.021)


def test_published_peak_on_noise_is_above_chance_and_last_epoch_is_not() -> None:
    """On balanced test sets of the size that CheXpert gives for Cardiomegaly: 68 positive and 68 negative images."""
    rng = np.random.default_rng(0)
    truth = np.repeat([1, 0], [68, 68])
    # Like those of a ResNet: non-negative, with different scales. The labels are independent of them.
    features = (np.abs(rng.normal(size=(1000, 512))) * rng.gamma(1, 1, 512)).astype(np.float32)
    support = np.array([rng.choice(800, 20, replace=False) for _ in range(200)])
    classes = np.tile(np.repeat([1, 0], 10), (200, 1))
    (found,) = published_draws(features, support, classes, np.arange(864, 1000), truth, [np.ones((200, 136), bool)],
                               seed=0)  # fmt: skip
    figures = [100 * np.mean(found.peak), 100 * np.percentile(found.peak, 95), 100 * np.mean(found.final)]
    print("pure noise: peak {:.1f} %, one draw in twenty above {:.1f} %; last epoch {:.1f} %".format(*figures))
    assert figures[0] > 53 and figures[1] > 58 and figures[2] == pytest.approx(50, abs=1)


def test_noise_features_are_permuted_among_images() -> None:
    features = np.arange(400, dtype=np.float32).reshape(100, 4)
    noise = noise_features(features, 0)
    assert np.array_equal(np.sort(noise[:, 0]), features[:, 0]) and (noise[:, 0] != features[:, 0]).mean() > 0.9
    assert np.array_equal(noise[:, 3] - noise[:, 0], np.full(100, 3))  # rows are moved as units


class Tiny(nn.Module):
    """An encoder whose features contain no signal until its weights are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x)).relu().mean((2, 3))


def test_finetune_trains_a_copy_deterministically() -> None:
    torch.manual_seed(0)
    encoder = Tiny()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images, labels = torch.randn(60, 1, 12, 12), torch.arange(60) % 2
    images[labels == 1, :, ::2] += 1  # stripes: the mean grey level carries no signal
    images[labels == 1, :, 1::2] -= 1
    once, again = (finetune(encoder, images[:20], labels[:20], images[20:], seed=0) for _ in range(2))
    assert np.array_equal(once, again)
    assert ((once > 0) == (labels[20:] == 1).numpy()).mean() > 0.9
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


class Recorder(nn.Module):
    """An encoder that records the settings of PyTorch's libraries on a GPU, in forward and in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Conv2d(1, 4, 3), list[Flags]()

    def __deepcopy__(self, memo: object) -> Recorder:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.layer(x).mean((2, 3))
        self.seen.append(gpu_flags())
        if features.requires_grad:
            features.register_hook(lambda _: self.seen.append(gpu_flags()))
        return features


Flags = tuple[bool, bool, bool, bool]
FAST, EXACT = (True, False, True, True), (False, True, False, False)


def gpu_flags() -> Flags:
    cudnn = torch.backends.cudnn
    return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def set_gpu_flags(flags: Flags) -> None:
    cudnn = torch.backends.cudnn
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


@pytest.fixture
def fast() -> Iterator[None]:
    """The settings of a training run, and those of NVIDIA's containers."""
    before = gpu_flags()
    set_gpu_flags(FAST)
    yield
    set_gpu_flags(before)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("work", ["features", "fine-tuning", "failure"])
def test_features_and_fine_tuning_are_exact_on_a_gpu_and_restore_its_settings(shards: Shards, work: str) -> None:
    encoder, images = Recorder(), torch.randn(20, 1, 12, 12)
    if work == "features":
        frozen = Encoder("Recorder", "", encoder, Input(32, 0.5, 0.25))
        work = [(part, [frozen]) for part in list_parts({"train": range(60), "valid": range(20)}, 16)]
        with Progress("features", 80) as progress:
            for _ in compute_parts(work, shards.folder, shards.manifest, workers=1, backend=default_backend(),
                                   batch_size=16, device=torch.device("cpu"), progress=progress):  # fmt: skip
                assert gpu_flags() == FAST  # between batches, too
    elif work == "fine-tuning":
        finetune(encoder, images, torch.arange(20) % 2, images, seed=0)
    else:
        with pytest.raises(KeyError), full_precision():
            encoder(images)
            raise KeyError
    assert set(encoder.seen) == {EXACT} and gpu_flags() == FAST


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.usefixtures("fast")
def test_fine_tuning_on_a_gpu_does_not_depend_on_settings_of_the_process() -> None:
    torch.manual_seed(0)
    encoder, images, labels = Tiny(), torch.randn(64, 1, 32, 32, device="cuda"), torch.arange(20, device="cuda") % 2
    found = [finetune(encoder, images[:20], labels, images, seed=0) for _ in range(2)]
    set_gpu_flags(EXACT)
    found.append(finetune(encoder, images[:20], labels, images, seed=0))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
