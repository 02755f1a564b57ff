"""Every graph of the DALI backend for a GPU. The tests define graphs but don't build them, so they need no GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (Linux only)")

import nvidia.dali.ops
from nvidia.dali import Pipeline, ops

from pipeline import dali
from pipeline.augmentation import Augmentation
from pipeline.sampler import Batch
from shard.fetch import Fetcher
from tests.conftest import Shards

GPU = torch.device("cuda")
INTERNAL = {"device", "name", "preserve", "preserve_name", "seed"}  # arguments that DALI adds, besides those with _


class Defined(Exception):
    """The graph is complete, and would be built now."""


@dataclass(frozen=True)
class Node:
    """An operator of a graph. inputs: devices. given: names of its arguments; tensors: devices of those that vary."""

    schema: Any
    device: str
    inputs: list[str]
    given: set[str]
    tensors: dict[str, str]

    @property
    def name(self) -> str:
        """The operator's name without its module."""
        return str(self.schema.Name()).split("__")[-1]


def define(monkeypatch: pytest.MonkeyPatch, batches: Callable[[], Iterator[Any]]) -> tuple[list[Node], list[str]]:
    """Return the operators of the graph that yields `batches`, and the devices of its outputs."""
    nodes, pipelines = list[Node](), list[Any]()
    original = nvidia.dali.ops._OperatorInstance.__init__

    def record(self: Any, inputs: Any, varying: Any, arguments: Any, processed: Any, operator: Any) -> None:
        given = {name for name in {**processed, **arguments} if name not in INTERNAL and not name.startswith("_")}
        original(self, inputs, varying, arguments, processed, operator)
        nodes.append(Node(operator.schema, operator.device, [node.device for node in inputs], given,
                          {name: node.device for name, node in varying.items()}))  # fmt: skip

    def build(self: Any) -> None:
        pipelines.append(self)
        raise Defined

    with monkeypatch.context() as patched:
        patched.setattr(nvidia.dali.ops._OperatorInstance, "__init__", record)
        patched.setattr(Pipeline, "build", build)
        with pytest.raises(Defined):
            next(batches())
    (pipeline,) = pipelines
    assert pipeline.device_id == 0
    return nodes, [output.device for output in pipeline._graph_out]


def batch(partners: bool) -> Iterator[Batch]:
    indices = np.arange(4)
    yield Batch(0, 0, indices, np.roll(indices, 1) if partners else None)


def views(fetcher: Fetcher, *, fused: bool, partners: bool, half: bool) -> Iterator[Any]:
    augmentation = replace(Augmentation(size=64), patient_positive=0.5 * partners)
    return dali.view_batches(fetcher, batch(partners), augmentation, seed=0, device=GPU, fused=fused, threads=1,
                             half=half)  # fmt: skip


def images(fetcher: Fetcher, interpolation: str) -> Iterator[Any]:
    return dali.image_batches(fetcher, batch(False), 64, 0.5, 0.25, device=GPU, workers=1, interpolation=interpolation)


GRAPHS: dict[str, Callable[[Fetcher], Iterator[Any]]] = {
    **{f"{'fused' if fused else 'stock'} views{', partners' * partners}{', half' * half}":
       partial(views, fused=fused, partners=partners, half=half)
       for fused in (False, True) for partners in (False, True) for half in (False, True)},
    "bilinear images": partial(images, interpolation="bilinear"),
    "bicubic images": partial(images, interpolation="bicubic"),
    "decoding": lambda fetcher: dali.decode_batches(fetcher, batch(False), device=GPU, threads=1),
}  # fmt: skip


# Operators on the GPU per image. Each is a kernel launch or more, so a graph must not grow unnoticed.
RESIZE = Counter(Slice=1, Resize=1, _ArithmeticGenericOp=2)
VIEW = RESIZE + Counter(Slice=1, GaussianBlur=1, Mean=1, CropMirrorNormalize=1, _ArithmeticGenericOp=5)
IMAGE = {"bilinear images": RESIZE + Counter(CropMirrorNormalize=1),
         "bicubic images": RESIZE + Counter(CropMirrorNormalize=1, _ArithmeticGenericOp=1)}  # fmt: skip
assert VIEW.total() == 13


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_graph_can_run_on_a_gpu(
    shards: Shards, raw_shards: Shards, monkeypatch: pytest.MonkeyPatch, graph: str, encoding: str
) -> None:
    """Its operators exist for their devices and take the arguments they get; what varies by image is on the CPU."""
    encoded = shards if encoding == "jpeg" else raw_shards
    nodes, outputs = define(monkeypatch, lambda: GRAPHS[graph](Fetcher(encoded.folder, encoded.manifest, "train")))
    # numba's plugin is loaded after DALI has listed its operators.
    registered = {"gpu": ops.gpu_ops(), "mixed": ops.mixed_ops(), "cpu": {*ops.cpu_ops(), "NumbaFuncImpl"}}
    for node in nodes:
        assert node.schema.Name() in registered[node.device], node
        assert not node.schema.IsDeprecated(), node
        for name in node.given | node.tensors.keys():
            assert node.schema.HasArgument(name) and not node.schema.IsDeprecatedArg(name), (node, name)
        for name, device in node.tensors.items():
            assert device == "cpu" and node.schema.IsTensorArgument(name), (node, name)
        if node.device != "gpu":  # nothing comes back from the GPU
            assert "gpu" not in node.inputs, node
    assert set(outputs) == {"gpu"}
    on_cpu = "fused" in graph
    decoders = {(node.name, node.device) for node in nodes if node.schema.Name().startswith("decoders__")}
    expected = {("ImageSlice", "cpu") if on_cpu else ("Image", "mixed")} if encoding == "jpeg" else set()
    assert decoders == expected
    on_pixels = Counter(node.name for node in nodes if node.device == "gpu" and "conditional" not in node.schema.Name())
    assert on_pixels == (VIEW + VIEW if "stock" in graph else IMAGE.get(graph, Counter()))
