"""The DALI backend: stock operators equal torchvision's; errors name image or setting. test_dali_graphs.py: graphs."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (Linux only)")

from nvidia.dali import fn, pipeline_def

from pipeline import dali, torchvision_views
from pipeline.augmentation import Augmentation
from pipeline.dali_inputs import IMAGES_NEED_LESS, border_weights, out_of_memory, view_inputs
from pipeline.loader import two_view_loader
from pipeline.sampler import BatchSampler, sequential_batches
from pipeline.view_parameters import sample_view_parameters
from shard.errors import InputError
from shard.fetch import Fetcher
from shard.manifest import read_manifest
from shard.read import read_index
from tests.conftest import REAL, ROOT, Shards

CPU = torch.device("cpu")


def constant(array: Any) -> Any:
    return lambda: np.ascontiguousarray(array)


def stock_views(images: list[Any], parameters: Any, augmentation: Augmentation, *, half: bool = False) -> Any:
    """A view of each image [H, W] by the CPU's version of the stock operators, [N, 1, S, S]. parameters: [N, 8]."""

    @pipeline_def(batch_size=len(images), num_threads=2, device_id=None)
    def graph() -> Any:
        arrays = [image[..., None] for image in images]
        source = fn.external_source(source=lambda: arrays, batch=True, layout="HWC")
        inputs = [fn.external_source(source=constant(array), batch=True)
                  for array in view_inputs(parameters, augmentation.size)]  # fmt: skip
        return dali.make_view(source, inputs, augmentation, half=half)

    pipeline = graph()
    pipeline.build()
    (views,) = pipeline.run()
    return views.as_cpu().as_array()


def largest_error(images: list[Any], augmentation: Augmentation, parameters: Any = None, half: bool = False) -> float:
    """The largest difference between stock operators' and torchvision's views, in grey levels of 255.

    parameters: [N, 8] in the order of View; by default those of view 1 in epoch 0.
    """
    if parameters is None:
        parameters = np.stack([sample_view_parameters(augmentation, 0, 0, [index], [image.shape])[0, 0]
                               for index, image in enumerate(images)])  # fmt: skip
    found = stock_views(images, parameters, augmentation, half=half).astype(np.float32)
    tensors = [torch.from_numpy(image.astype(np.float32) / 255)[None] for image in images]
    expected = [torchvision_views.make_view(image, torchvision_views.as_view(row.tolist()), augmentation).numpy()
                for image, row in zip(tensors, parameters, strict=True)]  # fmt: skip
    return float(np.abs(found - np.stack(expected)).max()) * 255 * augmentation.std


def noise(shapes: Sequence[tuple[int, int]]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


@pytest.mark.parametrize("size", [64, 96, 224])
def test_stock_views_equal_torchvisions_on_noise(size: int) -> None:
    """Up to the border, upsampled and downsampled, for many shapes."""
    images = noise([(96, 96), (320, 390), (700, 150), (50, 41)] * 25)
    assert largest_error(images, Augmentation(size=size, mean=0.5, std=0.25)) < 0.1


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [64, 224])
def test_stock_views_equal_torchvisions_at_all_borders_of_the_image(size: int, half: bool) -> None:
    """The whole image, and crops in each corner, with the ends of the ranges of all other parameters."""
    boxes = [(0, 0, 320, 390), (0, 0, 96, 110), (0, 280, 96, 110), (224, 0, 96, 110), (224, 280, 96, 110),
             (319, 0, 1, 9)]  # fmt: skip
    ends = [(flip, sigma, brightness, contrast) for flip in (0, 1) for sigma in (0.0, 0.1, 2.0)
            for brightness in (0.6, 1.4) for contrast in (0.6, 1.4)]  # fmt: skip
    parameters = np.array([(*box, *end) for box in boxes for end in ends])
    images = noise([(320, 390)]) * len(parameters)
    augmentation = Augmentation(size=size, mean=0.5, std=0.25)
    assert largest_error(images, augmentation, parameters, half) < 0.1  # float16 rounds by 0.03


@pytest.mark.parametrize("size", [96, 224])
def test_stock_views_equal_torchvisions_on_real_radiographs(size: int) -> None:
    folder = REAL / "cxr390"
    files = sorted(folder.glob("*.jpg"))[:250] if folder.is_dir() else []
    if not files:
        pytest.skip(f"needs real radiographs in {folder}")
    images = [simplejpeg.decode_jpeg(file.read_bytes(), colorspace="GRAY")[..., 0] for file in files]
    assert largest_error(images, Augmentation(size=size, mean=0.5, std=0.25)) < 0.1


@pytest.mark.parametrize(("length", "size"), [(37, 64), (64, 64), (390, 224), (1000, 32)])
def test_border_weights_equal_weight_of_all_taps_over_weight_of_those_inside(length: int, size: int) -> None:
    support = max(length / size, 1.0)
    taps = np.arange(-2000, 3000)
    for k, weight in enumerate(border_weights(np.array([length]), size)[0]):
        weights = np.maximum(0, 1 - np.abs(taps - ((k + 0.5) * length / size - 0.5)) / support)
        assert weight == pytest.approx(weights.sum() / weights[(taps >= 0) & (taps < length)].sum(), rel=1e-6)


@pytest.mark.parametrize("damage", ["header", "tables"])
@pytest.mark.parametrize("fused", [True, False])
def test_undecodable_jpeg_is_named(shards: Shards, tmp_path: Path, fused: bool, damage: str) -> None:
    """The shard's hashes match its corrupt image. DALI's error does not say which image it is."""
    folder = tmp_path / "shards"
    shutil.copytree(shards.folder, folder)
    first = shards.manifest.of_split("train")[0]
    tar, sample = folder / first.tar, read_index(folder / first.index)[11]
    offset, _ = sample.members["jpg"]
    content = bytearray(tar.read_bytes())
    if damage == "header":
        content[offset : offset + 20] = bytes(20)
    else:  # invalid Huffman tables
        tables = content.index(b"\xff\xc4", offset) + 5
        content[tables : tables + 16] = b"\xff" * 16
    tar.write_bytes(content)
    forged = dataclasses.replace(first, tar_sha256=hashlib.sha256(content).hexdigest(), image_xxh3="")
    manifest = read_manifest(folder)
    manifest = dataclasses.replace(
        manifest, shards=tuple(forged if shard.tar == first.tar else shard for shard in manifest.shards)
    )
    batches = BatchSampler(manifest.shard_sizes("train"), 8).batches(0, 0)
    views = dali.view_batches(Fetcher(folder, manifest, "train"), batches, Augmentation(size=32), seed=0, device=CPU,
                              fused=fused, threads=2, half=False)  # fmt: skip
    with pytest.raises(InputError, match=rf"{tar}, image {sample.key}: can't be decoded .*put back the shards"):
        for _ in range(40):
            next(views)


@pytest.mark.parametrize("threads", [1, 3])
def test_decode_batches_yields_batch_sizes_and_names_an_undecodable_image(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    fetcher = Fetcher(shards.folder, shards.manifest, "train")
    batches = sequential_batches(range(40), 16)
    assert list(dali.decode_batches(fetcher, batches, device=CPU, threads=threads)) == [16, 16, 8]
    read = fetcher.read  # of image 20 only the header
    monkeypatch.setattr(fetcher, "read", lambda index: read(index)[:700] if index == 20 else read(index))
    with pytest.raises(InputError, match=r"train-000000.tar, image \w+: can't be decoded"):
        list(dali.decode_batches(fetcher, batches, device=CPU, threads=threads))


@pytest.mark.parametrize(
    "error", ["Critical error in pipeline:\nError when executing Mixed operator ImageDecoder encountered:\n"
             "CUDA allocation failed\nCurrent pipeline object is no longer valid.",
             "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory",
             "[/opt/dali] NVJPEG error \"5\" : NVJPEG_STATUS_ALLOCATOR_FAILURE n/a",
             "Can't allocate 25690112 bytes on device 0"],
)  # fmt: skip
def test_out_of_memory_names_the_settings_to_lower(error: str) -> None:
    """Errors from DALI's issue tracker. test_out_of_memory_on_a_gpu provokes a real one."""
    translated = str(out_of_memory(RuntimeError(error)))
    assert all(flag in translated for flag in ("--batch-size", "--size", "--views=cpu"))
    assert "--views" not in str(out_of_memory(MemoryError("std::bad_alloc"), IMAGES_NEED_LESS))
    assert str(out_of_memory(MemoryError())).endswith("(MemoryError)")
    assert out_of_memory(RuntimeError("Error in thread 1: unrecognised image format")) is None


def test_loaders_can_be_dropped_during_an_epoch(shards: Shards) -> None:
    """In a separate process: threads that write to freed memory would crash it sooner or later."""
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
print("complete")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "complete\n"), done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("patient_positive", [0.0, 0.5])
@pytest.mark.parametrize("view_device", ["gpu", "cpu"])
def test_views_on_a_gpu_equal_torchvisions(
    partner_shards: Shards, view_device: Any, patient_positive: float
) -> None:
    shards, augmentation = partner_shards, Augmentation(size=64, mean=0.5, std=0.25, patient_positive=patient_positive)
    settings = {"batch_size": 16, "workers": 2, "seed": 3}
    loader = two_view_loader("dali", shards.folder, shards.manifest, augmentation, device=torch.device("cuda"),
                             views=view_device, **settings)  # fmt: skip
    reference = two_view_loader("torchvision", shards.folder, shards.manifest, augmentation, device=CPU, **settings)
    for found, expected in zip(loader, reference, strict=True):
        for view, other in zip(found, expected, strict=True):
            assert view.is_cuda and (view.cpu() - other).abs().max() * 0.25 <= 2 / 255


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_out_of_memory_on_a_gpu(shards: Shards) -> None:
    free, _ = torch.cuda.mem_get_info()
    filler = torch.empty(free - 300 * 2**20, dtype=torch.uint8, device="cuda")
    loader = two_view_loader("dali", shards.folder, shards.manifest, Augmentation(size=1024), batch_size=64,
                             views="gpu", device=torch.device("cuda"), workers=2)  # fmt: skip
    try:
        with pytest.raises(InputError, match="--batch-size"):
            list(loader)
    finally:
        del filler
        torch.cuda.empty_cache()  # else PyTorch keeps it, and the processes of later tests find no memory
