"""Why a file can't be read as weights, and what to do about it, in words: (cause, cure)."""

from __future__ import annotations

import io
import json
import re
import shlex
import zipfile
from pathlib import Path

from train.weights.pickle_scan import Outline, outline

AGAIN = "copy or download it again"
# How files begin that are often named as weights, and what they are.
HEADS = (
    (b"\x1f\x8b", "compressed by gzip", "unpack it: gunzip"),
    (b"BZh", "compressed by bzip2", "unpack it: bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it: unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it: unzstd"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes", "give weights of PyTorch"),
    (b"\x93NUMPY", "a NumPy array", "give weights of PyTorch, by name"),
    (b"\x89PNG", "a PNG picture", "give the file of weights"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the file of weights"),
    (b"%PDF", "a PDF document", "give the file of weights"),
)


def plain(text: object, most: int = 100) -> str:
    """Text from a file as it may be shown: one line, nothing that a terminal obeys, cut at a word with an ellipsis."""
    shown = "".join(char if char.isprintable() else " " for char in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(text)))
    words = " ".join(shown.split())
    return words if len(words) <= most else words[:most].rpartition(" ")[0] + "…" if " " in words[:most] else (
        words[:most] + "…")  # fmt: skip


def why_unreadable(content: bytes, name: str, error: Exception) -> tuple[str, str]:
    """The cause for which PyTorch did not read a file of this content, and the cure; "" where nothing can be advised.

    name: what the file is called, for commands; error: what PyTorch raised.
    """
    if not content:
        return "an empty file", AGAIN
    for head, cause, cure in HEADS:
        if content.startswith(head):
            return cause, cure
    if content[257:262] == b"ustar":
        return "a tar archive", "unpack it: tar -xf"
    if content.startswith(b"PK"):
        return _why_not_zip(content, name, error)
    if (text := _text(content)) is not None:
        return _why_not_text(text)
    if Path(name).suffix == ".onnx" or (content[0] == 8 and content[2:3] in (b"\x12", b":")):
        return "an ONNX model, a program and not weights by name", "give the PyTorch weights that it was exported from"
    return _why_not_pickle(content, name, error)


def cut_safetensors(content: bytes) -> str:
    """Why bytes are no whole safetensors file, "" where they are one or none at all."""
    if len(content) < 8:
        return f"cut short: {len(content)} bytes, and its header alone begins with 8" if content else "an empty file"
    length = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{":
        return "not a safetensors file: no header where it should begin"
    if 8 + length > len(content):
        return f"cut short: {len(content)} bytes, and its header alone takes {8 + length}"
    try:
        header = json.loads(content[8 : 8 + length])
        whole = 8 + length + max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"),
                                 default=0)  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return "its header can't be read"
    return f"cut short: {len(content)} bytes of {whole}" if whole > len(content) else ""


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so, whatever its name, is one of safetensors: a length, then JSON."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 10**8


def _why_not_zip(content: bytes, name: str, error: Exception) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return f"cut short: {len(content)} bytes, and the directory at the end of a zip file is missing", AGAIN
    if any(one.endswith("constants.pkl") or "/code/" in one for one in names):
        return "a TorchScript program", (
            "where you trust it, keep its weights alone: "
            + _command(name, f'torch.jit.load({_quoted(name)}, map_location="cpu")', "c.state_dict()"))
    if not any(one.endswith("data.pkl") for one in names):
        inside = ", ".join(plain(one, 40) for one in names[:3]) + (", …" if len(names) > 3 else "")
        if names and all(one.endswith(".npy") for one in names):
            return f"NumPy arrays ({inside})", "give weights of PyTorch, by name"
        return f"a zip archive of {len(names)} files ({inside}), no checkpoint", "unpack it; give the file of weights"
    return _why_not_pickle(content, name, error)


def _text(content: bytes) -> str | None:
    """The beginning of a text file; None where it is none."""
    head = content[:2000]
    try:
        text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        if len(content) <= 2000 or error.start < len(head) - 4:  # not a character that was cut
            return None
        text = head[: error.start].decode(errors="replace")
    return text if all(char.isprintable() or char in "\r\n\t\f\x1b" for char in text) else None


def _why_not_text(text: str) -> tuple[str, str]:
    start = text.lstrip().lower()
    if start.startswith("version https://git-lfs"):
        return "a Git LFS pointer to the file and not the file", "fetch it: git lfs pull"
    if start.startswith(("<!doctype html", "<html", "<head", "<?xml")) or "<html" in start[:500]:
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.S | re.I)
        called = f' titled "{plain(title[1], 60)}"' if title and plain(title[1]) else ""
        return f"a web page{called} and not weights, as a login or an error gives", "download the file itself"
    return f'a text file, which begins "{plain(text, 60)}"', ""


def _why_not_pickle(content: bytes, name: str, error: Exception) -> tuple[str, str]:
    found = outline(content)
    if found is None:
        said = re.search(r"GLOBAL ([\w.]+)", str(error))
        if said and content.startswith(b"PK"):
            return f"{said[1]} is not data", _keep_weights(name, None)
        if content.startswith((b"\x80", b"PK")):
            return f"cut short or damaged: {len(content)} bytes, whose pickle does not come to its end", AGAIN
        if Path(name).suffix == ".safetensors":
            return cut_safetensors(content) or plain(error, 200), AGAIN
        return f"nothing that torch.save wrote: it begins with the bytes {content[:8].hex(' ')}", ""
    if found.harmful:
        return f"loading it would run {plain(found.harmful[0])}, which no weights need", "do not load it"
    classes = [plain(kind) + (f' (under "{plain(key, 40)}")' if key else "") for kind, key in found.classes.items()]
    if not found.by_torch:
        return f"a pickle that torch.save did not write{', of ' + classes[0] if classes else ''}", ""
    if not classes:
        return f"damaged: {plain(error, 200)}", AGAIN
    kept = classes[:1] if found.whole or found.modules else classes[:3]
    listed = ", ".join(kept) + (f" and {len(classes) - 3} more" if len(classes) > 3 and len(kept) > 1 else "")
    return f"{listed} {'is' if len(kept) == 1 else 'are'} not data", _keep_weights(name, found)


def _keep_weights(name: str, found: Outline | None) -> str:
    """The command that writes the weights of a file alone; "" where it holds none."""
    if found is None:
        return "where you trust it, load it with weights_only=False and save its state dict alone"
    if found.whole:
        taken = "c.state_dict()"
    elif found.modules and not found.tensors:
        taken = f"c[{_quoted(found.modules[0])}].state_dict()"
    elif len(found.tensors) == 1 and not found.bare:
        taken = f"c[{_quoted(found.tensors[0])}]"
    elif found.tensors and not found.bare:
        taken = f"{{k: c[k] for k in {_quoted(found.tensors)}}}"
    elif not found.bare:
        return ""  # it holds no weights
    else:
        taken = "{k: v for k, v in c.items() if torch.is_tensor(v)}"
    loaded = f'torch.load({_quoted(name)}, map_location="cpu", weights_only=False)'
    return f"where you trust it, keep its weights alone: {_command(name, loaded, taken)}"


def _command(name: str, loaded: str, taken: str) -> str:
    """The command that saves what is `taken` of c, which is `loaded`."""
    target = _quoted(str(Path(name).with_name(f"{Path(name).name.split('.')[0]}-weights.pth")))
    return f"python -c {shlex.quote(f'import torch; c = {loaded}; torch.save({taken}, {target})')}"


def _quoted(text: str | list[str]) -> str:
    """Text as Python and JSON write it in double quotes, with nothing a terminal obeys."""
    return json.dumps(text, allow_nan=False)
