"""Presets: the published recipe is unchanged, flags override presets, and a run's description names its recipe."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.augmentation import Augmentation
from pipeline.partners import Patients
from pipeline.sampler import BatchSampler
from probe.encoders import open_encoder
from shard.cli import bind
from shard.errors import InputError
from tests.conftest import DALI, SMALL, Shards, newest, run_module, same_run, train_here
from train.__main__ import COMMANDS
from train.config import IMAGENET, Config
from train.journal import CARD, read_journal
from train.presets import PRESETS, Preset
from train.recipe import describe_recipe, overrides, recipe_of, train_command
from train.setup import set_up
from train.state import TrainState
from train.status import status
from train.weights.preprocessing import Input


@pytest.fixture(scope="module")
def patient_run(partner_shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of --preset=patient with an overridden temperature, started from the command line."""
    out = tmp_path_factory.mktemp("runs") / "patient"
    done = run_module("train", f"--shards={partner_shards.folder}", f"--out={out}", DALI, "--epochs=2", *SMALL,
                      "--preset=patient", "--temperature=0.1", "--online-every=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def config_of(*flags: str) -> Config:
    """Return the settings that a command line gives."""
    call: Any = bind("python -m train", COMMANDS, [*flags])
    config: Config = call.arguments().arguments["config"]
    return config


def test_default_is_the_published_recipe(shards: Shards) -> None:
    augmentation = set_up(Config(shards=shards.folder, out=shards.folder, batch_size=16, device="cpu")).augmentation
    assert augmentation == Augmentation(mean=augmentation.mean, std=augmentation.std)
    config = Config(shards=shards.folder, out=shards.folder)
    assert (config.optimizer, config.lr, config.batch_size, config.epochs) == ("adam", 3e-4, 64, 100)
    assert {name: getattr(config, name) for name in recipe_of("published")} == {
        "temperature": 0.5, "crop_min": 0.2, "flip": 0.5, "blur": 0.5, "patient_positive": 0.0,
        "same_patient": "negatives", "freeze_batchnorm": False, "schedule": "constant", "warmup_epochs": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_valid_and_needs_at_most_weights(preset: Preset, shards: Shards, tmp_path: Path) -> None:
    settings, init = recipe_of(preset), IMAGENET if preset == "continued" else ""
    assert PRESETS[preset].items() <= settings.items()
    flags = [f"--init={init}"] if init else []
    config = config_of(f"--shards={shards.folder}", f"--out={tmp_path}", f"--preset={preset}", *flags)
    assert config == Config(shards=shards.folder, out=tmp_path, preset=preset, init=init, **settings)
    assert not overrides(config.plain()) and describe_recipe(config.plain()) == f"preset {preset}"
    command = train_command(config.plain())
    assert (f"--preset={preset}" in command) == (preset != "published")
    assert not any(f"--{name.replace('_', '-')}" in command for name in settings)


def test_frozen_batchnorm_needs_weights(shards: Shards, tmp_path: Path) -> None:
    given = [f"--shards={shards.folder}", f"--out={tmp_path}"]
    with pytest.raises(InputError, match=r"--preset=continued: keeps .* give --init=PATH too, or --preset=patient"):
        config_of(*given, "--preset=continued")
    with pytest.raises(InputError, match=r"--freeze-batchnorm: keeps .* give --init=PATH too, or omit it"):
        config_of(*given, "--freeze-batchnorm")
    assert not config_of(*given, "--preset=continued", "--freeze-batchnorm=false").freeze_batchnorm


def test_flags_override_the_preset_even_with_zero(shards: Shards, tmp_path: Path) -> None:
    config = config_of(f"--shards={shards.folder}", f"--out={tmp_path}", "--blur=0", "--temperature=0.1", "--epochs=3",
                       "--preset=patient")  # fmt: skip
    assert {name: getattr(config, name) for name in recipe_of("patient")} == {
        **recipe_of("patient"), "blur": 0.0, "temperature": 0.1}  # fmt: skip
    assert overrides(config.plain()) == {"blur": 0.0, "temperature": 0.1}


def test_checkpoints_older_than_presets_use_the_published_recipe() -> None:
    assert describe_recipe({"temperature": 0.2}) == "preset published with --temperature=0.2"
    assert describe_recipe({"temperature": 0.5, "schedule": "cosine"}) == "preset published with --schedule=cosine"


def test_flag_overrides_preset_and_is_reported(
    patient_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = newest(patient_run)
    assert {name: state["config"][name] for name in PRESETS["patient"]} == {**PRESETS["patient"], "temperature": 0.1}
    assert state["augmentation"]["patient_positive"] == PRESETS["patient"]["patient_positive"]
    words = "preset patient with --temperature=0.1"
    status(patient_run)
    assert words in capsys.readouterr().out
    assert words in open_encoder(patient_run, "one", Input(32, 0.5, 0.2), 0)[1].source
    done = run_module("train", "export", str(patient_run), "--format=safetensors",
                      f"--out={tmp_path / 'one.safetensors'}")  # fmt: skip
    assert done.returncode == 0 and words in next(tmp_path.glob("*.md")).read_text()
    command = json.loads((patient_run / CARD).read_text())["command"]
    assert "--preset=patient" in command and "--temperature=0.1" in command and "--crop-min" not in command


def test_journal_has_the_share_of_same_patient_pairs(patient_run: Path, trained: Path) -> None:
    shares = [line["same_patient_pairs"] for line in read_journal(patient_run) if line["kind"] == "step"]
    assert all(0 <= share < 0.5 for share in shares) and max(shares) > 0
    assert not any("same_patient_pairs" in line for line in read_journal(trained))


@pytest.mark.parametrize("same", ["masked", "positives"])
def test_loss_receives_the_patients_of_its_step(
    partner_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: Any
) -> None:
    received: list[list[int]] = []

    def step(state: TrainState, *views: torch.Tensor, patients: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
        received.append(patients.tolist())
        state.step += 1
        state.step_in_epoch += 1
        return torch.ones(()), torch.randn(32, 8), torch.randn(32, 8)

    monkeypatch.setattr("train.loop.train_step", step)
    train_here(partner_shards, tmp_path / "run", same_patient=same, batch_size=32, online_every=0)
    numbers = Patients(partner_shards.folder, partner_shards.manifest, "train").ids
    sampler = BatchSampler(partner_shards.manifest.shard_sizes("train"), 32)
    assert received == [numbers[batch.indices].tolist() for batch in islice(sampler.batches(0, 0), 2 * sampler.steps)]


@pytest.mark.long
def test_run_with_partners_resumes_exactly(partner_shards: Shards, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"preset": "patient", **PRESETS["patient"]}
    train_here(partner_shards, tmp_path / "uninterrupted", **settings)
    for limit in (2, 8, 0):
        train_here(partner_shards, tmp_path / "resumed", **settings, limit_steps=limit)
    assert same_run(tmp_path / "uninterrupted", tmp_path / "resumed")


@pytest.mark.long
def test_explicit_published_settings_equal_the_defaults(shards: Shards, trained: Path, tmp_path: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in recipe_of("published").items()]
    done = run_module("train", f"--shards={shards.folder}", f"--out={tmp_path / 'same'}", DALI, "--epochs=2", *SMALL,
                      "--preset=published", *flags)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert same_run(tmp_path / "same", trained)


def test_shards_without_partners_are_refused_before_anything_is_written(shards: Shards, tmp_path: Path) -> None:
    done = run_module("train", f"--shards={shards.folder}", f"--out={tmp_path / 'out'}", DALI, *SMALL,
                      "--preset=patient")  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    assert "--patient-positive=0.5: the shards in" in done.stderr and "--partners=3" in done.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [({"patient_positive": 1.5}, "--patient-positive=1.5: must be a number from 0 to 1"),
     ({"crop_min": 0.0}, "--crop-min=0.0: must be a number from 0.001 to 1"), ({"flip": -1.0}, "--flip=-1.0")],
)  # fmt: skip
def test_impossible_probabilities_are_refused(shards: Shards, flag: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(shards=shards.folder, out=shards.folder / "out", batch_size=8, **flag)
