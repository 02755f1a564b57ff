"""Find an encoder among a file's tensors: the prefixes under which every tensor of an architecture is, by its shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from train.weights.diagnosis import printable
from train.weights.outline import COUNTER, Naming, Outline, list_namings

State = dict[str, torch.Tensor]
# Parameters beside an encoder's modules that its features do not depend on: of masked training, decoders, contrastive
# losses and queues, and torchxrayvision's operating points. Any other one belongs to another architecture.
UNUSED = re.compile(r"mask_token|decoder_\w+|logit_scale|logit_bias|temperature|queue\w*|n_averaged|center|op_threshs")


class Found(NamedTuple):
    """Tensors under one prefix of a file, compared with an architecture.

    prefix: "" or ending with a dot. state: its tensors under the encoder's names. missing: names that it lacks.
    misfits: names whose shape differs. foreign: names in the file that lie inside the encoder but are none of its
    tensors. left: names under the prefix that are not part of the encoder.
    """

    outline: Outline
    prefix: str
    state: State
    missing: list[str]
    misfits: list[str]
    foreign: list[str]
    left: list[str]

    @property
    def fits(self) -> bool:
        """Whether the tensors match the architecture: none is missing, has another shape or is unexpected."""
        return not (self.missing or self.misfits or self.foreign)

    def describe_mismatch(self) -> str:
        """Describe how the tensors differ from the architecture's in names and shapes; "" if they fit."""
        shapes = self.outline.shapes
        different = [f"{name} is {list(self.state[name].shape)} and not {list(shapes[name])}" for name in self.misfits]
        kinds = (("lacks", self.missing), ("has", self.foreign), ("", different))
        parts = [f"{verb} {printable(items[0])}{f' and {len(items) - 1} more' if items[1:] else ''}".strip()
                 for verb, items in kinds if items]  # fmt: skip
        statistics = self.missing and all(name.endswith(("running_mean", "running_var")) for name in self.missing)
        return ", ".join(parts) + (": the file has no BatchNorm statistics; save the complete state_dict()"
                                   if statistics else "")  # fmt: skip


def find_encoder(tensors: Mapping[str, torch.Tensor], outline: Outline) -> list[Found]:
    """Compare an architecture with the tensors under each prefix; those with most of its names come first."""
    found = [candidate for naming in list_namings(outline) for candidate in _under_prefixes(tensors, outline, naming)]
    filled = [candidate.prefix for candidate in found if not candidate.missing]
    found = [_without_nested(candidate, filled) for candidate in found]
    return sorted(found, key=lambda candidate: (-len(candidate.state), len(candidate.prefix)))


def compare(state: State, outline: Outline, prefix: str = "", naming: Naming | None = None) -> Found:
    """Compare an architecture with tensors. naming: their names; None if these are the encoder's own."""
    naming = naming or list_namings(outline)[0]
    taken = {naming.tensors[name]: value for name, value in state.items() if name in naming.tensors}
    missing = [name for name in outline.shapes if name not in taken and not name.endswith(COUNTER)]
    misfits = [name for name, shape in outline.shapes.items() if name in taken and taken[name].shape != shape]
    rest = [name for name in state if name not in naming.tensors]
    foreign = [name for name in rest if _is_inside(name, state[name], naming)]
    left = [name for name in rest if not _is_inside(name, state[name], naming)]
    return Found(outline, prefix, taken, missing, misfits, foreign, left)


def _is_inside(name: str, value: torch.Tensor, naming: Naming) -> bool:
    """Whether a tensor that the encoder lacks would change what it computes: not one of a head, or of another module.

    Tensors of modules that the encoder has, and parameters of the network itself, belong to another architecture.
    """
    if "." not in name:
        return value.ndim > 0 and not UNUSED.fullmatch(name)
    in_classifier = any(name.startswith(f"{layer}.") for layer in naming.classifier)
    return name.partition(".")[0] in naming.children and not in_classifier


def _under_prefixes(tensors: Mapping[str, torch.Tensor], outline: Outline, naming: Naming) -> list[Found]:
    counts: dict[str, int] = {}
    for name in tensors:
        for start in (0, *(place + 1 for place, char in enumerate(name) if char == ".")):
            if name[start:] in naming.tensors:
                counts[name[:start]] = counts.get(name[:start], 0) + 1
    least = len(naming.tensors) // 4  # with fewer of the names it is another network, and comparing takes time
    prefixes = [prefix for prefix, count in counts.items() if count > least]
    return [compare({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)},
                    outline, prefix, naming) for prefix in prefixes]  # fmt: skip


def _without_nested(found: Found, filled: list[str]) -> Found:
    """Leave out what belongs to other networks that are nested under the prefix."""
    nested = tuple(other.removeprefix(found.prefix) for other in filled
                   if other != found.prefix and other.startswith(found.prefix))  # fmt: skip
    keep = [[name for name in names if not name.startswith(nested)] for names in (found.foreign, found.left)]
    return found._replace(foreign=keep[0], left=keep[1]) if nested else found
