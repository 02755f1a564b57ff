"""--init: what an encoder starts from, what is refused, what is recorded, and how such a run resumes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from probe.encoders import open_encoder
from shard.errors import InputError
from shard.files import sha256_of
from tests.conftest import DALI, ROOT, SETTINGS, SMALL, Shards, newest, same_run, train_here
from tests.test_ranks import start, wait_for_end
from train.architectures import build_encoder
from train.checkpoint import list_checkpoints
from train.config import Config
from train.distributed.ranks import Ranks
from train.export.export import export
from train.journal import read_card, read_journal
from train.model import SimCLR
from train.setup import set_up
from train.starting_weights import read_starting_weights
from train.status import status
from train.weights.preprocessing import Input, Stated, parse_init_input
from train.weights.source import parse_source

VIT = "timm/vit_tiny_patch16_224"
RESNET18 = ["--arch=resnet18" if flag.startswith("--arch=") else flag for flag in SMALL]


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 of torchvision for colour images, with random weights and statistics."""
    torch.manual_seed(5)
    resnet = torchvision.models.resnet18(weights=None)
    torch.nn.init.uniform_(resnet.bn1.running_mean, -1, 1)
    file = tmp_path_factory.mktemp("colour") / "resnet18.pth"
    torch.save(resnet.state_dict(), file)
    return file


def config_of(shards: Shards, out: Path, **settings: Any) -> Config:
    return Config(shards=shards.folder, out=out, **{**SETTINGS, **settings})


def started(config: Config) -> torch.nn.Module:
    """The model of a run before its first step."""
    start = read_starting_weights(config, Ranks())
    model = set_up(config, Ranks()).state.model
    start.load_into(model.encoder)
    return model.eval()


def features_of(encoder: torch.nn.Module | None, shards: Shards, size: int = 32) -> torch.Tensor:
    """The features of grey images, normalised as the shards'."""
    assert encoder is not None
    grey = torch.rand(4, 1, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features: torch.Tensor = encoder((grey - shards.manifest.pixel_mean) / shards.manifest.pixel_std)
    return features


def probed(path: Path, shards: Shards, size: int = 32, requested: Stated | None = None) -> torch.Tensor:
    """The same features by the encoder that a report opens."""
    default = Input(size, shards.manifest.pixel_mean, shards.manifest.pixel_std)
    source = parse_source(str(path))
    return features_of(open_encoder(source, "A", default, size, requested)[1].module, shards, size)


@pytest.mark.parametrize("micro_batch", [0, 8])
def test_frozen_batchnorm_keeps_the_statistics_of_the_start(
    micro_batch: int, shards: Shards, trained: Path, tmp_path: Path
) -> None:
    """The online probe after the first epoch sets the encoder to evaluation and back."""
    train_here(shards, tmp_path, init=str(trained), freeze_batchnorm=True, online_every=1, micro_batch=micro_batch)
    before, after = newest(trained)["model"], newest(tmp_path)["model"]
    of_encoder = [name for name in before if name.startswith("encoder.")]
    statistics = [name for name in of_encoder if "running_" in name or "num_batches" in name]
    assert len(statistics) > 6 and all(torch.equal(before[name], after[name]) for name in statistics)
    changed = [name for name in of_encoder if not torch.equal(before[name], after[name])]
    assert {*changed} == {*of_encoder} - {*statistics}  # scales and shifts of BatchNorm included


def test_frozen_batchnorm_normalises_by_its_statistics_and_not_by_the_batch() -> None:
    model = SimCLR("timm/test_resnet", 32, freeze_batchnorm=True).train()
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    features = model.encoder(images)
    assert features.requires_grad and torch.equal(features, model.eval().encoder(images))
    usual = SimCLR("timm/test_resnet", 32).train()
    usual.load_state_dict(model.state_dict())
    assert not torch.allclose(features, usual.encoder(images))


def test_run_and_checkpoint_and_exports_start_with_the_features_of_the_probe(
    shards: Shards, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = probed(trained, shards)
    export(trained, format="timm", out=tmp_path / "export")
    export(trained, format="safetensors", out=tmp_path / "weights.safetensors")
    for path in (trained, list_checkpoints(trained)[0], tmp_path / "export",
                 tmp_path / "weights.safetensors"):
        model = started(config_of(shards, tmp_path / "run", init=str(path)))
        torch.testing.assert_close(features_of(model.encoder, shards), expected, rtol=1e-4, atol=1e-5)
    printed = capsys.readouterr().out
    assert "stem taken as it is: one channel, and the statistics of these shards" in printed
    assert "left: the projector, the optimizer and the state of the run" in printed
    assert f"taken: all {len(model.encoder.state_dict())} tensors of timm/test_resnet" in printed


def test_colour_weights_of_unpadded_stem_start_with_the_features_of_the_probe(
    shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    torch.save(build_encoder(VIT, 64, 3)[0].state_dict(), tmp_path / "vit.pth")
    spec, words = f"{VIT}={tmp_path / 'vit.pth'}", "mean=0.5/0.4/0.6,std=0.25/0.2/0.3"
    model = started(config_of(shards, tmp_path / "run", arch=VIT, init=spec, init_input=words))
    assert "pos_embed from [1, 17, 192] to [1, 5, 192]" in capsys.readouterr().out
    expected = probed(Path(spec), shards, requested=parse_init_input(words))
    torch.testing.assert_close(features_of(model.encoder, shards), expected, rtol=1e-4, atol=1e-4)


def test_positions_of_another_grid_are_resampled_and_reported(
    shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train_here(shards, run, arch=VIT, limit_steps=1)
    model = started(config_of(shards, tmp_path / "larger", arch=VIT, size=64, init=str(run)))
    note = "resampled by timm for images of 64 px: pos_embed from [1, 5, 192] to [1, 17, 192]"
    assert note in capsys.readouterr().out
    torch.testing.assert_close(features_of(model.encoder, shards, 64), probed(run, shards, 64), rtol=1e-4, atol=1e-4)


def test_projector_is_the_same_whatever_the_encoder_starts_from(shards: Shards, trained: Path, tmp_path: Path) -> None:
    random = started(config_of(shards, tmp_path / "run"))
    model = started(config_of(shards, tmp_path / "run", init=str(trained)))
    for name, value in random.projector.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(value, model.projector.state_dict()[name])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"init": "absent.pth"}, "--init=absent.pth: no such file or folder"),
     ({"init": "{empty}"}, "--init=.*empty: has no checkpoint in .*, and no weights"),
     ({"init": "{trained}", "arch": "resnet34"}, "weights of timm/test_resnet, not of --arch=resnet34; give --arch=ti"),
     ({"init": "{colour}", "arch": "resnet50"}, "weights of resnet18, not of --arch=resnet50; give --arch=resnet18"),
     ({"init": "{colour}"}, "--init=.*resnet18.pth: nothing states the mean and std of its images; .*--init-input"),
     ({"init": "{grey}"}, "--init=.*grey.pth: nothing states the mean and std of its images; .*--init-input"),
     ({"init": "{colour}", "init_input": "mean=0.5"}, "--init-input=mean=0.5: mean and std must be given together"),
     ({"init": "{colour}", "init_input": "imagenet,size=224"}, "must give mean and std, and no size or interpolation"),
     ({"init": "{colour}", "init_input": "mean=1/2,std=1/2"}, "needs a number, or three separated by /"),
     ({"init": "{trained}", "init_input": "imagenet"}, "is a run, which states how its images are made; omit it"),
     ({"init": "{nothing}"}, "nothing.pth: .*"),
     ({"init": "{colour}", "resume": "{trained}"}, "both say where the encoder starts"),
     ({"init_input": "imagenet"}, "--init-input=imagenet: describes the weights of --init")],
)  # fmt: skip
def test_start_that_is_impossible_is_refused_in_a_line_before_any_work(
    shards: Shards, trained: Path, colour: Path, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    torch.save(build_encoder("resnet18")[0].state_dict(), tmp_path / "grey.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "nothing.pth")
    (tmp_path / "empty").mkdir()
    paths = {"trained": trained, "colour": colour, "grey": tmp_path / "grey.pth", "nothing": tmp_path / "nothing.pth",
             "empty": tmp_path / "empty"}  # fmt: skip
    given = {name: value.format(**paths) for name, value in settings.items()}
    arch = {} if settings.get("init") == "{trained}" else {"arch": "resnet18"}
    with pytest.raises(InputError, match=message):
        train_here(shards, tmp_path / "run", **{**arch, **given})
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def from_colour(shards: Shards, colour: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch that started from colour weights."""
    out = tmp_path_factory.mktemp("from-colour") / "run"
    train_here(shards, out, arch="resnet18", init=str(colour), init_input="imagenet", epochs=1)
    return out


def test_start_is_recorded_in_checkpoint_card_status_command_and_report(
    shards: Shards, from_colour: Path, colour: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f"started from resnet18.pth, sha256 {sha256_of(colour)[:16]}"
    record = newest(from_colour)["init"]
    assert record["file"] == str(colour) and record["file_sha256"] == sha256_of(colour)
    assert record["sha256"] == newest(from_colour)["fingerprint"]["init"] and record["trained_on"] == "unknown"
    assert read_card(from_colour)["init"] == record
    assert f"--init={colour} --init-input=imagenet" in read_card(from_colour)["command"]
    status(from_colour)
    assert said in capsys.readouterr().out
    export(from_colour, format="safetensors", out=tmp_path / "a.safetensors")
    page = (tmp_path / "a.md").read_text()
    assert said in page and f"file_sha256: {sha256_of(colour)}" in page and str(colour.parent) not in page
    default = Input(32, shards.manifest.pixel_mean, shards.manifest.pixel_std)
    for path in (from_colour, tmp_path / "a.safetensors"):
        source = parse_source(str(path))
        assert said in open_encoder(source, "A", default, 32)[1].source


def test_resumed_run_needs_the_same_weights_or_none(
    shards: Shards, from_colour: Path, colour: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes(colour.read_bytes())
    flags: dict[str, Any] = {"arch": "resnet18", "init_input": "imagenet", "epochs": 1}
    train_here(shards, from_colour, init=str(copy), **flags)  # the path may change
    assert "nothing to do" in capsys.readouterr().out
    other = tmp_path / "other.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), other)
    for init, message in ((str(other), "has sha256 .*started from weights with"), (str(tmp_path / "gone"), "not what")):
        with pytest.raises(InputError, match=message):
            train_here(shards, from_colour, init=init, **flags)
    with pytest.raises(InputError, match=rf"give --init={colour} --init-input=imagenet, too"):
        train_here(shards, from_colour, arch="resnet18", epochs=1)
    with pytest.raises(InputError, match=r"--init-input=mean=0.5,std=0.5: the run in .* --init-input=imagenet; give"):
        train_here(shards, from_colour, init=str(colour), **{**flags, "init_input": "mean=0.5,std=0.5"})


def test_run_of_random_weights_cannot_get_others_later(shards: Shards, trained: Path, colour: Path) -> None:
    with pytest.raises(InputError, match="a run that started from random weights, up to step"):
        train_here(shards, trained, init=str(colour), init_input="imagenet")


def test_run_that_continues_another_inherits_what_that_started_from(
    shards: Shards, from_colour: Path, tmp_path: Path
) -> None:
    steps = newest(from_colour)["step"] + 1
    settings: dict[str, Any] = {"arch": "resnet18", "epochs": 2}
    train_here(shards, tmp_path / "next", resume=str(from_colour), limit_steps=steps, **settings)
    assert newest(tmp_path / "next")["init"] == newest(from_colour)["init"]
    train_here(shards, tmp_path / "next", limit_steps=steps + 1, **settings)  # as status says once it has a checkpoint
    assert newest(tmp_path / "next")["init"] == newest(from_colour)["init"]


@pytest.mark.long
def test_killed_run_resumes_to_the_same_weights_although_the_file_is_gone(
    shards: Shards, colour: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(colour.read_bytes())
    settings = {"arch": "resnet18", "init": str(file), "init_input": "imagenet"}
    train_here(shards, tmp_path / "whole", **settings)
    command = [sys.executable, "-m", "train", f"--shards={shards.folder}", f"--out={tmp_path / 'killed'}", DALI,
               "--epochs=2", "--checkpoint-minutes=0.0001", f"--init={file}", "--init-input=imagenet",
               *RESNET18]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list_checkpoints(tmp_path / "killed"):
        time.sleep(0.01)
    process.kill()
    printed, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    assert f"the encoder starts from {file} (sha256 {sha256_of(file)})" in printed
    file.unlink()
    train_here(shards, tmp_path / "killed", **settings)
    assert same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.long
def test_ranks_start_from_the_same_weights_read_by_the_first(shards: Shards, colour: Path, tmp_path: Path) -> None:
    commands = [["train", f"--shards={shards.folder}", f"--out={tmp_path / 'run'}", DALI, *RESNET18, "--limit-steps=2",
                 f"--init={colour if rank == 0 else 'not-on-this-node.pth'}", "--init-input=imagenet"]
                for rank in range(2)]  # fmt: skip
    ended = wait_for_end(start(commands))
    assert [status for status, _, _ in ended] == [0, 0], ended
    train_here(shards, tmp_path / "one", arch="resnet18", init=str(colour), init_input="imagenet", limit_steps=2)
    assert newest(tmp_path / "run")["init"]["sha256"] == newest(tmp_path / "one")["init"]["sha256"]
    for lines in zip(read_journal(tmp_path / "one"), read_journal(tmp_path / "run"), strict=True):
        one, both = ({name: value for name, value in line.items() if name != "kind"} for line in lines)
        assert both == pytest.approx(one, rel=1e-3)
