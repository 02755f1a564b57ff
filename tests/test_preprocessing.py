"""Preprocessing for weights from elsewhere: from --input, from configs, or refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.models import save_for_hf

from probe.baselines import thumbnail_encoder
from probe.encoder import Encoder
from probe.encoders import open_encoder, open_encoders
from probe.page.inputs import describe_input, layout_inputs
from shard.errors import InputError
from train.architectures import build_encoder
from train.weights.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Input,
    ResolvedInput,
    Stated,
    parse_input_flag,
    resolve_input,
)
from train.weights.preprocessing_configs import stated_by_configs
from train.weights.source import Source

DEFAULT = Input(224, 0.53, 0.24)
GREY_HALF = Stated((0.5,), (0.5,))


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    """An encoder of grey images normalised by mean 0.53 and std 0.24."""
    torch.manual_seed(0)
    module = build_encoder("resnet18")[0].eval()
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
    return module


def renormalised(encoder: torch.nn.Module, mean: float, std: float) -> torch.nn.Module:
    """The same encoder for images normalised by `mean` and `std`, except at the border, where zeros are padded."""
    # (grey - 0.53) / 0.24 = (std * u + mean - 0.53) / 0.24
    module = copy.deepcopy(encoder)
    with torch.no_grad():
        weight = module.conv1.weight
        module.bn1.running_mean -= (weight * ((mean - 0.53) / 0.24)).sum((1, 2, 3))
        weight *= std / 0.24
    return module


def features(encoder: Encoder, grey: torch.Tensor) -> torch.Tensor:
    assert encoder.module is not None
    with torch.inference_mode():
        result: torch.Tensor = encoder.module((grey - encoder.input.mean) / encoder.input.std)
    return result


def save_timm(encoder: torch.nn.Module, folder: Path, channels: int, config: dict[str, Any]) -> Path:
    model = timm.create_model("resnet18", num_classes=0, in_chans=channels)
    state = dict(encoder.state_dict())
    state["conv1.weight"] = (state["conv1.weight"] / channels).repeat(1, channels, 1, 1)
    model.load_state_dict(state)
    model.pretrained_cfg = {**model.pretrained_cfg, **config}
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def test_encoder_in_three_conventions_gives_the_same_features(encoder: torch.nn.Module, tmp_path: Path) -> None:
    grey = torch.rand(4, 1, 64, 64)
    numbers = ((0.5, 1 / 2048), (0.502, 0.0856), (0.5, 0.5))
    xrv, moco, half = (renormalised(encoder, mean, std) for mean, std in numbers)
    torch.save({**xrv.state_dict(), "fc.weight": torch.zeros(18, 512), "fc.bias": torch.zeros(18)}, tmp_path / "xrv.pt")
    requested = parse_input_flag("X:torchxrayvision,size=64", ["X"])["X"]
    given = {
        "X": (tmp_path / "xrv.pt", requested, xrv, (2 * grey - 1) * 1024),
        "M": (save_timm(moco, tmp_path / "moco", 3, {"mean": (0.502,) * 3, "std": (0.0856,) * 3,
                                                      "input_size": (3, 64, 64), "crop_pct": 1.0}),
              None, moco, (grey - 0.502) / 0.0856),
        "H": (save_timm(half, tmp_path / "half", 1, {"mean": (0.5,), "std": (0.5,), "input_size": (1, 64, 64)}), None,
              half, (grey - 0.5) / 0.5),
    }  # fmt: skip
    with torch.inference_mode():
        expected = encoder((grey - 0.53) / 0.24)
    for name, (path, flag, module, normalised) in given.items():
        _, opened = open_encoder(path, name, DEFAULT, 0, flag)
        found = features(opened, grey)
        with torch.inference_mode():
            own = module(normalised)
            wrong = module((grey - 0.53) / 0.24)  # with our statistics
        assert (found - own).abs().max() < 1e-4 * own.std(), name
        assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999, name  # padding differs
        assert opened.input.size == 64
        assert torch.nn.functional.cosine_similarity(own, wrong).max() < 0.999, name


def test_notes_report_preprocessing_with_its_source(encoder: torch.nn.Module, tmp_path: Path) -> None:
    folder = save_timm(encoder, tmp_path / "a", 1, {"mean": (0.5,), "std": (0.25,), "crop_pct": 0.875})
    notes = open_encoder(folder, "A", DEFAULT, 0)[1].notes
    assert notes == ("images not cropped to 0.875 of the side, at 224 px, bicubic; mean 0.5, std 0.25 (black is "
                     "-2, white 2), from its config.json",)  # fmt: skip
    (tmp_path / "b").mkdir()
    torch.save(encoder.state_dict(), tmp_path / "b" / "b.pth")
    requested = parse_input_flag("B:torchxrayvision", ["B"])["B"]
    _, opened = open_encoder(tmp_path / "b" / "b.pth", "B", DEFAULT, 32, requested)
    note = ("images not cropped to the central square, at 32 px, bilinear (no interpolation stated); mean 0.5, std "
            "0.0004883 (black is -1024, white 1024), from --input")  # fmt: skip
    assert opened.notes[-1] == note
    assert opened.input == Input(32, 0.53, 0.24)


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_without_statistics_are_refused(channels: int, tmp_path: Path) -> None:
    torch.save(build_encoder("resnet18", channels=channels)[0].state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError) as caught:
        open_encoder(tmp_path / "a.pth", "Ours", DEFAULT, 0)
    assert str(caught.value) == (
        f"{tmp_path / 'a.pth'}: nothing states the mean and std of its images; state them: --input=Ours:imagenet, "
        "Ours:torchxrayvision, or Ours:mean=M,std=S (and size=, range=LOW/HIGH, interpolation=)")  # fmt: skip


def test_all_weights_without_statistics_are_named_at_once(tmp_path: Path) -> None:
    for name in "abc":
        torch.save(build_encoder("resnet18", channels=1)[0].state_dict(), tmp_path / f"{name}.pth")
    given = [f"{name.upper()}={tmp_path / name}.pth" for name in "abc"]
    with pytest.raises(InputError) as caught:
        open_encoders(given, [], default=DEFAULT, size=0, imagenet_weights=None, seed=0, inputs="B:imagenet")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.pth'}, {tmp_path / 'c.pth'}: nothing states the mean and std of their ")
    assert message.endswith("; for all: --input=A:…, C:…")


def test_what_was_used_is_in_the_table_of_inputs_with_its_source(encoder: torch.nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    folder = save_timm(encoder, tmp_path / "b", 1, {"mean": (0.5,), "std": (0.25,), "crop_pct": 0.9,
                                                    "input_size": (1, 64, 64)})  # fmt: skip
    opened = open_encoder(tmp_path / "a.pth", "A", DEFAULT, 0, parse_input_flag("A:imagenet", ["A"])["A"])[1]
    encoders = [thumbnail_encoder(opened.input), opened, open_encoder(folder, "B", DEFAULT, 0)[1]]
    assert layout_inputs(encoders)[1:3] == (
        ["", "Weights", "Features", "Image", "Mean", "Std", "Stated by"],
        [["Thumbnail", "the image's own grey levels, 16×16", "256 grey levels", "224 px, bilinear", "0.53", "0.24",
          "as the first encoder"],
         ["A", "resnet18, a.pth", "mean over positions", "224 px (not stated), bilinear (not stated)",
          "0.485/0.456/0.406", "0.229/0.224/0.225", "--input"],
         ["B", "resnet18, b", "mean over positions", "64 px, bicubic, not cropped to 0.9 of the side", "0.5", "0.25",
          "its config.json"]])  # fmt: skip
    assert describe_input(encoders[2]) == (
        "images not cropped to 0.9 of the side, at 64 px, bicubic; mean 0.5, std 0.25 (black is -2, white 2), from its "
        "config.json; features: mean over positions")  # fmt: skip
    grey = torch.rand(2, 1, 64, 64)
    model.fc = torch.nn.Identity()
    with torch.inference_mode():
        colour = torchvision.transforms.functional.normalize(grey.expand(-1, 3, -1, -1), IMAGENET_MEAN, IMAGENET_STD)
        assert torch.allclose(features(opened, grey), model.eval()(colour), atol=1e-4)


def test_tag_of_timm_states_the_preprocessing_of_its_weights(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "a.pth")
    _, opened = open_encoder(Source("timm/resnet18.a1_in1k", tmp_path / "a.pth"), "A", DEFAULT, 0)
    assert opened.fed == ResolvedInput(Input(224, 0.53, 0.24, "bicubic"), IMAGENET_MEAN, IMAGENET_STD,
                                       "from timm's settings of resnet18.a1_in1k", "not cropped to 0.95 of the side")
    with pytest.raises(InputError, match="nothing states"):  # whose weights they are is not said
        open_encoder(Source("timm/resnet18", tmp_path / "a.pth"), "A", DEFAULT, 0)


def test_size_of_a_model_with_positions_is_that_of_its_training_or_as_given(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, num_classes=0)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    source, flag = Source("timm/vit_tiny_patch16_224", tmp_path / "a.pth"), parse_input_flag("A:imagenet", ["A"])["A"]
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224",
                                                      "model_args": {"depth": 1}}))  # fmt: skip
    grey = torch.rand(2, 1, 96, 96)
    for size in (0, 96):
        _, opened = open_encoder(source, "A", DEFAULT, size, flag)
        assert opened.input.size == (size or 64) and opened.features == "class token"
        assert opened.fed.unstated == ("interpolation",)
        model.set_input_size(img_size=(size or 64,) * 2)
        shown = grey[..., : size or 64, : size or 64]
        colour = torchvision.transforms.functional.normalize(shown.expand(-1, 3, -1, -1), IMAGENET_MEAN, IMAGENET_STD)
        with torch.inference_mode():
            expected = model.eval()(colour)
        assert (features(opened, shown) - expected).abs().max() < 1e-4 * expected.std()
    with pytest.raises(InputError, match=r"100×100 .*patches of 16×16"):
        open_encoder(source, "A", DEFAULT, 100, flag)


@pytest.mark.parametrize(
    ("words", "expected"),
    [("imagenet", Stated(IMAGENET_MEAN, IMAGENET_STD)), ("mean=0.5,std=0.25", Stated((0.5,), (0.25,))),
     ("mean=0.1/0.2/0.3,std=1/2/4", Stated((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))),
     ("range=-1024/1024", Stated((0.5,), (1 / 2048,))), ("range=-1/1,size=96", Stated((0.5,), (0.5,), 96)),
     ("range=0/255,mean=127.5,std=51", Stated((0.5,), (0.2,))),
     ("mean=127.5,std=51,range=0/255", Stated((0.5,), (0.2,))),
     ("size=96,interpolation=bicubic", Stated(None, None, 96, "bicubic"))],
)  # fmt: skip
def test_input_flag_is_parsed(words: str, expected: Stated) -> None:
    (found,) = parse_input_flag(f"A:{words}", ["A"]).values()
    for name in ("mean", "std"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    assert (found.size, found.interpolation) == (expected.size, expected.interpolation)


def test_input_flag_of_several_encoders_with_punctuation_in_their_names() -> None:
    names = ["A", "A,B", "x:y=z", "b: c"]
    read = parse_input_flag("A,B:imagenet,x:y=z:range=-1/1,size=64, A:torchxrayvision,b: c:mean=0,std=1", names)
    assert {name: stated.size for name, stated in read.items()} == {"A,B": None, "x:y=z": 64, "A": None, "b: c": None}
    assert read["A,B"].mean == IMAGENET_MEAN and read["A"].std == (1 / 2048,) and read["b: c"].std == (1.0,)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("Z:imagenet", "starts with none of the encoders' names"), ("imagenet", "starts with none of"),
     ("A:", "A: is empty"), ("A:imagnet", "A:imagnet: not understood"), ("A:mean=0.5", "must be given together"),
     ("A:mean=x,std=1", "mean=x: needs a number"), ("A:mean=0,std=0", "std above 0"), ("A:mean=nan,std=1", "numbers"),
     ("A:mean=0.5/0.5,std=1", "three separated by /"), ("A:mean=0.485,0.456,0.406,std=1", "three separated by /"),
     ("A:mean=1,std=0.2/0.2", "three separated by /"),
     ("A:range=1/0", "the lower first"), ("A:range=1", "two numbers"), ("A:size=0", "size=0: not understood"),
     ("A:interpolation=nearest", "not understood"), ("A:imagenet,A:imagenet", "A is given twice"),
     ("A:imagenet,Z:imagenet", "Z:imagenet: not understood")],
)  # fmt: skip
def test_invalid_input_flag_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_input_flag(text, ["A", "B"])


HUGGING_FACE = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25] * 3, "resample": 3,
                "size": {"height": 96, "width": 96}}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "preprocessor", "expected"),
    [({"architecture": "resnet18", "pretrained_cfg": {"mean": [0.4], "std": [0.2], "input_size": [1, 64, 64],
                                                      "interpolation": "bilinear"}}, {},
      ((0.4,), (0.2,), 64, "bilinear")),
     ({"architecture": "resnet18", "mean": [0.4], "std": [0.2], "input_size": [1, 64, 64]}, {},  # an older config
      ((0.4,), (0.2,), 64, "bicubic")),
     ({"architecture": "resnet18"}, HUGGING_FACE, ((0.5,) * 3, (0.25,) * 3, 96, "bicubic")),
     ({}, {**HUGGING_FACE, "rescale_factor": 1 / 127.5}, ((0.25,) * 3, (0.125,) * 3, 96, "bicubic")),
     ({}, {**HUGGING_FACE, "do_rescale": False, "image_mean": [127.5], "image_std": [51]},
      ((0.5,), (0.2,), 96, "bicubic")),
     ({}, {**HUGGING_FACE, "do_normalize": False}, ((0.0,), (1.0,), 96, "bicubic")),
     ({}, {**HUGGING_FACE, "size": {"shortest_edge": 256}, "resample": 2}, ((0.5,) * 3, (0.25,) * 3, 256, "bilinear")),
     ({}, {**HUGGING_FACE, "size": 256, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
      ((0.5,) * 3, (0.25,) * 3, 224, "bicubic")),
     ({"model_type": "resnet"}, {}, (None, None, None, None))],
)  # fmt: skip
def test_configs_of_timm_and_hugging_face_are_read(config: Any, preprocessor: Any, expected: Any) -> None:
    found = stated_by_configs(config, preprocessor, Path("x"))
    for actual, values in zip(found[:2], expected[:2], strict=True):
        assert actual == (None if values is None else pytest.approx(values))
    assert found[2:4] == expected[2:]


@pytest.mark.parametrize(
    ("config", "preprocessor", "reason"),
    [({"mean": [0.4], "std": [0.2]}, HUGGING_FACE, "config.json has mean .* preprocessor_config.json"),
     ({"mean": [0.5], "std": [0]}, {}, "std above 0"), ({"mean": "x", "std": [0.2]}, {}, "can't be read"),
     ({"mean": [0.5], "std": [0.2], "input_size": [3, 64, 96]}, {}, "64×96; only squares"),
     ({}, {**HUGGING_FACE, "image_mean": [None]}, "can't be read"),
     ({"mean": [0.5], "input_size": 7}, {}, "can't be read")],
)  # fmt: skip
def test_invalid_configs_are_refused(config: Any, preprocessor: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        stated_by_configs(config, preprocessor, Path("x"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stated", "reason"),
    [(Stated((0.4, 0.5), (0.2, 0.2)), "2 means and stds for 1 channel; give --input=A"),
     (GREY_HALF._replace(interpolation="lanczos"), "resized by lanczos.*--input=A:interpolation=bilinear")],
)  # fmt: skip
def test_unsupported_preprocessing_is_refused(stated: Stated, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        resolve_input("a", "A", 1, Stated(), stated, default=DEFAULT, size=0)


def test_input_flag_overrides_config_and_size_flag_overrides_config_size() -> None:
    config = Stated((0.4,), (0.2,), 64, "bicubic", "config")
    for requested, size, expected in (
        (Stated(), 0, ((0.4,), (0.2,), 64, "bicubic")),
        (Stated(), 32, ((0.4,), (0.2,), 32, "bicubic")),
        (Stated(size=96), 32, ((0.4,), (0.2,), 96, "bicubic")),
        (Stated((0.5,), (0.5,), None, "bilinear"), 0, ((0.5,), (0.5,), 64, "bilinear")),
    ):
        found = resolve_input("a", "A", 1, requested, config, default=DEFAULT, size=size)
        assert (found.mean, found.std, found.images.size, found.images.interpolation) == expected


def test_three_means_for_one_channel_are_averaged_as_in_timm() -> None:
    requested = parse_input_flag("A:imagenet", ["A"])["A"]
    found = resolve_input("a", "A", 1, requested, Stated(), default=DEFAULT, size=0)
    config = timm.create_model("resnet18", in_chans=1).pretrained_cfg
    assert (found.mean, found.std) == (pytest.approx((0.449,)), pytest.approx((0.226,)))
    assert found.describe().endswith("mean 0.449, std 0.226 (black is -1.987, white 2.438), from --input")
    assert np.mean(config["mean"]) == pytest.approx(0.449)


def test_input_flag_for_a_run_is_refused(trained: Path) -> None:
    with pytest.raises(InputError, match=r"--input=R:…: .* is a run, which states how its images are made"):
        open_encoder(trained, "R", DEFAULT, 0, GREY_HALF)


def test_config_that_is_not_json_is_refused(encoder: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(encoder.state_dict(), tmp_path / "a.pth")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: can't be read as JSON"):
        open_encoder(tmp_path / "a.pth", "A", DEFAULT, 0)
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.5], "std": [0.5]}))
    assert "from its config.json" in open_encoder(tmp_path / "a.pth", "A", DEFAULT, 0)[1].notes[-1]
