"""Read tensors that torch.save wrote, without running code."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from train.weights.diagnosis import explain_unreadable


class UnreadableTensors(Exception):
    """A file that PyTorch cannot load with weights_only=True.

    Its text is the cause, in one line; `cure` is the advice to the user, or "".
    """

    def __init__(self, cause: str, cure: str = "") -> None:
        super().__init__(cause)
        self.cure = cure


def read_tensors(source: Path | io.BytesIO, path: Path | None = None) -> Any:
    """Load what torch.save wrote onto the CPU, refusing any code in it. Raises UnreadableTensors.

    path: the file that the bytes come from, if `source` is bytes; for messages.
    """
    name = str(path or (source if isinstance(source, Path) else "weights.pt"))
    try:
        if isinstance(source, Path) and source.suffix == ".safetensors":  # torch.load would go by the suffix
            source = io.BytesIO(source.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exception below reports the problem
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt pickle may raise any exception
        try:
            content = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
        except OSError as read_error:
            raise UnreadableTensors(read_error.strerror or str(read_error)) from None
        raise UnreadableTensors(*explain_unreadable(content, name, error)) from None
