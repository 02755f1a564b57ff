"""Exports of timm's architectures: timm, the Hugging Face hub and our probe load them with equal features."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from probe.encoders import open_encoder
from probe.features import Input
from shard.errors import InputError
from tests.test_export import (
    JOURNAL,
    KNOWN,
    MEAN,
    SIZE,
    STD,
    Run,
    card_of,
    check_page,
    features_by,
    features_equal,
    image,
    make_run,
    skip_old_torch,
    three_channels,
)
from train.architectures import ARCHITECTURES
from train.export.channels import three_channel_encoder
from train.export.export import export
from train.export.library import short_name

__all__ = ["image"]  # a fixture

# A model with a tag and one size of images, three convolutional families, and a stem that standardises its weights.
VIT, NFNET = "timm/test_vit.r160_in1k", "timm/test_nfnet"
MODELS = (VIT, "timm/test_convnext", "timm/test_efficientnet", "timm/densenet121", NFNET)
models = pytest.mark.parametrize("arch", MODELS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Run, Path]]:
    """A function from an architecture to a run and its export in the default format, which are made once."""
    made: dict[str, tuple[Run, Path]] = {}

    def exported(arch: str) -> tuple[Run, Path]:
        if arch not in made:
            run = make_run(tmp_path_factory.mktemp("run"), arch, **KNOWN)
            (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in JOURNAL))
            export(run.folder)
            made[arch] = run, run.folder / "export" / f"{short_name(arch)}-timm"
        return made[arch]

    return exported


def fitting(path: Path, image: torch.Tensor) -> torch.Tensor:
    """Return the normalised image with as many channels as the exported weights have."""
    grey = (image - MEAN) / STD
    return grey if card_of("timm", path)["channels"] == 1 else three_channels(image)


@models
def test_timm_loads_the_folder_as_it_is(
    exported: Callable[[str], tuple[Run, Path]], arch: str, image: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    run, path = exported(arch)
    name, ours, images = f"local-dir:{path}", run.features(image), fitting(path, image)
    assert features_equal(ours, features_by(timm.create_model(name, pretrained=True), images))
    assert features_equal(ours, features_by(timm.create_model(name, pretrained=True, num_classes=0), images))
    grey = timm.create_model(name, pretrained=True, in_chans=1)
    assert features_equal(ours, features_by(grey, (image - MEAN) / STD))
    classifier = timm.create_model(name, pretrained=True, num_classes=5)
    assert features_by(classifier, images).shape == (3, 5)
    pooled = classifier.forward_head(classifier.forward_features(images), pre_logits=True)
    assert features_equal(ours, pooled.detach())
    assert not caplog.records
    maps = features_by(timm.create_model(name, pretrained=True, features_only=True), images)
    if hasattr(run.encoder, "forward_intermediates"):  # timm 1.0.30 lacks it for some architectures
        with torch.inference_mode():
            expected = run.encoder.forward_intermediates((image - MEAN) / STD, intermediates_only=True)
        assert features_equal(expected[-1], maps[-1])


def test_larger_images_need_only_img_size(exported: Callable[[str], tuple[Run, Path]]) -> None:
    _, path = exported(VIT)
    larger = timm.create_model(f"local-dir:{path}", pretrained=True, img_size=96)
    assert features_by(larger, torch.zeros(1, 3, 96, 96)).shape == (1, 64)


@models
def test_config_differs_from_timms_own_only_in_what_is_ours(
    exported: Callable[[str], tuple[Run, Path]], arch: str, tmp_path: Path
) -> None:
    if "data_config" not in inspect.signature(timm.models.save_for_hf).parameters:
        pytest.skip(f"save_for_hf of timm {timm.__version__} does not take the size and statistics of images")
    _, path = exported(arch)
    ours = json.loads((path / "config.json").read_text())
    model = timm.create_model(f"local-dir:{path}", pretrained=True)
    model.pretrained_cfg = timm.create_model(arch.removeprefix("timm/")).pretrained_cfg  # not the one that we wrote
    input_size = (ours["card"]["channels"], SIZE, SIZE)
    count = input_size[0]
    data = {"input_size": input_size, "mean": (MEAN,) * count, "std": (STD,) * count, "interpolation": "bilinear",
            "crop_pct": 1.0, "crop_mode": "squash"}  # fmt: skip
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True, data_config=data)
    theirs = json.loads((tmp_path / "config.json").read_text())
    assert ours.pop("card") == card_of("timm", path)
    # timm repeats there what num_classes, input_size and global_pool state; transformers refuses num_classes.
    assert ours.pop("model_args").items() <= theirs.pop("model_args").items()
    # Names of the weights that timm publishes, their terms and their classes.
    published = {"tag", "license", "origin_url", "paper_ids", "paper_name", "description", "notes", "test_input_size",
                 "test_crop_pct", "test_pool_size"}  # fmt: skip
    theirs["pretrained_cfg"] = {key: value for key, value in theirs["pretrained_cfg"].items() if key not in published}
    assert ours["pretrained_cfg"].pop("tag") == "cxr_simclr"
    assert ours == theirs
    assert load_file(path / "model.safetensors").keys() == load_file(tmp_path / "model.safetensors").keys()


@models
def test_page_works_as_it_is_written(
    exported: Callable[[str], tuple[Run, Path]], arch: str, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = exported(arch)
    monkeypatch.chdir(path.parent)
    page = (path / "README.md").read_text()
    assert page.count("```python") == 2
    check_page(page, run, image)
    export(run.folder, format="safetensors")
    name = path.name.removesuffix("-timm")
    check_page((path.parent / f"{name}-safetensors.md").read_text(), run, image)


@models
def test_probe_reads_the_exports_back(
    exported: Callable[[str], tuple[Run, Path]], arch: str, image: torch.Tensor
) -> None:
    run, path = exported(arch)
    export(run.folder, format="safetensors", out=path.parent / "b.safetensors")
    for file in (path, path.parent / "b.safetensors"):
        name, encoder = open_encoder(file, "x", Input(48, 0.5, 0.25), 0)
        assert name == arch and encoder.input == Input(SIZE, MEAN, STD) and encoder.module is not None
        assert features_equal(run.features(image), features_by(encoder.module, (image - MEAN) / STD))


def test_hub_accepts_the_folder(
    exported: Callable[[str], tuple[Run, Path]], image: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = exported(VIT)
    assert {file.name for file in path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    page = huggingface_hub.ModelCard.load(path / "README.md")
    data = page.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("timm", "image-feature-extraction")
    assert {"timm", "image-feature-extraction"} <= set(data["tags"]) and page.text.startswith("# SimCLR test_vit")
    # The folder as the hub would hand it out, without a network.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "models--ada--cxr"
    shutil.copytree(path, cache / "snapshots" / "0123")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123")
    model = timm.create_model("hf-hub:ada/cxr", pretrained=True, cache_dir=tmp_path)
    assert features_equal(run.features(image), features_by(model, three_channels(image)))


@pytest.mark.long
@models
def test_transformers_loads_the_folder(
    exported: Callable[[str], tuple[Run, Path]], arch: str, image: torch.Tensor
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install '.[huggingface]'")
    run, path = exported(arch)
    model = transformers.AutoModel.from_pretrained(path).eval()
    with torch.inference_mode():
        assert features_equal(run.features(image), model(fitting(path, image)).pooler_output)


LARGER = ("timm/swin_tiny_patch4_window7_224", "timm/vit_tiny_patch16_224", "timm/tf_efficientnet_lite0")


@pytest.mark.parametrize(
    "arch", [VIT, *(pytest.param(arch, marks=pytest.mark.long) for arch in (*MODELS[1:], *LARGER))]
)
def test_onnx_gives_equal_features_in_any_batch_size(tmp_path: Path, arch: str, image: torch.Tensor) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="pip install '.[export]'")
    skip_old_torch()
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[dev]'")
    run = make_run(tmp_path, arch)
    export(run.folder, format="onnx", out=tmp_path / "a.onnx")
    session, ours = onnxruntime.InferenceSession(tmp_path / "a.onnx"), run.features(image)
    for count in (1, 2, 3):
        (features,) = session.run(["features"], {"image": image[:count].numpy()})
        theirs = torch.from_numpy(features)
        assert features_equal(torch.cat([ours, ours[:count]]), torch.cat([ours, theirs]))


def test_weights_are_thirds_unless_the_stem_standardises_them(exported: Callable[[str], tuple[Run, Path]]) -> None:
    for arch, channels in ((VIT, 3), (NFNET, 1)):
        run, path = exported(arch)
        config = json.loads((path / "config.json").read_text())
        stem = load_file(path / "model.safetensors")[f"{config['pretrained_cfg']['first_conv']}.weight"]
        assert stem.shape[1] == config["pretrained_cfg"]["input_size"][0] == channels == config["card"]["channels"]
        assert len(config["pretrained_cfg"]["mean"]) == channels
        assert torch.equal(stem, stem[:, :1].expand(-1, channels, -1, -1))
        assert ("standardises" in (path / "README.md").read_text()) == (channels == 1)
        assert run.encoder.training is False


class LinearPatches(nn.Module):
    """An encoder whose images enter a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels * SIZE * SIZE, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.embed(images.flatten(1))
        return features


class Choosy(LinearPatches):
    """An encoder that no graph can hold, because what it computes depends on its input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = super().forward(images)
        return -features if features.mean() > 0 else features


def test_an_architecture_of_ones_own_is_exported_where_it_can(
    tmp_path: Path, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "mine", lambda channels: (LinearPatches(channels), 8))
    run = make_run(tmp_path, "mine")
    assert three_channel_encoder(run.encoder, "mine", SIZE) is None
    export(run.folder)
    assert card_of("safetensors", tmp_path / "export" / "mine-safetensors.safetensors")["channels"] == 1
    monkeypatch.chdir(tmp_path / "export")
    check_page(Path("mine-safetensors.md").read_text(), run, image)
    for format in ("timm", "torchvision"):
        with pytest.raises(InputError, match=rf"^--format={format}: {format} has no mine; use --format=safetensors or"):
            export(run.folder, format=format, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_format_lacks_is_refused_in_one_line(
    tmp_path: Path, exported: Callable[[str], tuple[Run, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = exported(VIT)
    with pytest.raises(InputError, match=r"torchvision has no timm/test_vit.*; use --format=timm, safetensors or on"):
        export(run.folder, format="torchvision", out=tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"--out=.*a.pth: --format=safetensors requires a file named \*.safetensors"):
        export(run.folder, format="safetensors", out=tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


def test_model_that_no_graph_can_hold_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="pip install '.[export]'")
    skip_old_torch()
    monkeypatch.setitem(ARCHITECTURES, "choosy", lambda channels: (Choosy(channels), 8))
    run = make_run(tmp_path, "choosy")
    with pytest.raises(InputError, match=r"^--format=onnx: PyTorch can't export choosy \(.*; use --form") as error:
        export(run.folder, format="onnx", out=tmp_path / "a.onnx")
    assert "\n" not in str(error.value) and not (tmp_path / "a.onnx").exists()


def test_folder_that_timm_reads_otherwise_is_refused(
    tmp_path: Path, exported: Callable[[str], tuple[Run, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = exported(VIT)
    create = timm.create_model

    def other(name: str, **arguments: Any) -> nn.Module:
        model: nn.Module = create(name, **arguments)
        if name.startswith("local-dir:"):
            nn.init.zeros_(model.get_parameter("pos_embed"))
        return model

    monkeypatch.setattr(timm, "create_model", other)
    with pytest.raises(InputError, match=r"timm does not load timm/test_vit.* \(other features\); use --format"):
        export(run.folder, format="timm", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
