"""The network chosen from a file: the only one, the one that its authors evaluate, or the one of PATH::KEY."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models import load_state_dict, save_for_hf

import probe.encoders
from shard.errors import InputError
from tests.small import with_statistics
from train.weights.load import read_weights
from train.weights.preprocessing import PRESETS, Input

INPUT = Input(32, 0.5, 0.25)
open_encoder = partial(probe.encoders.open_encoder, requested=PRESETS["imagenet"])
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def states() -> list[State]:
    """Two encoders' weights."""
    torch.manual_seed(0)
    return [dict(with_statistics(torchvision.models.resnet18()).state_dict()) for _ in range(2)]


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def chosen(path: Path, states: list[State]) -> int:
    """The number of the state dict that was read."""
    stem = read_weights(path).encoder.state_dict()["conv1.weight"]
    (number,) = [number for number, state in enumerate(states) if torch.equal(stem, state["conv1.weight"])]
    return number


@pytest.mark.parametrize(
    ("wrap", "key", "reason", "other"),
    [(lambda a, b: {"model": a, "EMA": {"Model": b}}, "EMA.Model", "averaged", "model"),
     (lambda a, b: {"epoch": 1, "arch": "resnet18", "state_dict": a, "state_dict_ema": b}, "state_dict_ema",
      "averaged weights, as in timm", "state_dict"),
     (lambda a, b: {"model": a, "model_ema": {"n_averaged": torch.tensor(5), **under("module.", b)}},
      "model_ema.module", "averaged weights, as in timm", "model"),
     (lambda a, b: {"state_dict": under("model.", a), "ema_state_dict": under("model.", b)}, "ema_state_dict.model",
      "averaged", "state_dict.model"),
     (lambda a, b: {"model": a, "ema": {"module": b}}, "ema.module", "averaged", "model"),
     (lambda a, b: {"student": under("module.backbone.", a), "teacher": under("backbone.", b)}, "teacher.backbone",
      "the teacher, as in DINO's", "student.module.backbone"),
     (lambda a, b: {"state_dict": {**under("module.encoder_k.", a), **under("module.encoder_q.", b)}},
      "state_dict.module.encoder_q", "the query encoder, as in MoCo's", "state_dict.module.encoder_k")],
    ids=["by case", "timm", "torchvision's references", "Lightning", "another ema", "DINO", "MoCo"],
)  # fmt: skip
def test_network_that_the_authors_evaluate_is_chosen_and_reported(
    states: list[State], tmp_path: Path, wrap: Any, key: str, reason: str, other: str
) -> None:
    path = tmp_path / "a.pth"
    torch.save(wrap(*states), path)
    assert chosen(path, states) == 1
    note = open_encoder(path, "x", INPUT, 0)[1].notes[0]
    assert note.startswith(f"weights of {key}, ") and reason in note and note.endswith(f"{path}::{other}")
    requested = Path(f"{path}::{other}")
    assert chosen(requested, states) == 0
    assert chosen(requested if "MoCo" in reason else Path(f"{path}::{other.split('.')[0]}"), states) == 0
    note = open_encoder(requested, "x", INPUT, 0)[1].notes[0]
    assert f"weights of {other}, as requested; the file contains " in note


def test_choice_equals_that_of_timm(states: list[State], tmp_path: Path) -> None:
    for first, second in (("state_dict", "state_dict_ema"), ("model", "model_ema")):
        torch.save({first: states[0], second: states[1]}, tmp_path / "a.pth")
        by_timm = load_state_dict(str(tmp_path / "a.pth"))
        assert torch.equal(by_timm["conv1.weight"], states[chosen(tmp_path / "a.pth", states)]["conv1.weight"])


def test_several_networks_without_a_known_choice_are_refused(states: list[State], tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"left": states[0], "right": {"net": states[1]}}, path)
    with pytest.raises(InputError, match=r"2 networks: left, right.net; choose one: .*a\.pth::left"):
        read_weights(path)
    assert chosen(Path(f"{path}::right"), states) == 1 and chosen(Path(f"{path}::left"), states) == 0
    with pytest.raises(InputError, match=r"::middle: no network has that key; available: left, right.net"):
        read_weights(Path(f"{path}::middle"))
    torch.save({"ema_1": states[0], "ema_2": states[1]}, path)
    with pytest.raises(InputError, match=r"2 networks: ema_1, ema_2; choose one: "):
        read_weights(path)


def test_network_at_the_top_level_has_a_key(states: list[State], tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({**states[0], "ema": states[1]}, path)
    assert chosen(path, states) == 1 and chosen(Path(f"{path}::(top)"), states) == 0
    assert open_encoder(path, "x", INPUT, 0)[1].notes[0].endswith(f"for those of (top): {path}::(top)")


def test_network_under_two_names_counts_once(states: list[State], tmp_path: Path) -> None:
    torch.save({"state_dict": {**under("model.", states[0]), **under("backbone.", states[0])}}, tmp_path / "a.ckpt")
    assert chosen(tmp_path / "a.ckpt", states) == 0
    assert not [line for line in open_encoder(tmp_path / "a.ckpt", "x", INPUT, 0)[1].notes if "weights of" in line]


def test_averaged_weights_that_are_no_resnet_are_reported(states: list[State], tmp_path: Path) -> None:
    torch.save({"state_dict": states[0], "ema": {"shadow": torch.zeros(3)}}, tmp_path / "a.pth")
    assert "the averaged ones (ema.shadow, …) are not named like resnet18's" in (
        open_encoder(tmp_path / "a.pth", "x", INPUT, 0)[1].notes[0])  # fmt: skip


def test_averaged_weights_equal_to_raw_ones_count_once(states: list[State], tmp_path: Path) -> None:
    torch.save({"state_dict": states[0], "state_dict_ema": states[0]}, tmp_path / "a.pth")
    assert chosen(tmp_path / "a.pth", states) == 0
    assert "no ResNet by name" not in "".join(open_encoder(tmp_path / "a.pth", "x", INPUT, 0)[1].notes)


def test_existing_path_with_colons_is_a_path(states: list[State], tmp_path: Path) -> None:
    torch.save(states[0], tmp_path / "a::b.pth")
    assert chosen(tmp_path / "a::b.pth", states) == 0
    with pytest.raises(InputError, match="no such run or file of weights"):
        open_encoder(tmp_path / "c::b.pth", "x", INPUT, 0)


def test_key_for_a_run_or_checkpoint_is_refused(trained: Path) -> None:
    for path in (trained, sorted((trained / "checkpoints").iterdir())[0]):
        with pytest.raises(InputError, match="contains one encoder; omit ::model"):
            open_encoder(Path(f"{path}::model"), "x", INPUT, 0)


def test_weights_without_architecture_are_reported_as_assumed(states: list[State], tmp_path: Path) -> None:
    torch.save(states[0], tmp_path / "a.pth")
    notes = open_encoder(tmp_path / "a.pth", "x", INPUT, 0)[1].notes
    assert "ASSUMED to be torchvision's resnet18 (7×7 stem of stride 2, max pooling, ReLU, no dilation)" in notes[0]
    torch.save({"arch": "resnet18", "state_dict": states[0]}, tmp_path / "a.pth")
    assert not [line for line in open_encoder(tmp_path / "a.pth", "x", INPUT, 0)[1].notes if "torchvision's" in line]
    torch.save({**under("backbone.", states[0]), "classifier.4.weight": torch.zeros(2, 2, 1, 1)}, tmp_path / "a.pth")
    assert "segmentation head (classifier.4.weight)" in open_encoder(tmp_path / "a.pth", "x", INPUT, 0)[1].notes[0]


@pytest.mark.parametrize(
    ("arch", "settings", "plain", "reason"),
    [("resnetblur18", {}, False, "has architecture resnetblur18, which is not resnet18: a network with the same names"),
     ("resnet18", {"output_stride": 8}, False, "has output_stride=8, which is not the plain resnet18"),
     ("resnet18", {"act_layer": "silu"}, False, "has act_layer=silu"),
     ("resnet18", {"global_pool": "max"}, False, "global_pool=max"),
     ("resnet18", {"in_chans": 1, "drop_rate": 0.1}, True, None),
     ("resnet18.tv_in1k", {"act_layer": "relu"}, True, None)],
)  # fmt: skip
def test_config_next_to_weights_tells_which_network_with_these_names_it_is(
    tmp_path: Path, arch: str, settings: dict[str, Any], plain: bool, reason: str | None
) -> None:
    module = with_statistics(timm.create_model(arch, **settings)).eval()
    save_for_hf(module, str(tmp_path), safe_serialization=True)
    module.reset_classifier(0)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        read = read_weights(path)
        assert read.arch == ("resnet18" if plain else f"timm/{arch}") and read.notes == []
        images = torch.rand(2, read.channels, 48, 48)
        assert torch.allclose(read.encoder(images), module(images), atol=1e-5)
        if reason is not None:
            with pytest.raises(InputError, match=reason):
                read_weights(path, "resnet18")


def test_folder_with_pytorch_model_bin_is_read(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("resnet18"), str(tmp_path), safe_serialization=False)
    assert (tmp_path / "pytorch_model.bin").exists()
    assert probe.encoders.open_encoder(tmp_path, "x", INPUT, 0)[1].notes[-1].endswith("from its config.json")


def test_arch_in_a_checkpoint_tells_which_network_with_these_names_it_is(states: list[State], tmp_path: Path) -> None:
    torch.save({"arch": "resnetblur18", "state_dict": states[0]}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").arch == "timm/resnetblur18"
    with pytest.raises(InputError, match="its arch is resnetblur18, which is not resnet18"):
        read_weights(tmp_path / "a.pth", "resnet18")
    for arch, confirmed in (("ResNet-18", True), ("resnet_18", True), ("simclr-resnet18", False), ("moco", False)):
        torch.save({"arch": arch, "state_dict": states[0]}, tmp_path / "a.pth")
        assert bool(read_weights(tmp_path / "a.pth").notes) != confirmed, arch
    for arch, reason in (("simclr-resnet18-blur-resnest", "its arch is simclr-resnet18-blur-resnest, which is not"),
                         ("resnet34", r"its arch is resnet34, which its tensors do not fit \(lacks layer1.2.conv1")):
        torch.save({"arch": arch, "state_dict": states[0]}, tmp_path / "a.pth")
        with pytest.raises(InputError, match=reason):
            read_weights(tmp_path / "a.pth")
    torch.save(states[0], tmp_path / "b.pth")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    with pytest.raises(InputError, match=r"next to it has architecture vit_tiny_patch16_224.*config of another file"):
        read_weights(tmp_path / "b.pth")


def test_mismatched_weights_are_refused_with_the_difference(states: list[State], tmp_path: Path) -> None:
    for change, reason in (
        ({"bn1.weight": None}, "lacks bn1.weight"),
        ({"bn1.weight": None, "bn1.bias": None}, "lacks bn1.weight and 1 more"),
        ({"layer1.0.se.weight": torch.zeros(2)}, "has layer1.0.se.weight"),
        ({"dist_token": torch.zeros(1, 1, 2)}, "has dist_token"),
        ({"layer2.0.bn1.running_var": None}, "no BatchNorm statistics; save the complete"),
        ({"bn1.weight": torch.zeros(2)}, r"bn1.weight is \[2\] and not \[64\]"),
        ({"conv1.weight": torch.zeros(64, 2, 7, 7)}, r"conv1.weight is \[64, 2, 7, 7\] and not \[64, 3, 7, 7\]"),
    ):
        state = {name: value for name, value in {**states[0], **change}.items() if value is not None}
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(InputError, match=rf"not resnet18's weights \(.*{reason}.*\)"):
            read_weights(tmp_path / "a.pth")
    older = {name: value for name, value in states[0].items() if not name.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "a.pth")
    assert chosen(tmp_path / "a.pth", states) == 0
