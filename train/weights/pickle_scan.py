"""What a pickle that is not data alone holds: its classes and its outline, without importing or running anything."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

DEPTH = 5  # of mappings within mappings: a checkpoint has two or three
# Modules whose functions do something to the machine: no weights need them.
HARMFUL = {"os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "pty", "webbrowser", "importlib"}
PLUMBING = ("copyreg.", "copy_reg.", "_codecs.", "builtins.", "__builtin__.", "collections.", "torch.")
HARMFUL_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "apply", "input"}


@dataclass(frozen=True)
class Outline:
    """What a pickle holds.

    classes: those that are not data, most telling first, and the top-level key under which each lies, "" where that is
    not known; tensors: the top-level keys whose values hold tensors by name; modules: those whose values are whole
    modules; bare: whether the top level itself holds tensors by name; whole: whether it is a module; by_torch:
    whether torch.save wrote it.
    """

    classes: dict[str, str]
    tensors: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    bare: bool = False
    whole: bool = False
    by_torch: bool = True

    @property
    def harmful(self) -> list[str]:
        """The functions by which loading it would do something to the machine."""
        return [name for name in self.classes if _is_harmful(name)]


class _Stub:
    """Stands for an object of any class: it takes whatever a pickle does with it, and does nothing."""

    kind = ""
    state: Any = None  # what a pickle sets after the object is made

    def __new__(cls, *_: Any, **__: Any) -> _Stub:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Take an item of a list's subclass."""

    def extend(self, _: Any) -> None:
        """Take the items of a list's subclass."""

    def add(self, _: Any) -> None:
        """Take an item of a set's subclass."""


class _Mapping(dict[Any, Any]):
    """Stands for an OrderedDict, with whatever it was made of left out."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


class _Outliner(pickle.Unpickler):
    """Unpickles with a stub for every class and function, so that nothing is imported and nothing runs."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")
        self.found: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        kind = f"{module}.{name}"
        self.found.append(kind)
        return _Mapping if kind == "collections.OrderedDict" else type(name, (_Stub,), {"kind": kind})

    def persistent_load(self, pid: Any) -> Any:
        return _Stub()


def outline(content: bytes) -> Outline | None:
    """The outline of what torch.save or pickle wrote; None where it is no pickle that can be followed to its end."""
    try:
        top, found, by_torch = _unpickle(content)
        items = [(key, value) for key, value in top.items() if isinstance(key, str)] if isinstance(top, Mapping) else []
        modules = [top.kind] if _is_module(top) else [value.kind for _, value in items if _is_module(value)]
        unknown = sorted(set(found) - _allowed(), key=lambda kind: (kind not in modules, *_tellingness(kind)))
        held = {key: {one.kind for one in _stubs(value)} for key, value in items}
        return Outline(
            {kind: next((key for key in held if kind in held[key]), "") for kind in unknown},
            [key for key, value in items if isinstance(value, Mapping) and _holds_tensors(value)],
            [key for key, value in items if _is_module(value)],
            isinstance(top, Mapping) and any(map(_is_tensor, top.values())), _is_module(top), by_torch,
        )  # fmt: skip
    except Exception:  # a pickle that is not followed to its end, in whatever way, has no outline
        return None


def _unpickle(content: bytes) -> tuple[Any, list[str], bool]:
    """The object in a file, of stubs; the names of all classes in it; and whether torch.save wrote it."""
    file = io.BytesIO(content)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            outliner = _Outliner(io.BytesIO(archive.read(name)))
        return outliner.load(), outliner.found, True
    file.seek(0)
    outliner = _Outliner(file)
    top = outliner.load()
    by_torch = top == torch.serialization.MAGIC_NUMBER
    for _ in range(3 if by_torch else 0):  # its older format: a number, a version, the machine, the object
        outliner = _Outliner(file)
        top = outliner.load()
    return top, outliner.found, by_torch


def _allowed() -> set[str]:
    """What PyTorch reads as data."""
    return set(torch._weights_only_unpickler._get_allowed_globals()) | {"collections.OrderedDict"}


def _tellingness(kind: str) -> tuple[bool, bool, str]:
    """Harmful ones first, plumbing of pickles last."""
    return not _is_harmful(kind), kind.startswith(PLUMBING), kind


def _is_harmful(kind: str) -> bool:
    module, _, name = kind.rpartition(".")
    return module.split(".")[0] in HARMFUL or (module in ("builtins", "__builtin__") and name in HARMFUL_BUILTINS)


def _stubs(value: Any, depth: int = DEPTH) -> Iterator[_Stub]:
    if isinstance(value, _Stub):
        yield value
    elif depth and isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _stubs(one, depth - 1)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _Stub) and value.kind.startswith("torch._utils._rebuild")


def _is_module(value: Any) -> bool:
    return isinstance(value, _Stub) and isinstance(value.state, dict) and "_modules" in value.state


def _holds_tensors(value: Mapping[Any, Any], depth: int = DEPTH) -> bool:
    return any(_is_tensor(one) or (depth > 0 and isinstance(one, Mapping) and _holds_tensors(one, depth - 1))
               for one in value.values())  # fmt: skip
