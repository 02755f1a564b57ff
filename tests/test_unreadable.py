"""Files that are not weights: the error names cause and cure in one line, and the cure works."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from probe.encoders import open_encoder
from shard.errors import InputError
from train.architectures import build_encoder
from train.weights.diagnosis import printable
from train.weights.load import read_weights
from train.weights.preprocessing import Input

INPUT = Input(32, 0.5, 0.25)


class HarmfulPickle:
    """An object whose pickle runs a command when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build_encoder("resnet18")[0]


def error_of(path: Path) -> str:
    """Return the error for a file; it must be safe to print."""
    with pytest.raises(InputError) as caught:
        open_encoder(path, "x", INPUT, 0)
    error = str(caught.value)
    assert error.isprintable() and not error.endswith(("…", " ")) and error.startswith(str(path))
    return error


@pytest.mark.parametrize(
    ("wrap", "cause", "old"),
    [(lambda m: {"model": m.state_dict(), "args": argparse.Namespace(lr=0.1)},
      'argparse.Namespace (under "args") is not plain data', False),
     (lambda m: {"model": m.state_dict(), "args": argparse.Namespace(lr=0.1)},
      'argparse.Namespace (under "args") is not plain data', True),
     (lambda m: {"state_dict": m.state_dict(), "best": np.float64(0.5)}, 'multiarray.scalar (under "best")', False),
     (lambda m: {**m.state_dict(), "best": np.float64(0.5)}, 'multiarray.scalar (under "best")', False),
     (lambda m: m, "torchvision.models.resnet.ResNet is not plain data", False),
     (lambda m: {"net": m, "epoch": 3}, 'torchvision.models.resnet.ResNet (under "net") is not plain data', False),
     (lambda m: {"it's": {"model": m.state_dict()}, "cfg": [{"a": argparse.Namespace()}], "p": Path("x")},
      'argparse.Namespace (under "cfg"), pathlib.PosixPath (under "p") are not plain data', False)],
    ids=["namespace", "older format", "numpy", "numpy among tensors", "module", "module under a key", "two"],
)  # fmt: skip
def test_pickled_objects_are_named_with_a_command_that_extracts_the_weights(
    resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap: Callable[[nn.Module], Any], cause: str,
    old: bool,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(resnet), "a file.pth.tar", _use_new_zipfile_serialization=not old)
    error = error_of(Path("a file.pth.tar"))
    assert cause in error and "if you trust it, extract its weights: python -c " in error
    python, flag, program = shlex.split(error[error.index("python -c") :])
    assert (python, flag) == ("python", "-c")
    exec(program)
    read = read_weights(Path("a file-weights.pth"))
    assert read.arch == "resnet18"
    assert torch.equal(read.encoder.state_dict()["conv1.weight"], resnet.state_dict()["conv1.weight"])


def test_command_with_a_long_path_is_complete(resnet: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / ("outputs  2024, " + "a" * 200) / ("lr=0.001," * 20)
    folder.mkdir(parents=True)
    torch.save({"model": resnet.state_dict(), "args": argparse.Namespace(lr=0.1)}, folder / "a.pth")
    assert f'torch.save(c["model"], "{folder / "a-weights.pth"}")' in error_of(folder / "a.pth")


def test_command_extracts_all_networks_of_a_file(resnet: nn.Module, tmp_path: Path) -> None:
    state = resnet.state_dict()
    torch.save({"model": state, "model_ema": state, "args": argparse.Namespace()}, tmp_path / "a.pth")
    assert 'for k in ["model", "model_ema"]' in error_of(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore")
def test_command_extracts_the_weights_of_a_torchscript_program(
    resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.trace(resnet.eval(), torch.zeros(1, 1, 32, 32)).save("a.pt")
    error = error_of(Path("a.pt"))
    assert "a TorchScript program" in error
    exec(shlex.split(error[error.index("python -c") :])[2])
    assert read_weights(Path("a-weights.pth")).arch == "resnet18"


def zip_bytes(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def saved_bytes(content: Any, old: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def safetensors_bytes(content: bytes) -> bytes:
    """Return a safetensors file with this header and no tensor data."""
    return len(content).to_bytes(8, "little") + content


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"
HEADER = b'{"conv1.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [("a.pth", b"", "an empty file; copy or download it again"),
     ("a.safetensors", b"", "an empty file; copy or download it again"),
     ("a.pth", b"hello \x1b[1mbold\x1b[0m", 'a text file that begins with "hello bold"'),
     ("a.pth", "hél".encode("utf-16"), 'a text file that begins with "hél"'),
     ("a.pth", b'{"error": "Unauthorized"}', 'a text file that begins with "{"error": "Unauthorized"}"'),
     ("a.pth", LFS, "a Git LFS pointer .*git lfs pull"), ("a.safetensors", LFS, "a Git LFS pointer"),
     ("a.pth", b"\n<!DOCTYPE html><html><head><title>Sign\n in</title>", 'a web page titled "Sign in"'),
     ("a.pth", b"\xef\xbb\xbf<html>", "a web page instead of weights"),
     ("a.pth", zip_bytes("a/b.txt", "c.txt"), r"a zip archive of 2 files \(a/b.txt, c.txt\), not a checkpoint; unpack"),
     ("a.npz", zip_bytes("a.npy"), r"NumPy arrays \(a.npy\)"),
     ("a.pth", saved_bytes({"a": torch.zeros(99)})[:700], "truncated: 700 bytes, without the directory at the end"),
     ("a.pth", saved_bytes(torch.zeros(99), old=True)[:150], "truncated or corrupt: 150 bytes"),
     ("a.pth", b"\x1f\x8b\x08\0\0\0\0\0", "compressed by gzip; unpack it: gunzip"),
     ("a.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
     ("a.onnx", b"\x08\x0a\x12\x07pytorch\x1a\x05", "an ONNX model, a program .*exported from"),
     ("a.pth", b"\x08\x0a\x12\x07pytorch\x1a\x05\xff", "an ONNX model"),
     ("a.pkl", pickle.dumps({"a": np.zeros(3)}), "a pickle that torch.save did not write"),
     ("a.pth", saved_bytes({"a": HarmfulPickle()}), "loading it would run posix.system, which no weights need; do not"),
     ("a.pth", saved_bytes({"a": HarmfulPickle()}, old=True), "loading it would run posix.system"),
     ("a.pth", bytes(range(200, 256)) * 9, "not written by torch.save: it begins with the bytes c8 c9"),
     ("a.safetensors", safetensors_bytes(HEADER)[:40], "safetensors: truncated: 40 bytes, but its header takes 81"),
     ("a.safetensors", safetensors_bytes(HEADER) + bytes(5), "safetensors: truncated: 86 bytes of 97"),
     ("a.pth", safetensors_bytes(HEADER) + bytes(5), "safetensors: truncated: 86 bytes of 97"),
     ("a.safetensors", safetensors_bytes(b'{"a'.ljust(20)), "its header can't be read"),
     ("a.safetensors", safetensors_bytes(HEADER)[:5], "truncated: 5 bytes, but its header begins with 8")],
)  # fmt: skip
def test_other_kinds_of_files_are_recognized(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.search(cause, error_of(tmp_path / name))


def test_safetensors_and_checkpoints_are_recognized_by_content(resnet: nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import save

    (tmp_path / "a.pth").write_bytes(save(resnet.state_dict()))
    torch.save(resnet.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert read_weights(tmp_path / name).arch == "resnet18"


def test_folder_without_a_run_lists_what_it_contains(trained: Path, tmp_path: Path) -> None:
    wanted = "not a run of python -m train, which has checkpoints/step-….pt, and not a folder of timm's"
    error = error_of(tmp_path)
    assert wanted in error and error.endswith("; it is empty")
    (tmp_path / "notes.txt").write_text("x")
    assert error_of(tmp_path).endswith("; it contains notes.txt")
    (tmp_path / "b.pth").write_text("x")
    assert error_of(tmp_path).endswith(f"; it contains b.pth: give one, such as {tmp_path / 'b.pth'}")
    assert error_of(trained.parent).endswith(f": give one, such as {trained}")
    assert error_of(trained / "checkpoints").endswith(f"; give the run: {trained}")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "no checkpoint in" in error_of(tmp_path / "run") and "train first" in error_of(tmp_path / "run")


def test_printable_text_is_one_line_without_control_characters() -> None:
    assert printable("a\x1b[31mb\n\tc\x07d\x00") == "ab c d"
    assert printable("one two three", 9) == "one two…" and printable("x" * 20, 9) == "x" * 9 + "…"
