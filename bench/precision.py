"""Measure which precision and memory format train an architecture fastest on this machine's CPU.

python -m bench.precision. --precision=auto is chosen by its results. The variants of an architecture take turns, one
step each, on views of noise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from tqdm import tqdm

from bench.output import prepare_output_path, spread, write_results
from bench.process import MeasuredProcess
from shard.cli import run
from shard.errors import InputError
from shard.flags import JSON, ROUNDS, Flag, validate_call
from train.architectures import check_arch
from train.config import Config, Precision
from train.device import configure_backend, depthwise_convs, keep_in_fp32, resolve_precision
from train.model import SimCLR
from train.optim import make_optimizer
from train.state import TrainState
from train.step import train_step

ARCHS = ("resnet18", "resnet50", "timm/densenet121", "timm/convnext_tiny", "timm/vit_small_patch16_224",
         "timm/swin_tiny_patch4_window7_224", "timm/efficientnet_b0", "timm/tf_efficientnet_lite0",
         "timm/mobilenetv3_large_100")  # fmt: skip
CPU = torch.device("cpu")


class Variant(NamedTuple):
    """A way to train. keep: whether depthwise convolutions stay in fp32."""

    precision: Precision
    memory_format: torch.memory_format
    keep: bool = False


VARIANTS = {
    "fp32, contiguous": Variant("fp32", torch.contiguous_format),
    "fp32, channels last": Variant("fp32", torch.channels_last),
    "bf16, contiguous": Variant("bf16", torch.contiguous_format),
    "bf16, channels last": Variant("bf16", torch.channels_last),
    "the same, depthwise fp32": Variant("bf16", torch.channels_last, keep=True),
}
BASE = "fp32, contiguous"  # what timm's and torchvision's models are by default


@validate_call
def bench(
    *,
    archs: Annotated[tuple[str, ...], Flag("Architectures to measure, as --arch takes them.", metavar="NAME,…",
                                           default="nine architectures")] = (),
    size: Annotated[int, Flag("Side of a view in pixels.", low=32, high=4096)] = 224,
    batch_size: Annotated[int, Flag("Images per step.", low=2, high=10**6)] = 8,
    rounds: Annotated[int, ROUNDS] = 5,
    json: Annotated[Path, JSON] = Path("bench-precision.json"),
) -> None:  # fmt: skip
    """Measure images/s of training on this CPU in fp32 and bf16, with contiguous and channels-last memory.

    Ratios are to fp32 with contiguous memory, within each round. An arrow marks what train chooses. With one thread
    (OMP_NUM_THREADS=1) the CPU time of the process is measured, which other processes disturb less.

        python -m bench.precision --archs=resnet18,timm/tf_efficientnet_lite0 --size=64 --batch-size=32
    """
    archs = archs or ARCHS
    for arch in archs:
        check_arch(arch, size, flag="--archs=")
    prepare_output_path(json)
    rows = [row for arch in tqdm(archs, desc="measuring", unit=" architectures", disable=None)
            for row in _measure(arch, size, batch_size, rounds)]  # fmt: skip
    _print(rows, size, batch_size, rounds)
    settings = {"size": size, "batch_size": batch_size, "rounds": rounds, "threads": torch.get_num_threads()}
    write_results(json, {"settings": settings, "rows": rows})


def _measure(arch: str, size: int, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    process = MeasuredProcess(_take_turns, (arch, size, batch_size), _take_rounds)
    try:
        seconds = process.measure(rounds)
    except RuntimeError as error:
        raise InputError(f"--archs={arch}: {error}; if memory is short, lower --batch-size") from error
    finally:
        process.close()
    return summarise_variants(arch, batch_size, seconds)


def _take_turns(arch: str, size: int, batch_size: int) -> Iterator[dict[str, float]]:
    """Yield the seconds of one step of every variant, indefinitely."""
    configure_backend(CPU)
    # Other processes count less in the CPU time. With several threads it would count those that wait for one another.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    states = {name: state for name, variant in VARIANTS.items() if (state := _prepare(arch, size, variant))}
    view1, view2 = torch.randn(2, batch_size, 1, size, size)
    while True:
        seconds = {}
        for name, state in states.items():
            begun = clock()
            train_step(state, view1, view2, lr=Config.lr, temperature=Config.temperature,
                       precision=VARIANTS[name].precision)  # fmt: skip
            seconds[name] = clock() - begun
        yield seconds


def _prepare(arch: str, size: int, variant: Variant) -> TrainState | None:
    """Return the state to train a variant from; None for one that keeps convolutions which the model lacks."""
    torch.manual_seed(0)
    model = SimCLR(arch, size).to(memory_format=variant.memory_format).train()
    convs = depthwise_convs(model)
    if variant.keep:
        if not convs:
            return None
        keep_in_fp32(convs)
    optimizer = make_optimizer("adam", model, lr=Config.lr, weight_decay=0.0)
    return TrainState(model, model, optimizer, torch.amp.GradScaler("cpu", enabled=False), CPU, steps_per_epoch=1)


def _take_rounds(turns: Iterator[dict[str, float]], rounds: float) -> list[dict[str, float]]:
    """Take a round to warm up, then `rounds` of them."""
    next(turns)
    return list(islice(turns, int(rounds)))


def summarise_variants(arch: str, batch_size: int, seconds: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return the statistics of an architecture's variants, from the seconds of their steps in each round."""
    names = list(seconds[0])
    chosen = names[-1] if resolve_precision("auto", "cpu") == "bf16" else "fp32, channels last"
    return [{"arch": arch, "variant": name, "chosen": name == chosen,
             "images_per_s": spread([batch_size / one[name] for one in seconds]),
             "times_fp32_contiguous": spread([one[BASE] / one[name] for one in seconds])}
            for name in names]  # fmt: skip


def _print(rows: list[dict[str, Any]], size: int, batch_size: int, rounds: int) -> None:
    print(f"\n{size} px, batches of {batch_size} images, two views each, {torch.get_num_threads()} threads, "
          f"{rounds} rounds\n")  # fmt: skip
    print(f"{'architecture':36}{'precision, memory format':28}{'images/s':>9}{'× fp32, contiguous':>20} [low, high]")
    previous = ""
    for row in rows:
        ratio = row["times_fp32_contiguous"]
        print(f"{row['arch'] if row['arch'] != previous else '':36}{row['variant']:28}"
              f"{row['images_per_s']['median']:9.2f}{ratio['median']:20.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
              f"{'  ← train' if row['chosen'] else ''}")  # fmt: skip
        previous = row["arch"]


if __name__ == "__main__":
    run("python -m bench.precision", bench)
