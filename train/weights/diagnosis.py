"""Explain why a file cannot be read as weights: (cause, cure), each a phrase for a message."""

from __future__ import annotations

import io
import json
import re
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path

from train.weights.pickle_scan import PickleSummary, scan_pickle

AGAIN = "copy or download it again"
# Kinds of files that are often named like weights: (first bytes, kind, cure).
SIGNATURES = (
    (b"\x1f\x8b", "compressed by gzip", "unpack it: gunzip"),
    (b"BZh", "compressed by bzip2", "unpack it: bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it: unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it: unzstd"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes", "give PyTorch weights"),
    (b"\x93NUMPY", "a NumPy array", "give a PyTorch state dict"),
    (b"\x89PNG", "a PNG image", "give the file of weights"),
    (b"\xff\xd8\xff", "a JPEG image", "give the file of weights"),
    (b"%PDF", "a PDF document", "give the file of weights"),
)


def printable(text: object, max_length: int = 100) -> str:
    """Make text from a file safe to print: one line without control characters, shortened at a word."""
    without_colors = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(text))
    line = " ".join("".join(char if char.isprintable() else " " for char in without_colors).split())
    if len(line) <= max_length:
        return line
    start = line[:max_length]
    return (start.rpartition(" ")[0] if " " in start else start) + "…"


def list_some(names: Sequence[str], most: int = 2) -> str:
    """List the first names of a file, at most `most`, and the number of the others."""
    return ", ".join(map(printable, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def explain_unreadable(content: bytes, name: str, error: Exception) -> tuple[str, str]:
    """Return why PyTorch could not load a file and what to do about it, "" if nothing can be advised.

    content: the file's bytes. name: its path, for commands in the cure. error: what torch.load raised.
    """
    if not content:
        return "an empty file", AGAIN
    for signature, kind, cure in SIGNATURES:
        if content.startswith(signature):
            return kind, cure
    if content[257:262] == b"ustar":
        return "a tar archive", "unpack it: tar -xf"
    if content.startswith(b"PK"):
        return _explain_zip(content, name, error)
    if (text := _decode_text(content)) is not None:
        return _explain_text(text)
    if Path(name).suffix == ".onnx" or (content[0] == 8 and content[2:3] in (b"\x12", b":")):
        return "an ONNX model, a program rather than a state dict", "give the PyTorch weights that it was exported from"
    return _explain_pickle(content, name, error)


def explain_safetensors(content: bytes) -> str:
    """Return why bytes are not a complete safetensors file, or "" if they are complete."""
    if len(content) < 8:
        return f"truncated: {len(content)} bytes, but its header begins with 8" if content else "an empty file"
    length = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{":
        return "not a safetensors file: no header at its beginning"
    if 8 + length > len(content):
        return f"truncated: {len(content)} bytes, but its header takes {8 + length}"
    try:
        header = json.loads(content[8 : 8 + length])
        size = 8 + length + max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"),
                                default=0)  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return "its header can't be read"
    return f"truncated: {len(content)} bytes of {size}" if size > len(content) else ""


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins with `head` is in the safetensors format: a header length, then JSON."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 10**8


def _explain_zip(content: bytes, name: str, error: Exception) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return f"truncated: {len(content)} bytes, without the directory at the end of a zip file", AGAIN
    if any(member.endswith("constants.pkl") or "/code/" in member for member in members):
        return "a TorchScript program", (
            "if you trust it, extract its weights: "
            + _save_command(name, f'torch.jit.load({_quote(name)}, map_location="cpu")', "c.state_dict()"))
    if not any(member.endswith("data.pkl") for member in members):
        shown = ", ".join(printable(member, 40) for member in members[:3]) + (", …" if len(members) > 3 else "")
        if members and all(member.endswith(".npy") for member in members):
            return f"NumPy arrays ({shown})", "give a PyTorch state dict"
        return f"a zip archive of {len(members)} files ({shown}), not a checkpoint", (
            "unpack it; give the file of weights")  # fmt: skip
    return _explain_pickle(content, name, error)


def _decode_text(content: bytes) -> str | None:
    """Return the beginning of a text file, None if the bytes are not text."""
    head = content[:2000]
    try:
        text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        if len(content) <= 2000 or error.start < len(head) - 4:  # not just a character split at the end of `head`
            return None
        text = head[: error.start].decode(errors="replace")
    return text if all(char.isprintable() or char in "\r\n\t\f\x1b" for char in text) else None


def _explain_text(text: str) -> tuple[str, str]:
    start = text.lstrip().lower()
    if start.startswith("version https://git-lfs"):
        return "a Git LFS pointer instead of the file", "fetch it: git lfs pull"
    if start.startswith(("<!doctype html", "<html", "<head", "<?xml")) or "<html" in start[:500]:
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.S | re.I)
        titled = f' titled "{printable(title[1], 60)}"' if title and printable(title[1]) else ""
        return f"a web page{titled} instead of weights, such as a login or an error", "download the file itself"
    return f'a text file that begins with "{printable(text, 60)}"', ""


def _explain_pickle(content: bytes, name: str, error: Exception) -> tuple[str, str]:
    summary = scan_pickle(content)
    if summary is None:
        return _explain_broken_pickle(content, name, error)
    if summary.harmful:
        return f"loading it would run {printable(summary.harmful[0])}, which no weights need", "do not load it"
    classes = [printable(kind) + (f' (under "{printable(key, 40)}")' if key else "")
               for kind, key in summary.classes.items()]  # fmt: skip
    if not summary.by_torch:
        return f"a pickle that torch.save did not write{', with ' + classes[0] if classes else ''}", ""
    if not classes:
        return f"corrupt: {printable(error, 200)}", AGAIN
    shown = classes[:1] if summary.is_module or summary.module_keys else classes[:3]
    listed = ", ".join(shown) + (f" and {len(classes) - 3} more" if len(classes) > 3 and len(shown) > 1 else "")
    return f"{listed} {'is' if len(shown) == 1 else 'are'} not plain data", _extract_weights(name, summary)


def _explain_broken_pickle(content: bytes, name: str, error: Exception) -> tuple[str, str]:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused and content.startswith(b"PK"):
        return f"{refused[1]} is not plain data", (
            "if you trust it, load it with weights_only=False and save only its state dict")
    if content.startswith((b"\x80", b"PK")):
        return f"truncated or corrupt: {len(content)} bytes, and its pickle ends early", AGAIN
    if Path(name).suffix == ".safetensors":
        return explain_safetensors(content) or printable(error, 200), AGAIN
    return f"not written by torch.save: it begins with the bytes {content[:8].hex(' ')}", ""


def _extract_weights(name: str, summary: PickleSummary) -> str:
    """Return a cure with a command that saves only the file's weights, or "" if it contains none."""
    if summary.is_module:
        weights = "c.state_dict()"
    elif summary.module_keys and not summary.tensor_keys:
        weights = f"c[{_quote(summary.module_keys[0])}].state_dict()"
    elif len(summary.tensor_keys) == 1 and not summary.has_bare_tensors:
        weights = f"c[{_quote(summary.tensor_keys[0])}]"
    elif summary.tensor_keys and not summary.has_bare_tensors:
        weights = f"{{k: c[k] for k in {_quote(summary.tensor_keys)}}}"
    elif not summary.has_bare_tensors:
        return ""
    else:
        weights = "{k: v for k, v in c.items() if torch.is_tensor(v)}"
    load = f'torch.load({_quote(name)}, map_location="cpu", weights_only=False)'
    return f"if you trust it, extract its weights: {_save_command(name, load, weights)}"


def _save_command(name: str, load: str, weights: str) -> str:
    """Return a shell command that assigns `load` to c and saves `weights`, an expression in c, next to the file."""
    target = _quote(str(Path(name).with_name(f"{Path(name).name.split('.')[0]}-weights.pth")))
    return f"python -c {shlex.quote(f'import torch; c = {load}; torch.save({weights}, {target})')}"


def _quote(text: str | list[str]) -> str:
    """Return Python source for the text, in double quotes and without control characters."""
    return json.dumps(text, allow_nan=False)
