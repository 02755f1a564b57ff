"""The DALI graphs: stock operators equal to the torchvision twin, buildable for a GPU; faults that say what to mend."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: it is to be had for Linux alone")

from nvidia.dali import Pipeline, fn, ops, pipeline_def

from pipeline import dali, torchvision_views
from pipeline.augmentation import Augmentation
from pipeline.dali_inputs import BatchInputs, out_of_memory, stock_parameters, view_inputs
from pipeline.loader import two_view_loader
from pipeline.sampler import BatchSampler, cut_into_batches
from pipeline.view_parameters import sample_view_parameters
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.manifest import read_manifest
from shard.read import read_index
from tests.conftest import REAL, ROOT, Shards

CPU = torch.device("cpu")


def constant(array: Any) -> Any:
    return lambda: np.ascontiguousarray(array)


def stock_views(images: list[Any], parameters: Any, augmentation: Augmentation, device_id: int | None = None) -> Any:
    """The first view of each image [H, W] by the graph that a GPU runs, [N, 1, S, S]; device_id None: on the CPU."""

    @pipeline_def(batch_size=len(images), num_threads=2, device_id=device_id)
    def graph() -> Any:
        given = [image[..., None] for image in images]
        source = fn.external_source(source=lambda: given, batch=True, layout="HWC")
        inputs = [fn.external_source(source=constant(array), batch=True)
                  for array in view_inputs(parameters, augmentation.size)]  # fmt: skip
        return dali.make_view(source if device_id is None else source.gpu(), inputs, augmentation)

    pipeline = graph()
    pipeline.build()
    (views,) = pipeline.run()
    return views.as_cpu().as_array()


def worst_grey_level(images: list[Any], augmentation: Augmentation) -> float:
    drawn = np.stack([sample_view_parameters(augmentation, 0, 0, [number], [image.shape])[0, 0] for number,
                      image in enumerate(images)])
    found = stock_views(images, drawn, augmentation)
    whole = [torch.from_numpy(image.astype(np.float32) / 255)[None] for image in images]
    wanted = [torchvision_views.make_view(image, torchvision_views.as_view(row.tolist()), augmentation).numpy()
              for image, row in zip(whole, drawn, strict=True)]  # fmt: skip
    return float(np.abs(found - np.stack(wanted)).max()) * 255 * augmentation.std


def test_stock_views_equal_torchvisions_up_to_the_border() -> None:
    """Within 2/255, and in fact within a tenth of one; on noise, enlarged and reduced, of many shapes."""
    rng = np.random.default_rng(0)
    shapes = [(96, 96), (320, 390), (700, 150), (50, 41)] * 25
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    for size in (64, 224):
        assert worst_grey_level(images, Augmentation(size=size, mean=0.5, std=0.25)) < 0.1


def test_stock_views_equal_torchvisions_on_real_radiographs() -> None:
    folder = REAL / "cxr390"
    files = sorted(folder.glob("*.jpg"))[:250] if folder.is_dir() else []
    if not files:
        pytest.skip(f"needs real radiographs in {folder}")
    images = [simplejpeg.decode_jpeg(file.read_bytes(), colorspace="GRAY")[..., 0] for file in files]
    assert worst_grey_level(images, Augmentation(mean=0.5, std=0.25)) < 0.1


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_every_operator_of_the_gpu_graph_exists_for_the_gpu(shards: Shards, raw_shards: Shards, encoding: str) -> None:
    """A GPU pipeline can't be built here, so its operators are looked up in DALI's registries instead."""
    made = shards if encoding == "jpeg" else raw_shards
    fetcher, augmentation = Fetcher(made.folder, made.manifest, "train"), Augmentation()
    batches = cut_into_batches(range(8), 4)
    feed = BatchInputs(fetcher, batches, lambda batch, shapes: stock_parameters(augmentation, 0, batch, shapes))
    pipeline = Pipeline(batch_size=4, num_threads=1, device_id=0)
    with pipeline:
        encoded, *drawn = dali._inputs(feed, dali.VIEW_KINDS * 2, dali.VIEW_DIMENSIONS * 2)
        first = drawn[: len(dali.VIEW_KINDS)]
        output = dali.make_view(dali.decode(encoded, feed.raw_size, on_gpu=True), first, augmentation, half=True)
    registered = {"gpu": ops.gpu_ops(), "mixed": ops.mixed_ops(), "cpu": ops.cpu_ops()}
    assert output.device == "gpu"
    seen = operators_of(output)
    assert all(name in registered[device] for name, device in seen), seen
    pixels = {name for name, device in seen if device in ("gpu", "mixed")}
    expected = {"Slice", "Resize", "GaussianBlur", "_ArithmeticGenericOp", "CropMirrorNormalize"}
    assert {name.split("__")[-1] for name in pixels} >= expected, pixels


def operators_of(node: Any) -> set[tuple[str, str]]:
    """(operator, device) of everything an output is computed from."""
    seen: set[tuple[str, str]] = set()
    waiting, visited = [node], set()
    while waiting:
        source = waiting.pop().source
        if source is None or id(source) in visited:
            continue
        visited.add(id(source))
        seen.add((getattr(source._op, "schema_name", "ExternalSource"), source._op.device))
        waiting += list(source.inputs)
    return seen


@pytest.mark.parametrize("harm", ["header", "tables"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_jpeg_that_can_not_be_decoded_is_named(shards: Shards, tmp_path: Path, fused: bool, harm: str) -> None:
    """A shard forged so that its hashes fit: DALI ends without a name, and the image is looked for."""
    folder = tmp_path / "shards"
    shutil.copytree(shards.folder, folder)
    first = shards.manifest.of_split("train")[0]
    tar, sample = folder / first.tar, read_index(folder / first.index)[11]
    offset, _ = sample.members["jpg"]
    content = bytearray(tar.read_bytes())
    if harm == "header":
        content[offset : offset + 20] = bytes(20)
    else:  # no code of the entropy coder's tables makes sense any more
        tables = content.index(b"\xff\xc4", offset) + 5
        content[tables : tables + 16] = b"\xff" * 16
    tar.write_bytes(content)
    forged = dataclasses.replace(first, tar_sha256=hashlib.sha256(content).hexdigest())
    manifest = read_manifest(folder)
    manifest = dataclasses.replace(
        manifest, shards=tuple(forged if shard.tar == first.tar else shard for shard in manifest.shards)
    )
    batches = BatchSampler(tuple(shard.samples for shard in manifest.of_split("train")), 8).batches(0, 0)
    made = dali.view_batches(Fetcher(folder, manifest, "train"), batches, Augmentation(size=32), seed=0, device=CPU,
                             fused=fused, threads=2, half=False)  # fmt: skip
    with pytest.raises(InputError, match=rf"{tar}, image {sample.key}: can't be decoded .*put back the shards"):
        for _ in range(40):
            next(made)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_only_decodes_ends_with_its_batches_and_names_what_it_cannot(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    fetcher = Fetcher(shards.folder, shards.manifest, "train")
    batches = list(cut_into_batches(range(40), 16))
    assert list(dali.decode_batches(fetcher, batches, device=CPU, threads=threads)) == [16, 16, 8]
    # Its header can be read, its pixels can't.
    whole = fetcher.read
    monkeypatch.setattr(fetcher, "read", lambda number: whole(number)[:700] if number == 20 else whole(number))
    with pytest.raises(InputError, match=r"train-000000.tar, image \w+: can't be decoded"):
        list(dali.decode_batches(fetcher, batches, device=CPU, threads=threads))


@pytest.mark.parametrize(
    "said", ["Critical error in pipeline:\nError when executing Mixed operator ImageDecoder encountered:\n"
             "CUDA allocation failed\nCurrent pipeline object is no longer valid.",
             "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory",
             "[/opt/dali] NVJPEG error \"5\" : NVJPEG_STATUS_ALLOCATOR_FAILURE n/a",
             "Can't allocate 25690112 bytes on device 0"],
)  # fmt: skip
def test_memory_that_runs_out_names_what_to_lower(said: str) -> None:
    """As DALI's users report what it says; with a GPU, test_memory_that_runs_out_on_a_gpu runs out for real."""
    told = out_of_memory(RuntimeError(said))
    assert told is not None and "--batch-size" in str(told) and "--size" in str(told) and "--views=cpu" in str(told)
    assert out_of_memory(MemoryError("std::bad_alloc")) is not None
    assert out_of_memory(RuntimeError("Error in thread 1: unrecognised image format")) is None


def test_loaders_dropped_in_mid_epoch_leave_nothing_behind(shards: Shards) -> None:
    """In a process of its own, since memory written after it was given back kills one, sooner or later."""
    code = f"""
import torch
from pathlib import Path
from pipeline.loader import two_view_loader
from pipeline.augmentation import Augmentation
from shard.manifest import read_manifest
folder = Path({str(shards.folder)!r})
for run in range(25):
    loader = two_view_loader("dali", folder, read_manifest(folder), Augmentation(size=128), batch_size=16,
                             device=torch.device("cpu"), workers=2, seed=run)
    batches = iter(loader)
    kept = [next(batches) for _ in range(1 + run % 3)]
    del loader, batches
    assert all(torch.isfinite(view).all() for views in kept for view in views)
print("whole")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("patient_positive", [0.0, 0.5])
@pytest.mark.parametrize("where", ["gpu", "cpu"])
def test_views_on_the_gpu_are_those_of_the_reference(
    partner_shards: Shards, where: Any, patient_positive: float
) -> None:
    shards, augmentation = partner_shards, Augmentation(size=64, mean=0.5, std=0.25, patient_positive=patient_positive)
    given = {"batch_size": 16, "workers": 2, "seed": 3}
    ours = two_view_loader("dali", shards.folder, shards.manifest, augmentation, device=torch.device("cuda"),
                           views=where,
                           **given)  # fmt: skip
    twin = two_view_loader("torchvision", shards.folder, shards.manifest, augmentation, device=CPU, **given)
    for found, wanted in zip(ours, twin, strict=True):
        for view, other in zip(found, wanted, strict=True):
            assert view.is_cuda and (view.cpu() - other).abs().max() * 0.25 <= 2 / 255


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_memory_that_runs_out_on_a_gpu(shards: Shards) -> None:
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - 300 * 2**20, dtype=torch.uint8, device="cuda")
    loader = two_view_loader("dali", shards.folder, shards.manifest, Augmentation(size=1024), batch_size=64,
                             views="gpu",
                             device=torch.device("cuda"), workers=2)  # fmt: skip
    with pytest.raises(InputError, match="--batch-size"):
        list(loader)
    assert taken.is_cuda
