"""Opening encoders of all kinds, and their features: weights, preprocessing, caching."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision

import probe.features
from pipeline.torchvision_views import decode
from probe.baselines import SCRATCH, THUMBNAIL, imagenet_encoder, scratch_encoder, thumbnail_encoder
from probe.encoder import Encoder, GreyAsColour
from probe.encoders import open_encoder, open_encoders
from probe.feature_parts import compute_parts
from probe.features import feature_keys, read_features, read_images
from probe.fewshot import Rows
from probe.names import MEAN
from probe.page.table import thumbnail_verdicts
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.read import read_labels
from tests.conftest import Shards, newest
from train.checkpoint import list_checkpoints, save_checkpoint, step_of
from train.export.export import export
from train.weights.load import read_weights
from train.weights.preprocessing import Input

IMAGES = Input(64, 0.53, 0.24)


def test_thumbnail_averages_squares() -> None:
    image = torch.randn(2, 1, 64, 64)
    module = thumbnail_encoder(IMAGES).module
    assert module is not None
    expected = image.unflatten(2, (16, 4)).unflatten(4, (16, 4)).mean((3, 5))
    assert torch.allclose(module(image), expected.flatten(1), atol=1e-6)


def test_thumbnail_verdicts_need_interval_and_p_value() -> None:
    names = ("encoder", "reference", "task", "low", "high", "p_holm")
    rows = [("SimCLR", THUMBNAIL, "A", 0.01, 0.1, 0.04), ("SimCLR", THUMBNAIL, "B", -0.01, 0.1, 0.2),
            ("SimCLR", THUMBNAIL, "C", 0.001, 0.1, 0.06), ("ImageNet", THUMBNAIL, "A", -0.1, 0.1, 1.0),
            ("ImageNet", THUMBNAIL, "B", -0.2, -0.1, 0.01), ("ImageNet", THUMBNAIL, "C", -0.2, -0.01, 0.06),
            ("SimCLR", "Scratch", "B", 0.1, 0.2, 0.01), ("SimCLR", THUMBNAIL, MEAN, 0.1, 0.2, 0.01)]  # fmt: skip
    assert thumbnail_verdicts(pd.DataFrame(rows, columns=names)) == [
        "SimCLR beats the 16×16 thumbnail on A and the mean over tasks. "
        "SimCLR is not shown to beat the 16×16 thumbnail on B and C.",
        "ImageNet is worse than the 16×16 thumbnail on B. "
        "ImageNet is not shown to beat the 16×16 thumbnail on A and C.",
    ]


def test_imagenet_features_equal_torchvision_on_grey_image_in_three_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None)
    torch.save(resnet.state_dict(), tmp_path / "weights.pt")
    encoder = imagenet_encoder("resnet18", IMAGES, tmp_path / "weights.pt")
    assert isinstance(encoder.module, GreyAsColour)
    grey = torch.rand(2, 1, 64, 64)
    resnet.fc = torch.nn.Identity()
    colour = torchvision.transforms.functional.normalize(
        grey.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.inference_mode():
        assert torch.allclose(encoder.module((grey - 0.53) / 0.24), resnet.eval()(colour), atol=1e-4)


@pytest.mark.parametrize("content", ["missing", "no weights", "other arch"])
def test_unfit_imagenet_weights_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "weights.pt"
    if content == "no weights":
        file.write_text("text")
    elif content == "other arch":
        torch.save(torchvision.models.resnet34(weights=None).state_dict(), file)
    reasons = "no such file|can't be read as weights|not resnet18's weights"
    with pytest.raises(InputError, match=rf"weights\.pt: ({reasons})"):
        imagenet_encoder("resnet18", IMAGES, file)


def test_imagenet_baseline_is_missing_for_an_architecture_that_torchvision_lacks() -> None:
    encoder = imagenet_encoder("ours", IMAGES, None)
    assert encoder.module is None and encoder.missing == "no weights for this architecture"


def test_features_are_deterministic_and_in_order_of_labels(shards: Shards, tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(1, 2, 3))[:, None]

    images = Input(32, 0.0, 1.0)
    encoders = [scratch_encoder("resnet18", 0, images), Encoder("Mean", "", Mean(), images)]
    splits = tuple(shards.manifest.counts)

    def read(cache: str, rows: Rows | None = None) -> dict[str, Any]:
        return read_features(encoders, shards.folder, shards.manifest, splits, cache=tmp_path / cache, batch_size=32,
                             device=torch.device("cpu"), workers=1, rows=rows)  # fmt: skip

    once, again = read("once"), read("again")
    assert np.array_equal(once[SCRATCH], again[SCRATCH]) and once[SCRATCH].shape == (121, 512)
    some = np.array([0, 5, 96, 97, 120])  # of both splits
    assert np.allclose(read("some", some)[SCRATCH], once[SCRATCH][some], atol=1e-5)
    labels = read_labels(shards.folder, shards.manifest, splits)
    assert len(labels) == 121
    means = {}
    for split in splits:
        images = Fetcher(shards.folder, shards.manifest, split)
        means |= {images.key(number): float(decode(images, number).mean()) for number in range(len(images))}
    expected = np.array([means[key] for key in labels["key"]])
    assert np.abs(once["Mean"][:, 0] - expected).max() < 0.02 < expected.std()


def features_of(module: torch.nn.Module, colour: bool = False) -> np.ndarray[Any, Any]:
    torch.manual_seed(1)
    grey = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        return np.asarray(module.eval()(grey.expand(-1, 3, -1, -1) if colour else grey))


def test_corrupt_checkpoint_warns_and_previous_one_is_used(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    corrupt, good = list_checkpoints(tmp_path / "run")[:2]
    corrupt.write_bytes(corrupt.read_bytes()[:-1])
    _, encoder = open_encoder(tmp_path / "run", "x", IMAGES, 0)
    export(tmp_path / "run", out=tmp_path / "weights.pth")
    stderr = capsys.readouterr().err
    assert stderr.count(f"warning: {corrupt} is truncated or corrupt; using {good}") == 2
    assert encoder.state is not None and encoder.state["step"] == step_of(good)
    assert corrupt.exists()  # opening and exporting do not write to the run


def test_nan_features_are_refused(shards: Shards, tmp_path: Path) -> None:
    encoder = scratch_encoder("resnet18", 0, Input(32, 0.5, 0.25))
    assert encoder.module is not None
    with torch.no_grad():
        next(encoder.module.parameters())[0] = float("nan")
    with pytest.raises(InputError, match=r"Scratch: features are NaN.*\(resnet18, random weights"):
        read_features([encoder], shards.folder, shards.manifest, ("valid",), cache=tmp_path, batch_size=32,
                      device=torch.device("cpu"), workers=1)  # fmt: skip
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state},
                                  lambda state: {f"module.encoder.{name}"[7:]: value for name, value in state.items()},
                                  lambda state: {"model": {f"backbone.{name}": value for name, value in state.items()},
                                                 "epoch": 3}])  # fmt: skip
def test_state_dicts_of_torchvision_and_timm_are_read_with_architecture(
    tmp_path: Path, wrap: Callable[[Any], Any]
) -> None:
    torch.manual_seed(0)
    for module in (torchvision.models.resnet34(), timm.create_model("resnet50", num_classes=7)):
        torch.save(wrap(module.state_dict()), tmp_path / "weights.pt")
        read = read_weights(tmp_path / "weights.pt")
        of_torchvision = isinstance(module, torchvision.models.ResNet)
        assert read.arch == ("resnet34" if of_torchvision else "resnet50") and read.channels == 3
        module.fc = torch.nn.Identity()
        assert np.abs(features_of(read.encoder, True) - features_of(module, True)).max() < 1e-5


@pytest.mark.parametrize(
    ("state", "reason"),
    [({"layer1.0.conv1.weight": torch.zeros(3)}, r"known by the names of its 1 tensors \(layer1.0.conv1.weight\)"),
     ([1, 2], "contains no named tensors"), (None, "can't be read as weights")],
    ids=["no stem", "a list", "text"],
)  # fmt: skip
def test_other_files_are_refused_in_one_line(tmp_path: Path, state: Any, reason: str) -> None:
    file = tmp_path / "weights.pt"
    torch.save(state, file) if state is not None else file.write_text("text")
    with pytest.raises(InputError, match=rf"weights.pt: .*{reason}") as caught:
        open_encoder(file, "x", IMAGES, 0)
    assert "\n" not in str(caught.value) and "give a state dict" in str(caught.value)


def test_run_checkpoint_and_exports_are_the_same_encoder(trained: Path, tmp_path: Path) -> None:
    state = newest(trained)
    arch, run = open_encoder(trained, "run", IMAGES, 0)
    assert arch == "timm/test_resnet" and run.module is not None and "epoch 2" in run.source and run.run == trained
    weights = run.module.state_dict()
    assert all(torch.equal(value, state["model"][f"encoder.{name}"]) for name, value in weights.items())
    assert run.input == Input(32, state["augmentation"]["mean"], state["augmentation"]["std"])
    assert "at 32 px, bilinear; mean 0." in run.notes[0] and run.notes[0].endswith("from its checkpoint")
    (checkpoint,) = [path for path in (trained / "checkpoints").glob("*.pt") if f"{state['step']:09d}" in path.name]
    files = [checkpoint]
    for form, name in (("safetensors", "b.safetensors"), ("timm", "c")):
        export(trained, format=form, out=tmp_path / name)
        files.append(tmp_path / name)
    expected = features_of(run.module)
    for file in files:
        arch, encoder = open_encoder(file, "file", IMAGES, 0)
        assert arch == "timm/test_resnet" and encoder.input == run.input and encoder.module is not None
        source = "checkpoint" if file == checkpoint else "model card"
        assert encoder.notes == (run.notes[0].replace("checkpoint", source),)
        assert np.abs(features_of(encoder.module) - expected).max() < 1e-4 < expected.std(), file


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"std": 0.0}, "ValueError: invalid augmentation"), ({"blur_sigma": "x"}, "ValueError: invalid augmentation"),
     ({"shear": 0.1}, "TypeError: .*shear")],
)  # fmt: skip
def test_checkpoint_with_invalid_augmentation_is_neither_opened_nor_exported(
    trained: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    state = newest(trained)
    path = save_checkpoint(tmp_path, 7, {**state, "augmentation": {**state["augmentation"], **change}})
    for use in (lambda: open_encoder(tmp_path, "x", IMAGES, 0), lambda: export(tmp_path)):
        with pytest.raises(InputError, match=rf"{path.name}: not the content of a run's checkpoint \({reason}"):
            use()
    assert not (tmp_path / "export").exists()


def test_default_names_and_baselines(trained: Path, tmp_path: Path) -> None:
    def names(*given: str, baselines: tuple[str, ...] = ("scratch", "thumbnail")) -> list[str]:
        opened = open_encoders(given, baselines, default=IMAGES, size=48, imagenet_weights=None, seed=0)
        assert {encoder.input.size for encoder in opened} == {48}
        return [encoder.name for encoder in opened]

    assert names(str(trained)) == [SCRATCH, THUMBNAIL, "SimCLR"]
    assert names(str(trained), f"other={trained}", baselines=("thumbnail",)) == [THUMBNAIL, "trained", "other"]
    with pytest.raises(InputError, match="two encoders are called trained; name them"):
        names(str(trained), str(trained))
    with pytest.raises(InputError, match="absent: no such run or file of weights"):
        names(str(tmp_path / "absent"))


def test_cached_features_are_those_of_a_gpu_and_a_batch_size(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Algorithms differ between GPUs and shapes, and round differently."""
    scratch, gpu = scratch_encoder("resnet18", 0, IMAGES), "NVIDIA A100"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)

    def key(device: str, batch_size: int) -> str:
        return feature_keys([scratch], shards.manifest, ("valid",), torch.device(device), batch_size)[SCRATCH][0]

    on_a100 = key("cuda", 16)
    assert on_a100 == key("cuda", 16)
    assert len({on_a100, key("cuda", 64), key("cpu", 16), key("cpu", 64)}) == 4
    gpu = "NVIDIA H100"
    assert key("cuda", 16) != on_a100


def test_features_are_cached_by_weights_input_and_shards(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoders with the same input share a pass over the images."""
    computed: list[int] = []

    def counted(work: Any, *arguments: Any, **settings: Any) -> Any:
        ((_, encoders),) = work
        computed.append(len(encoders))
        return compute_parts(work, *arguments, **settings)

    monkeypatch.setattr(probe.features, "compute_parts", counted)

    def read(*encoders: Encoder) -> dict[str, Any]:
        return read_features(encoders, shards.folder, shards.manifest, ("valid",), cache=tmp_path, batch_size=16,
                             device=torch.device("cpu"), workers=1)  # fmt: skip

    small = Input(32, 0.5, 0.25)
    scratch, pixels, other = scratch_encoder("resnet18", 0, small), thumbnail_encoder(small), thumbnail_encoder(IMAGES)
    once = read(scratch, pixels, dataclasses.replace(scratch, module=None, name="absent"))
    assert computed == [2] and set(once) == {SCRATCH, THUMBNAIL}
    again = read(dataclasses.replace(scratch, name="by another name"), pixels)
    assert computed == [2] and np.array_equal(again["by another name"], once[SCRATCH])
    assert not np.array_equal(read(other)[THUMBNAIL], once[THUMBNAIL]) and computed == [2, 1]
    assert not np.array_equal(read(scratch_encoder("resnet18", 1, small))[SCRATCH], once[SCRATCH])
    assert computed == [2, 1, 1]
    for place in (-5, 30, 60, None):  # corrupt and truncated files, headers too, are replaced
        for file in tmp_path.glob("*.npy"):
            content = bytearray(file.read_bytes())
            content[place or 0] ^= 1
            file.write_bytes(content if place else content[:-100])
        assert np.array_equal(read(scratch)[SCRATCH], once[SCRATCH]) and computed.pop() == 1


def test_read_images_follows_row_numbers(shards: Shards) -> None:
    splits = tuple(shards.manifest.counts)
    rows = [118, 3, 77, 0]
    found = read_images(shards.folder, shards.manifest, splits, rows, Input(96, 0.0, 1.0), batch_size=3,
                        device=torch.device("cpu"), workers=1)  # fmt: skip
    keys = read_labels(shards.folder, shards.manifest, splits)["key"].iloc[rows]
    for key, image in zip(keys, found, strict=True):
        for split in splits:
            fetcher = Fetcher(shards.folder, shards.manifest, split)
            for number in range(len(fetcher)):
                if fetcher.key(number) == key:
                    assert abs(float(decode(fetcher, number).mean()) - float(image.mean())) < 0.01
