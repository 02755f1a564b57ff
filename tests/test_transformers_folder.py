"""Folders of Hugging Face's transformers: features equal to those of transformers, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from probe.encoder import Encoder
from probe.encoders import open_encoders
from shard.errors import InputError
from train.weights.load import Weights
from train.weights.preprocessing import Input
from train.weights.transformers_folder import check_size, is_transformers, read_transformers

transformers = pytest.importorskip("transformers", reason="needs the extra huggingface")

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
       "patch_size": 8}  # fmt: skip
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
# Name of the configuration, its settings, the class that is saved, and whether features are the class token.
CASES = {
    "rad-dino": ("Dinov2Config", {**VIT, "patch_size": 14, "image_size": 28}, "Dinov2Model", True),
    "dinov2 with classifier": ("Dinov2Config", {**VIT, "num_labels": 3}, "Dinov2ForImageClassification", True),
    "registers": ("Dinov2WithRegistersConfig", VIT, "Dinov2WithRegistersModel", True),
    "vit": ("ViTConfig", VIT, "ViTModel", True),
    "vit with classifier": ("ViTConfig", VIT, "ViTForImageClassification", True),
    "masked vit": ("ViTConfig", {**VIT, "encoder_stride": 8}, "ViTForMaskedImageModeling", True),
    "deit": ("DeiTConfig", VIT, "DeiTForImageClassificationWithTeacher", True),
    "resnet": ("ResNetConfig", {**STAGES, "embedding_size": 8}, "ResNetForImageClassification", False),
    "grey resnet": ("ResNetConfig", {**STAGES, "embedding_size": 8, "num_channels": 1}, "ResNetModel", False),
    "convnext": ("ConvNextConfig", {**STAGES, "num_stages": 2}, "ConvNextForImageClassification", False),
    "convnextv2": ("ConvNextV2Config", {**STAGES, "num_stages": 2}, "ConvNextV2Model", False),
    "swin": ("SwinConfig", {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 32,
                            "use_absolute_embeddings": True}, "SwinForImageClassification", False),
}  # fmt: skip


def save(folder: Path, case: str, **settings: Any) -> Any:
    """Save transformers' model of a case, with weights and statistics that are all random."""
    config, given, model, _ = CASES[case]
    torch.manual_seed(0)
    module = getattr(transformers, model)(getattr(transformers, config)(**given, **settings)).eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():  # the statistics of batch normalisation, too
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor) * 0.3)
    module.save_pretrained(folder)
    return module


def features_of(module: Any, images: torch.Tensor, token: bool, **settings: Any) -> torch.Tensor:
    with torch.inference_mode():
        output = getattr(module, module.base_model_prefix, module)(images, **settings)
        found: torch.Tensor = output.last_hidden_state[:, 0] if token else output.pooler_output.flatten(1)
    return found


def features(weights: Weights, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = weights.encoder(images)
    return found


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    module, token = save(tmp_path, case), CASES[case][3]
    assert is_transformers(tmp_path)
    read = read_transformers(tmp_path)
    assert read.arch == f"transformers/{module.config.model_type}" and read.card is None
    assert read.channels == module.config.num_channels and not read.encoder.training
    assert ("class token" in read.notes[0]) == token and ("mean over" in read.notes[0]) != token
    size = getattr(module.config, "image_size", 64)
    assert read.stated.size == (size if hasattr(module.config, "image_size") else None)
    images = torch.randn(2, read.channels, size, size)
    expected = features_of(module, images, token)
    assert expected.std() > 0.01 and (features(read, images) - expected).abs().max() < 1e-4 * expected.std()
    larger = torch.randn(2, read.channels, size + 56, size + 56)  # 56: whole patches of 8 and of 14
    flag = {"interpolate_pos_encoding": True} if case in ("vit", "vit with classifier", "masked vit", "deit",
                                                           "swin") else {}  # fmt: skip
    expected = features_of(module, larger, token, **flag)
    assert (features(read, larger) - expected).abs().max() < 1e-4 * expected.std()


def test_baselines_of_a_model_of_transformers(tmp_path: Path) -> None:
    save(tmp_path, "vit with classifier")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({
        "do_normalize": True, "image_mean": [0.4] * 3, "image_std": [0.2] * 3, "resample": 3, "size": {"height": 32,
                                                                                                 "width": 32}}))
    scratch, imagenet, vit = open_encoders([f"vit={tmp_path}"], ("scratch", "imagenet"), default=Input(224, 0.5, 0.25),
                                           size=0, imagenet_weights=None, seed=1)  # fmt: skip
    assert vit.input == Input(32, 0.5, 0.25, "bicubic") and scratch.input == vit.input
    assert vit.features == scratch.features == "class token"
    assert (scratch.fed.mean, scratch.fed.source) == (vit.fed.mean, "as the first encoder")
    assert imagenet.module is None and imagenet.missing == "no weights for this architecture"
    assert vit.module is not None and scratch.module is not None
    shapes, random = ({name: value.shape for name, value in module.state_dict().items()}
                      for module in (vit.module, scratch.module))  # fmt: skip
    assert shapes == random
    images = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        expected = vit.module.network(((images * 0.25 + 0.5 - 0.4) / 0.2).expand(-1, 3, -1, -1))
        assert (vit.module(images) - expected).abs().max() < 1e-4 * expected.std()
        assert (scratch.module(images) - expected).abs().max() > 0.1 * expected.std()


def test_encoders_that_differ_in_their_heads_alone_have_other_hashes(tmp_path: Path) -> None:
    hashes = set()
    for heads in (2, 4):
        save(tmp_path, "vit")
        change_config(tmp_path, num_attention_heads=heads)
        hashes.add(Encoder("A", "", read_transformers(tmp_path).encoder, Input(32, 0.5, 0.25)).sha256())
    assert len(hashes) == 2


def test_bin_of_half_precision_is_read_in_single_precision(tmp_path: Path) -> None:
    module = save(tmp_path, "dinov2 with classifier", dtype="float16")
    state = {name: tensor.half() for name, tensor in module.state_dict().items()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    read, images = read_transformers(tmp_path), torch.randn(2, 3, 32, 32)
    assert {tensor.dtype for tensor in read.encoder.parameters()} == {torch.float32}
    expected = features_of(module.float(), images, True)
    assert (features(read, images) - expected).abs().max() < 1e-4 * expected.std()
    assert any("left out: classifier.bias, classifier.weight" in note for note in read.notes)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def change_weights(folder: Path, drop: str = "", **extra: torch.Tensor) -> None:
    state = load_file(folder / "model.safetensors")
    assert not drop or drop in state
    save_file({**{name: value for name, value in state.items() if name != drop}, **extra},
              folder / "model.safetensors")  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [(lambda folder: change_weights(folder, "layernorm.weight"), r"model\.safetensors: not the weights of the Dinov2Mod"
      r"el that config\.json .*: it lacks layernorm\.weight; copy"),
     (lambda folder: change_config(folder, num_hidden_layers=1, out_features=None, out_indices=None, stage_names=None),
      r"it has encoder\.layer\.1\..* and \d+ more"),
     (lambda folder: change_config(folder, num_hidden_layers=3), r"it lacks \S*layer\.2\..* and \d+ more"),
     (lambda folder: change_config(folder, patch_size=7), r"it has other shapes for .*"),
     (lambda folder: change_config(folder, hidden_size="x"), r"config\.json: transformers can't build this model"),
     (lambda folder: change_config(folder, auto_map={"AutoModel": "evil.Model"}), r"config\.json: has auto_map.*not r"),
     (lambda folder: change_config(folder, model_type="bert"), r"type bert is not supported; supported are .*dino"),
     (lambda folder: change_config(folder, quantization_config={}), r"quantized"),
     (lambda folder: (folder / "model.safetensors").unlink(), r"no model\.safetensors or pytorch_model\.bin; download"),
     (lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json"), "several files"),
     (lambda folder: (folder / "model.safetensors").write_bytes(b"<html>"), r"model\.safetensors: can't be read")],
    ids=["lacks a tensor", "fewer layers", "more layers", "shape", "value", "code", "text model", "quantized",
         "no weights", "several files", "a web page"],
)  # fmt: skip
def test_folder_that_is_not_one_encoder_is_refused_in_one_line(change: Any, reason: str, tmp_path: Path) -> None:
    save(tmp_path, "rad-dino")
    change(tmp_path)
    with pytest.raises(InputError, match=reason) as caught:
        read_transformers(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path))


def test_statistics_of_batch_normalisation_must_be_there(tmp_path: Path) -> None:
    save(tmp_path, "resnet")
    change_weights(tmp_path, "resnet.embedder.embedder.normalization.num_batches_tracked")  # not used
    assert not any("BatchNorm" in note for note in read_transformers(tmp_path).notes)
    change_weights(tmp_path, "resnet.embedder.embedder.normalization.running_var")
    with pytest.raises(InputError, match=r"it lacks embedder\.embedder\.normalization\.running_var"):
        read_transformers(tmp_path)


def test_size_that_is_no_multiple_of_the_patches_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "rad-dino")
    encoder = read_transformers(tmp_path).encoder
    check_size(encoder, 518, "rad")
    with pytest.raises(InputError, match=r"rad: .*patches of 14×14, which 128 px .*--input=rad:size=126 or size=140"):
        check_size(encoder, 128, "rad")


def test_missing_transformers_gives_one_line(tmp_path: Path) -> None:
    save(tmp_path, "rad-dino")
    blocked = ("import sys; sys.modules['transformers'] = None\n"  # as if it were not installed
               "from pathlib import Path\nfrom shard.errors import InputError\n"
               "from train.weights.transformers_folder import read_transformers\n"
               "try:\n    read_transformers(Path(sys.argv[1]))\nexcept InputError as error:\n    print(error)")
    ran = subprocess.run([sys.executable, "-c", blocked, tmp_path], capture_output=True, text=True, timeout=120)
    assert (ran.stderr, ran.returncode) == ("", 0)
    assert ran.stdout == (f"{tmp_path / 'config.json'}: a model of transformers, which is not installed: pip install "
                          "'.[huggingface]'\n")  # fmt: skip
