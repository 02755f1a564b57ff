"""Average gradients over the ranks while backward still computes others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import nn

# As in DistributedDataParallel: large ones use the network best, and a small first one starts early.
BUCKET_BYTES, FIRST_BUCKET_BYTES = 25 << 20, 1 << 20


@contextlib.contextmanager
def average_gradients(model: nn.Module) -> Iterator[None]:
    """Replace each gradient by its mean over the ranks. The block runs backward once.

    Before it, .grad may hold the sum of earlier micro-batches, which is averaged with the rest.

    A bucket of gradients is reduced as soon as backward has computed them. Buckets follow the parameters from the last
    to the first, about the order of backward, and are reduced in that order on every rank. A parameter without a
    gradient counts as zeros, keeps None, and makes its bucket and later ones wait for the end of backward. The layout
    depends on the model alone. DistributedDataParallel rebuilds its buckets after the first step, so that the sums of
    three or more ranks would differ in the last bit after a resume.
    """
    if not dist.is_initialized():
        yield
        return
    buckets = _make_buckets([parameter for parameter in model.parameters() if parameter.requires_grad])
    hooks = [parameter.register_post_accumulate_grad_hook(partial(_add, buckets, bucket))
             for bucket in buckets for parameter in bucket.parameters]  # fmt: skip
    try:
        yield
        for bucket in buckets:
            bucket.fill()
            if not bucket.started:
                bucket.start()
        for bucket in buckets:
            bucket.finish()
    finally:
        for hook in hooks:
            hook.remove()
        buckets.clear()  # after an error in the block, pending reductions would keep the connections open


def _make_buckets(parameters: Sequence[nn.Parameter]) -> list[_Bucket]:
    """Group the parameters, from the last to the first; all in a bucket have one dtype."""
    groups: list[list[nn.Parameter]] = []
    size = limit = 0
    for parameter in reversed(parameters):
        if size >= limit or parameter.dtype != groups[-1][0].dtype:
            limit = BUCKET_BYTES if groups else FIRST_BUCKET_BYTES
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return [_Bucket(group) for group in groups]


def _add(buckets: Sequence[_Bucket], bucket: _Bucket, parameter: torch.Tensor) -> None:
    """Add a parameter's gradient to its bucket, and start the complete buckets that no incomplete one precedes."""
    bucket.add(parameter)
    for each in buckets:
        if each.missing:
            return
        if not each.started:
            each.start()


class _Bucket:
    """Parameters whose gradients are reduced together, as one flat tensor."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing: set[torch.Tensor] = set(parameters)
        self.slots: dict[torch.Tensor, torch.Tensor] = {}  # parameter → its part of `flat`
        self.flat = torch.empty(0)
        self.work: dist.Work | None = None

    @property
    def started(self) -> bool:
        return self.work is not None

    def add(self, parameter: torch.Tensor) -> None:
        """Move a parameter's gradient into `flat`. Its .grad becomes a view of that: the gradient is in memory once."""
        assert not self.started, "a gradient changed after its reduction began: run backward once"
        if not self.slots:
            self._allocate()
        slot = self.slots[parameter]
        if parameter.grad is not slot:
            assert parameter.grad is not None
            slot.copy_(parameter.grad)
            parameter.grad = slot
        self.missing.discard(parameter)

    def _allocate(self) -> None:
        sizes = [parameter.numel() for parameter in self.parameters]
        self.flat = self.parameters[0].new_empty(sum(sizes), requires_grad=False)
        for parameter, start in zip(self.parameters, accumulate([0, *sizes[:-1]]), strict=True):
            strides = torch.empty_like(parameter, device="meta").stride()  # the parameter's memory format, without gaps
            self.slots[parameter] = self.flat.as_strided(parameter.shape, strides, start)

    def fill(self) -> None:
        """Add the gradients for which backward did not call a hook, and zeros for parameters without a gradient."""
        if not self.slots:
            self._allocate()
        for parameter in self.parameters:
            if parameter not in self.missing:
                continue
            if parameter.grad is None:
                self.slots[parameter].zero_()
            else:
                self.add(parameter)

    def start(self) -> None:
        self.work = dist.all_reduce(self.flat, async_op=True)

    def finish(self) -> None:
        """Wait for the sums, on a GPU without stopping the CPU, and divide them."""
        assert self.work is not None
        self.work.wait()
        self.flat /= dist.get_world_size()
