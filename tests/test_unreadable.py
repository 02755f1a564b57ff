"""Files that are no weights: the cause and the cure in one whole line, and a cure that cures."""

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
from probe.preprocessing import Input
from probe.weights import read_weights
from shard.errors import InputError
from train.architectures import build_encoder
from train.weights.diagnosis import plain

INPUT = Input(32, 0.5, 0.25)


class Harm:
    """Loading it runs a command."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build_encoder("resnet18")[0]


def refusal(path: Path) -> str:
    """What is said of a file, fit for a terminal."""
    with pytest.raises(InputError) as caught:
        open_encoder(path, "x", INPUT, 0)
    said = str(caught.value)
    assert said.isprintable() and not said.endswith(("…", " ")) and said.startswith(str(path))
    return said


@pytest.mark.parametrize(
    ("wrap", "cause", "old"),
    [(lambda m: {"model": m.state_dict(), "args": argparse.Namespace(lr=0.1)},
      'argparse.Namespace (under "args") is not data', False),
     (lambda m: {"model": m.state_dict(), "args": argparse.Namespace(lr=0.1)},
      'argparse.Namespace (under "args") is not data', True),
     (lambda m: {"state_dict": m.state_dict(), "best": np.float64(0.5)}, 'multiarray.scalar (under "best")', False),
     (lambda m: {**m.state_dict(), "best": np.float64(0.5)}, 'multiarray.scalar (under "best")', False),
     (lambda m: m, "torchvision.models.resnet.ResNet is not data", False),
     (lambda m: {"net": m, "epoch": 3}, 'torchvision.models.resnet.ResNet (under "net") is not data', False),
     (lambda m: {"it's": {"model": m.state_dict()}, "cfg": [{"a": argparse.Namespace()}], "p": Path("x")},
      'argparse.Namespace (under "cfg"), pathlib.PosixPath (under "p") are not data', False)],
    ids=["namespace", "older format", "numpy", "numpy among tensors", "module", "module under a key", "two"],
)  # fmt: skip
def test_what_is_not_data_is_named_with_a_command_that_keeps_the_weights(
    resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap: Callable[[nn.Module], Any], cause: str,
    old: bool,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(resnet), "a file.pth.tar", _use_new_zipfile_serialization=not old)
    said = refusal(Path("a file.pth.tar"))
    assert cause in said and "where you trust it, keep its weights alone: python -c " in said
    python, flag, program = shlex.split(said[said.index("python -c") :])
    assert (python, flag) == ("python", "-c")
    exec(program)
    read = read_weights(Path("a file-weights.pth"))
    assert read.arch == "resnet18"
    assert torch.equal(read.resnet.state_dict()["conv1.weight"], resnet.state_dict()["conv1.weight"])


def test_a_command_with_a_long_path_is_whole(resnet: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / ("outputs  2024, " + "a" * 200) / ("lr=0.001," * 20)
    folder.mkdir(parents=True)
    torch.save({"model": resnet.state_dict(), "args": argparse.Namespace(lr=0.1)}, folder / "a.pth")
    assert f'torch.save(c["model"], "{folder / "a-weights.pth"}")' in refusal(folder / "a.pth")


def test_both_networks_of_a_file_are_kept_so_that_one_can_be_chosen(resnet: nn.Module, tmp_path: Path) -> None:
    state = resnet.state_dict()
    torch.save({"model": state, "model_ema": state, "args": argparse.Namespace()}, tmp_path / "a.pth")
    assert 'for k in ["model", "model_ema"]' in refusal(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_told_how_to_become_weights(
    resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.trace(resnet.eval(), torch.zeros(1, 1, 32, 32)).save("a.pt")
    said = refusal(Path("a.pt"))
    assert "a TorchScript program" in said
    exec(shlex.split(said[said.index("python -c") :])[2])
    assert read_weights(Path("a-weights.pth")).arch == "resnet18"


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def saved(content: Any, old: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def tensors(content: bytes) -> bytes:
    """The bytes of a safetensors file with this header, and no tensor."""
    return len(content).to_bytes(8, "little") + content


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"
HEADER = b'{"conv1.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [("a.pth", b"", "an empty file; copy or download it again"),
     ("a.safetensors", b"", "an empty file; copy or download it again"),
     ("a.pth", b"hello \x1b[1mbold\x1b[0m", 'a text file, which begins "hello bold"'),
     ("a.pth", "hél".encode("utf-16"), 'a text file, which begins "hél"'),
     ("a.pth", b'{"error": "Unauthorized"}', 'a text file, which begins "{"error": "Unauthorized"}"'),
     ("a.pth", LFS, "a Git LFS pointer .*git lfs pull"), ("a.safetensors", LFS, "a Git LFS pointer"),
     ("a.pth", b"\n<!DOCTYPE html><html><head><title>Sign\n in</title>", 'a web page titled "Sign in"'),
     ("a.pth", b"\xef\xbb\xbf<html>", "a web page and not weights"),
     ("a.pth", zipped("a/b.txt", "c.txt"), r"a zip archive of 2 files \(a/b.txt, c.txt\), no checkpoint; unpack it"),
     ("a.npz", zipped("a.npy"), r"NumPy arrays \(a.npy\)"),
     ("a.pth", saved({"a": torch.zeros(99)})[:700], "cut short: 700 bytes, and the directory at the end of a zip"),
     ("a.pth", saved(torch.zeros(99), old=True)[:150], "cut short or damaged: 150 bytes"),
     ("a.pth", b"\x1f\x8b\x08\0\0\0\0\0", "compressed by gzip; unpack it: gunzip"),
     ("a.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
     ("a.onnx", b"\x08\x0a\x12\x07pytorch\x1a\x05", "an ONNX model, a program .*exported from"),
     ("a.pth", b"\x08\x0a\x12\x07pytorch\x1a\x05\xff", "an ONNX model"),
     ("a.pkl", pickle.dumps({"a": np.zeros(3)}), "a pickle that torch.save did not write"),
     ("a.pth", saved({"a": Harm()}), "loading it would run posix.system, which no weights need; do not load it"),
     ("a.pth", saved({"a": Harm()}, old=True), "loading it would run posix.system"),
     ("a.pth", bytes(range(200, 256)) * 9, "nothing that torch.save wrote: it begins with the bytes c8 c9"),
     ("a.safetensors", tensors(HEADER)[:40], "safetensors: cut short: 40 bytes, and its header alone takes 81"),
     ("a.safetensors", tensors(HEADER) + bytes(5), "safetensors: cut short: 86 bytes of 97"),
     ("a.pth", tensors(HEADER) + bytes(5), "safetensors: cut short: 86 bytes of 97"),
     ("a.safetensors", tensors(b'{"a'.ljust(20)), "its header can't be read"),
     ("a.safetensors", tensors(HEADER)[:5], "cut short: 5 bytes, and its header alone begins with 8")],
)  # fmt: skip
def test_a_file_of_another_kind_is_told_what_it_is(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.search(cause, refusal(tmp_path / name))


def test_safetensors_and_checkpoints_are_known_by_their_content(resnet: nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import save

    (tmp_path / "a.pth").write_bytes(save(resnet.state_dict()))
    torch.save(resnet.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert read_weights(tmp_path / name).arch == "resnet18"


def test_a_folder_that_is_no_run_is_told_what_is_wanted_in_it(trained: Path, tmp_path: Path) -> None:
    wanted = "not a run of python -m train, which has checkpoints/step-….pt, and not a folder of timm's"
    said = refusal(tmp_path)
    assert wanted in said and said.endswith("; it is empty")
    (tmp_path / "notes.txt").write_text("x")
    assert refusal(tmp_path).endswith("; it contains notes.txt")
    (tmp_path / "b.pth").write_text("x")
    assert refusal(tmp_path).endswith(f"; it contains b.pth: give one, such as {tmp_path / 'b.pth'}")
    assert refusal(trained.parent).endswith(f": name one, as {trained}")
    assert refusal(trained / "checkpoints").endswith(f"; give the run: {trained}")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "no checkpoint in" in refusal(tmp_path / "run") and "train first" in refusal(tmp_path / "run")


def test_text_of_a_file_is_shown_in_one_line_that_no_terminal_obeys() -> None:
    assert plain("a\x1b[31mb\n\tc\x07d\x00") == "ab c d"
    assert plain("one two three", 9) == "one two…" and plain("x" * 20, 9) == "x" * 9 + "…"
