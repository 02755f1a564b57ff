"""Scan a pickle for classes and tensors without importing or running anything that it names."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

MAX_DEPTH = 5  # levels of nested mappings to search; a checkpoint has two or three
# Modules whose functions can harm the machine. No file of weights needs them.
HARMFUL_MODULES = {"os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "pty", "webbrowser",
                   "importlib"}  # fmt: skip
HARMFUL_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "apply", "input"}
# Helpers of the pickle format itself, which say little about what a file contains.
PICKLE_HELPERS = ("copyreg.", "copy_reg.", "_codecs.", "builtins.", "__builtin__.", "collections.", "torch.")


@dataclass(frozen=True)
class PickleSummary:
    """What a pickle contains.

    classes: the names that weights_only=True refuses, the most informative first, each with the top-level key under
    which it lies ("" if unknown). tensor_keys: top-level keys whose values are mappings with tensors. module_keys:
    top-level keys whose values are nn.Modules. has_bare_tensors: whether the top-level mapping itself contains tensors.
    is_module: whether the pickled object is an nn.Module. by_torch: whether torch.save wrote the file.
    """

    classes: dict[str, str]
    tensor_keys: list[str] = field(default_factory=list)
    module_keys: list[str] = field(default_factory=list)
    has_bare_tensors: bool = False
    is_module: bool = False
    by_torch: bool = True

    @property
    def harmful(self) -> list[str]:
        """The functions that could harm the machine when the file is loaded."""
        return [name for name in self.classes if _is_harmful(name)]


class _Stub:
    """Stand-in for an object of any class. It accepts every operation of a pickle and does nothing."""

    kind = ""
    state: Any = None  # what the pickle passes to __setstate__

    def __new__(cls, *_: Any, **__: Any) -> _Stub:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Ignore an item of a list subclass."""

    def extend(self, _: Any) -> None:
        """Ignore the items of a list subclass."""

    def add(self, _: Any) -> None:
        """Ignore an item of a set subclass."""


class _DictStub(dict[Any, Any]):
    """Stand-in for an OrderedDict that ignores the constructor's arguments."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


class _ScanningUnpickler(pickle.Unpickler):
    """Replaces every class and function by a stub, so that nothing is imported and nothing runs."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")
        self.names: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        kind = f"{module}.{name}"
        self.names.append(kind)
        return _DictStub if kind == "collections.OrderedDict" else type(name, (_Stub,), {"kind": kind})

    def persistent_load(self, pid: Any) -> Any:
        return _Stub()


def scan_pickle(content: bytes) -> PickleSummary | None:
    """Summarize what torch.save or pickle wrote; return None if the bytes are not a complete pickle."""
    try:
        top, names, by_torch = _unpickle(content)
        items = [(key, value) for key, value in top.items() if isinstance(key, str)] if isinstance(top, Mapping) else []
        modules = [top.kind] if _is_module(top) else [value.kind for _, value in items if _is_module(value)]
        refused = sorted(set(names) - _allowed_names(), key=lambda kind: (kind not in modules, *_sort_key(kind)))
        kinds = {key: {stub.kind for stub in _find_stubs(value)} for key, value in items}
        return PickleSummary(
            {kind: next((key for key in kinds if kind in kinds[key]), "") for kind in refused},
            [key for key, value in items if isinstance(value, Mapping) and _contains_tensors(value)],
            [key for key, value in items if _is_module(value)],
            isinstance(top, Mapping) and any(map(_is_tensor, top.values())), _is_module(top), by_torch,
        )  # fmt: skip
    except Exception:  # a corrupt pickle may raise any exception
        return None


def _unpickle(content: bytes) -> tuple[Any, list[str], bool]:
    """Return the pickled object, made of stubs, the names of all its classes, and whether torch.save wrote it."""
    file = io.BytesIO(content)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            unpickler = _ScanningUnpickler(io.BytesIO(archive.read(name)))
        return unpickler.load(), unpickler.names, True
    file.seek(0)
    unpickler = _ScanningUnpickler(file)
    top = unpickler.load()
    by_torch = top == torch.serialization.MAGIC_NUMBER
    for _ in range(3 if by_torch else 0):  # the legacy format: magic number, protocol version, system info, object
        unpickler = _ScanningUnpickler(file)
        top = unpickler.load()
    return top, unpickler.names, by_torch


def _allowed_names() -> set[str]:
    """Return the names that weights_only=True accepts."""
    return set(torch._weights_only_unpickler._get_allowed_globals()) | {"collections.OrderedDict"}


def _sort_key(kind: str) -> tuple[bool, bool, str]:
    """Harmful names first, helpers of the pickle format last."""
    return not _is_harmful(kind), kind.startswith(PICKLE_HELPERS), kind


def _is_harmful(kind: str) -> bool:
    module, _, name = kind.rpartition(".")
    in_module = module.split(".")[0] in HARMFUL_MODULES
    return in_module or (module in ("builtins", "__builtin__") and name in HARMFUL_BUILTINS)


def _find_stubs(value: Any, depth: int = MAX_DEPTH) -> Iterator[_Stub]:
    if isinstance(value, _Stub):
        yield value
    elif depth and isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _find_stubs(item, depth - 1)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _Stub) and value.kind.startswith("torch._utils._rebuild")


def _is_module(value: Any) -> bool:
    return isinstance(value, _Stub) and isinstance(value.state, dict) and "_modules" in value.state


def _contains_tensors(value: Mapping[Any, Any], depth: int = MAX_DEPTH) -> bool:
    return any(_is_tensor(item) or (depth > 0 and isinstance(item, Mapping) and _contains_tensors(item, depth - 1))
               for item in value.values())  # fmt: skip
