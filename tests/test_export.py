"""An exported encoder gives equal features in every library and contains its model card."""

from __future__ import annotations

import dataclasses
import json
import logging
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torchvision
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import nn

from pipeline.augmentation import Augmentation
from shard.errors import InputError
from tests.conftest import ROOT
from train.architectures import build_encoder
from train.checkpoint import load_checkpoint, save_checkpoint
from train.export.card_page import CARD_INSIDE, contents_note
from train.export.export import export
from train.export.formats import ONNX_TORCH
from train.export.library import Format
from train.model import SimCLR

MEAN, STD, SIZE, STEP = 0.5031, 0.2907, 64, 40
SUFFIX = {"torchvision": ".pth", "timm": "", "safetensors": ".safetensors", "onnx": ".onnx"}
NEEDED = {"torchvision": (), "timm": ("timm", "safetensors"), "safetensors": ("safetensors",),
          "onnx": ("onnx", "onnxscript", "onnxruntime")}  # fmt: skip
KNOWN = {
    "shards": "0123456789abcdef", "commit": "5c859aa", "data": {"images": 191027, "patients": 64000},
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
}  # fmt: skip
JOURNAL = [
    {"kind": "step", "step": 20, "epoch": 1.0, "loss": 9.0}, {"kind": "epoch", "step": 20, "epoch": 1, "loss": 4.5},
    {"kind": "online", "step": 20, "epoch": 1, "knn_auroc": 0.61, "linear_auroc": 0.64},
    {"kind": "epoch", "step": STEP, "epoch": 2, "loss": 4.25},
    {"kind": "step", "step": STEP, "epoch": 2.0, "loss": 9.0},
    {"kind": "epoch", "step": 60, "epoch": 3, "loss": 4.0},
    {"kind": "online", "step": 60, "epoch": 3, "knn_auroc": 0.71, "linear_auroc": 0.74},
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder, and the encoder of its newest checkpoint."""

    folder: Path
    encoder: nn.Module

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """image [N, 1, S, S], grey 0..1 → [N, F]."""
        return features_by(self.encoder, (image - MEAN) / STD)


def make_run(folder: Path, arch: str, seed: int = 0, step: int = STEP, **known: Any) -> Run:
    """Create a run whose BatchNorm is far from its initial state, so that a lost tensor changes the features."""
    torch.manual_seed(seed)
    model = SimCLR(arch, SIZE).to(memory_format=torch.channels_last)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model(torch.randn(4, 1, SIZE, SIZE))  # without the statistics of images, the features of all images are alike
    with torch.no_grad():
        for norm in norms:
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean += 0.3 * norm.running_var.sqrt() * torch.randn(norm.num_features)
            norm.running_var *= torch.empty(norm.num_features).uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    save_checkpoint(folder, step, {
        "config": {"shards": "/home/ada/shards", "out": str(folder), "arch": arch, "size": SIZE, "lr": 3e-4},
        "augmentation": dataclasses.asdict(Augmentation(size=SIZE, mean=MEAN, std=STD)),
        "model": model.state_dict(), "epoch": 2, "step_in_epoch": 0, "step": step, **known,
    })  # fmt: skip
    encoder, _ = build_encoder(arch, SIZE)
    encoder.load_state_dict(model.encoder.state_dict())
    return Run(folder, encoder.eval())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with all optional records."""
    run = make_run(tmp_path_factory.mktemp("run"), "resnet18", **KNOWN)
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in JOURNAL))
    return run


def skip_old_torch() -> None:
    if torch.__version__ < ONNX_TORCH:
        pytest.skip(f"PyTorch {torch.__version__} is too old for --format=onnx")


@pytest.fixture(scope="module")
def exported(run: Run) -> Callable[[Format], Path]:
    """A function from format to the path of its export, which is created once."""
    made: dict[str, Path] = {}

    def path_of(format: Format) -> Path:
        for package in NEEDED[format]:
            pytest.importorskip(package, reason=f"--format={format} requires {package}: pip install '.[export]'")
        if format == "onnx":
            skip_old_torch()
        if format not in made:
            export(run.folder, format=format)
            made[format] = run.folder / "export" / f"resnet18-{format}{SUFFIX[format]}"
        return made[format]

    return path_of


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Three grey images, blurred noise from black to white, [3, 1, S, S]."""
    noise = F.gaussian_blur(torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), [9, 9])
    return (noise - noise.min()) / (noise.max() - noise.min())


formats = pytest.mark.parametrize("format", get_args(Format))


def features_by(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the module's output for x in evaluation mode."""
    with torch.inference_mode():
        features: torch.Tensor = module.eval()(x)
    return features


def features_equal(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Compare within 1e-5 of the largest feature; float32 sums round at 5e-7 of it. Images must differ by far more."""
    scale = ours.abs().max()
    assert ours.shape == theirs.shape and (ours[0] - ours[1]).abs().max() > 1e-2 * scale
    return bool((ours - theirs).abs().max() < 1e-5 * scale)


def three_channels(image: torch.Tensor) -> torch.Tensor:
    """Return the normalised image in three equal channels, [N, 3, S, S]."""
    return ((image - MEAN) / STD).expand(-1, 3, -1, -1)


def check_torchvision(path: Path, arch: str, ours: torch.Tensor, image: torch.Tensor) -> None:
    resnet = torchvision.models.get_model(arch, weights=None)
    resnet.load_state_dict(torch.load(path, weights_only=True))
    assert features_by(resnet, three_channels(image)).eq(0).all()  # the classifier is a placeholder
    resnet.fc = nn.Identity()
    assert features_equal(ours, features_by(resnet, three_channels(image)))


def test_torchvision_loads_the_export_strictly_with_equal_features(
    run: Run, exported: Callable[[Format], Path], image: torch.Tensor
) -> None:  # fmt: skip
    check_torchvision(exported("torchvision"), "resnet18", run.features(image), image)


def test_resnet50_exports_with_equal_features(tmp_path: Path, image: torch.Tensor) -> None:
    run = make_run(tmp_path, "resnet50")
    export(run.folder)
    path = tmp_path / "export" / "resnet50-torchvision.pth"
    check_torchvision(path, "resnet50", run.features(image[:2]), image[:2])


def test_timm_loads_the_export_with_three_channels_one_channel_or_a_classifier(
    run: Run, exported: Callable[[Format], Path], image: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    name = f"local-dir:{exported('timm')}"
    import timm

    for model in (timm.create_model(name, pretrained=True, num_classes=0), timm.create_model(name, pretrained=True)):
        assert features_equal(run.features(image), features_by(model, three_channels(image)))
    grey = timm.create_model(name, pretrained=True, num_classes=0, in_chans=1)
    assert features_equal(run.features(image), features_by(grey, (image - MEAN) / STD))
    classifier = timm.create_model(name, pretrained=True, num_classes=2)
    assert features_by(classifier, three_channels(image)).shape == (3, 2)
    features = features_by(classifier.global_pool, classifier.forward_features(three_channels(image)))
    assert features_equal(run.features(image), features)
    assert model.num_features == json.loads((exported("timm") / "config.json").read_text())["num_features"] == 512
    assert not caplog.records


def test_timm_transform_equals_the_probes_preprocessing(exported: Callable[[Format], Path]) -> None:
    folder = exported("timm")
    import timm.data

    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    levels = torch.randint(0, 256, (130, 100), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = transform(Image.fromarray(levels.numpy()).convert("RGB"))
    ours = (F.resize(levels[None] / 255, [SIZE, SIZE], antialias=True) - MEAN) / STD
    assert theirs.shape == (3, SIZE, SIZE)
    assert (theirs - ours).abs().max() < 1.1 / 255 / STD  # Pillow rounds to integers


def test_safetensors_has_torchvisions_keys_without_fc(
    run: Run, exported: Callable[[Format], Path], image: torch.Tensor
) -> None:  # fmt: skip
    path = exported("safetensors")
    from safetensors.torch import load_file

    resnet = torchvision.models.resnet18(weights=None)
    resnet.fc = nn.Identity()
    resnet.load_state_dict(load_file(path))
    assert features_equal(run.features(image), features_by(resnet, three_channels(image)))


def test_onnx_accepts_grey_images_in_any_batch_size(
    run: Run, exported: Callable[[Format], Path], image: torch.Tensor
) -> None:  # fmt: skip
    path = exported("onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("image", "tensor(float)", ["batch", 1, SIZE, SIZE])
    assert (given.name, given.type, given.shape) == ("features", "tensor(float)", ["batch", 512])
    theirs = torch.from_numpy(session.run(["features"], {"image": image.numpy()})[0])
    assert features_equal(run.features(image), theirs)
    one = torch.from_numpy(session.run(["features"], {"image": image[:1].numpy()})[0])
    assert torch.allclose(one, theirs[:1], rtol=1e-4, atol=1e-4)


def test_onnx_is_one_file_without_local_paths(run: Run, exported: Callable[[Format], Path]) -> None:
    path = exported("onnx")
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    content = path.read_bytes()
    assert not any(str(place).encode() in content for place in (ROOT, sys.prefix, run.folder))


def test_onnx_export_prints_one_line(
    run: Run, exported: Callable[[Format], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    exported("onnx")
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(run.folder, format="onnx", out=tmp_path / "a.onnx")
    assert capfd.readouterr() == (f"{tmp_path / 'a.onnx'}: resnet18, 512 features, after {STEP} steps\n", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {file.name for file in tmp_path.iterdir()} == {"a.onnx", "a.md"}


def card_of(format: Format, path: Path) -> Any:
    """Read the card of an export as its page describes."""
    if format == "torchvision":
        return torch.load(path, weights_only=True).card
    if format == "onnx":
        import onnxruntime

        return json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["card"])
    import safetensors

    file = path / "model.safetensors" if format == "timm" else path
    with safetensors.safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["card"])


@formats
def test_export_contains_the_complete_card(exported: Callable[[Format], Path], format: Format) -> None:
    card = card_of(format, exported(format))
    assert card == {
        "name": "SimCLR resnet18 for chest X-rays", "use": "for research; not for diagnosis", "arch": "resnet18",
        "features": 512, "preset": "preset published",
        "input": {"size": SIZE, "grey": "0..1", "mean": MEAN, "std": STD},
        "data": {"fingerprint": "0123456789abcdef", "images": 191027, "patients": 64000},
        "training": {"epoch": 2, "step_in_epoch": 0, "step": STEP},
        # Lines after the checkpoint's step are excluded.
        "metrics": {"epoch": {"epoch": 2, "loss": 4.25},
                    "online": {"epoch": 1, "knn_auroc": 0.61, "linear_auroc": 0.64}},
        "augmentation": {"size": SIZE, "crop_area": [0.2, 1.0], "crop_ratio": [3 / 4, 4 / 3], "flip_probability": 0.5,
                         "blur_probability": 0.5, "blur_sigma": [0.1, 2.0], "brightness": 0.4, "contrast": 0.4,
                         "mean": MEAN, "std": STD, "patient_positive": 0.0},
        "settings": {"arch": "resnet18", "size": SIZE, "lr": 3e-4},
        "commit": "5c859aa", "versions": KNOWN["versions"], "format": format, "channels": 3,
        "pooling": "mean over positions", "note": contents_note(format, "resnet18", 3),
    }  # fmt: skip
    if format == "timm":
        assert json.loads((exported(format) / "config.json").read_text())["card"] == card


@formats
def test_page_shows_the_card_and_its_code_works(
    run: Run, exported: Callable[[Format], Path], image: torch.Tensor, format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    path = exported(format)
    page = (path / "README.md" if format == "timm" else path.with_suffix(".md")).read_text()
    shown = ("not for diagnosis", "0123456789abcdef", "images: 191027", "patients: 64000", "5c859aa", "loss 4.25",
             "knn_auroc 0.61", "linear_auroc 0.64", "crop_area: 0.2 to 1.0", "lr: 0.0003", "torch: 2.14.1",
             f"mean: {MEAN}, std: {STD}", f"({MEAN}, {MEAN}, {MEAN})", "64 × 64", "(mean over positions)",
             contents_note(format, "resnet18", 3), CARD_INSIDE[format])
    assert [text for text in shown if text not in page] == []
    assert "/home/ada" not in page and str(run.folder) not in page
    monkeypatch.chdir(path.parent)
    check_page(page, run, image)


def check_page(page: str, run: Run, image: torch.Tensor) -> None:
    """Run the lines of Python of a page in the current folder, and compare the features."""
    code, *others = (part.split("\n```")[0] for part in page.split("```python\n")[1:])
    assert len(code.splitlines()) <= 5
    names: dict[str, Any] = {"image": image.numpy() if "onnx" in code else image}
    with torch.inference_mode():
        exec(code, names)
        assert features_equal(run.features(image), torch.as_tensor(names["features"]))
        for other in others:
            Image.fromarray((image[0, 0] * 255).round().byte().numpy()).save("radiograph.png")
            exec(other, names := {})
            ours = run.features(torch.cat([(image[:1] * 255).round() / 255, image[1:]]))
            assert features_equal(ours[:2], torch.cat([names["features"], ours[1:2]]))


def test_card_omits_what_an_older_checkpoint_lacks(tmp_path: Path) -> None:
    run = make_run(tmp_path, "resnet18")
    line = {"kind": "online", "step": 1, "epoch": 1, "knn_auroc": float("nan"), "linear_auroc": None}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    export(run.folder)
    card = card_of("torchvision", tmp_path / "export" / "resnet18-torchvision.pth")
    assert not card.keys() & {"data", "metrics", "commit", "versions"}
    page = (tmp_path / "export" / "resnet18-torchvision.md").read_text()
    assert not [word for word in ("None", "nan", "auroc", "commit", "Versions", "Metrics") if word in page]


def test_checkpoint_without_step_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = make_run(tmp_path, "resnet18")
    (path,) = (run.folder / "checkpoints").iterdir()
    state = load_checkpoint(path)
    path.unlink()
    save_checkpoint(run.folder, 7, {name: value for name, value in state.items() if name not in ("step", "format")})
    with pytest.raises(InputError, match=r"not the content of a run's checkpoint .KeyError: 'step'"):
        export(run.folder)
    assert not (tmp_path / "export").exists()


def test_export_uses_the_given_checkpoint_and_out(
    tmp_path: Path, image: torch.Tensor
) -> None:  # fmt: skip
    folder, out = tmp_path / "run", tmp_path / "new" / "it.pth"
    older = make_run(folder, "resnet18", seed=1, step=20)
    (path,) = (folder / "checkpoints").iterdir()
    newer = make_run(folder, "resnet18", seed=2)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in JOURNAL))
    export(folder, out=out)
    check_torchvision(out, "resnet18", newer.features(image), image)
    export(folder, out=out, checkpoint=path)
    check_torchvision(out, "resnet18", older.features(image), image)
    assert card_of("torchvision", out)["metrics"]["epoch"] == {"epoch": 1, "loss": 4.5}
    export(folder, out=out, checkpoint=path.rename(tmp_path / path.name))
    assert "metrics" not in card_of("torchvision", out)  # the journal may belong to another run


@contextmanager
def limit_file_size(limit: int) -> Iterator[None]:
    """Make writing a file beyond `limit` bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@formats
def test_full_disk_keeps_the_previous_export(
    run: Run, exported: Callable[[Format], Path], format: Format
) -> None:  # fmt: skip
    exported(format)
    folder = run.folder / "export"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with limit_file_size(1 << 20), pytest.raises(OSError, match="too large"):
        export(run.folder, format=format)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_impossible_exports_are_refused_in_one_line(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "file"
    file.touch()
    no_checkpoint = f"{tmp_path}: no checkpoint in {tmp_path / 'checkpoints'}; train first: python -m train"
    for folder, flags, line in (
        (tmp_path / "none", {}, "none: no such folder; give the --out of a training run"),
        (tmp_path, {}, no_checkpoint),
        (run.folder, {"checkpoint": tmp_path / "x.pt"}, "--checkpoint=.*x.pt: no such file; omit it for the new"),
        (run.folder, {"checkpoint": file}, f"{file}: not a readable checkpoint"),
        (run.folder, {"out": tmp_path / "x.onnx"}, r"--out=.*x.onnx: --format=torchvision requires a file"),
        (run.folder, {"out": tmp_path}, r"requires a file named \*.pth"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=line):
            export(folder, **flags)
    assert list(tmp_path.iterdir()) == [file]


def test_timm_export_to_a_file_is_refused(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("safetensors", reason="--format=timm requires safetensors: pip install '.[export]'")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out=.*file: a file, but timm's export is a folder; give another name"):
        export(run.folder, format="timm", out=tmp_path / "file")


def test_onnx_of_an_old_pytorch_is_refused_with_a_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="pip install '.[export]'")
    monkeypatch.setattr("torch.__version__", torch.torch_version.TorchVersion("2.9.1+cu128"))
    with pytest.raises(InputError, match=r"requires PyTorch 2.10 or newer, this is 2.9.1.*; use --format=safetensors"):
        export(tmp_path, format="onnx")


@pytest.mark.parametrize(("format", "package"), [("timm", "safetensors"), ("safetensors", "safetensors"),
                                                 ("onnx", "onnx"), ("onnx", "onnxscript")])  # fmt: skip
def test_missing_package_is_named_with_its_cure(
    tmp_path: Path, format: Format, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for needed in NEEDED[format]:
        if needed not in (package, "timm", "onnxruntime"):
            pytest.importorskip(needed, reason=f"not there, it would be named before {package}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"--format={format}: requires {package} .*pip install '\.\[export\]'"):
        export(tmp_path, format=format)
