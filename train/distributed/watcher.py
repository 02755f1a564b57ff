"""Watcher: a thread that learns why another rank failed, and ends this process if it cannot end by itself."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from train.distributed.ranks import Ranks

POLL_S = 1.0  # how often each rank reads the store
GRACE_S = 30.0  # for a rank to end by itself once it knows that one failed
ALIVE_TIMEOUT_S = 5.0  # for the watchers of the other ranks to respond: each reads the store every second
STORE_TIMEOUT = timedelta(seconds=60)  # to connect
ENDED = "ended without reporting an error: killed, or its node failed; run the same command to resume"
Value = TypeVar("Value")


class Watcher:
    """Watches the store for the reason why a rank failed.

    A rank that waits for a failed one gets an exception when the connection breaks, and ends. But a collective of NCCL
    waits in a kernel that no exception interrupts, and the connection stays open for as long as the failed process
    exists. If this process still runs GRACE_S seconds after a rank failed, this one or another, its watcher prints the
    reason and ends it with status 1. The process that serves the store has failed if the connection to it breaks.

    reason: why a rank failed, once known. explained: whether this rank's error will be, or was, printed.
    """

    def __init__(self, ranks: Ranks, store: Store) -> None:
        """Start to watch. store: of all ranks; kept, since the first rank serves it for as long as it exists."""
        self.reason = ""
        self.explained = False
        self._ranks, self._served = ranks, store
        # A connection of its own: a TCPStore makes one call at a time, and the main thread may wait in one for minutes,
        # for example for the NCCL id of a rank that failed.
        client = TCPStore(ranks.host, ranks.port, is_master=False, wait_for_workers=False, timeout=STORE_TIMEOUT)
        # torchrun may serve one store to several attempts.
        self._store = PrefixStore(f"failure-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", client)
        self._store_gone = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()

    def report(self, reason: str) -> None:
        """Tell all ranks why this one failed. The first reason that any rank reports counts."""
        self.explained = True
        reason = reason.encode(errors="backslashreplace").decode()  # the store refuses a path that is not UTF-8
        first = self._try(self._store.compare_set, "reason", "", reason, default=reason.encode()).decode()
        self.reason = self.reason or first

    def find_reason(self) -> str:
        """Return why a rank failed, or "" if none has reported."""
        if not self.reason and self._try(self._store.check, ["reason"], default=False):
            self.reason = self._try(self._store.get, "reason", default=b"").decode()
        return self.reason

    def find_missing(self) -> list[int]:
        """Return the ranks whose watchers do not respond: their processes ended, unless a reason is known by then.

        A rank that is busy, for example with a checkpoint, responds: its watcher is another thread.
        """
        self._set("query")
        self._set(f"alive-{self._ranks.rank}")
        until = time.monotonic() + ALIVE_TIMEOUT_S
        while (missing := self._without("alive")) and not self.find_reason() and time.monotonic() < until:
            time.sleep(0.1)
        return missing

    def stop(self) -> None:
        """Stop watching, before this process exits. The first rank returns when no watcher needs its store any more."""
        self._stopped.set()
        self._thread.join(POLL_S)
        if self._ranks.first:
            self._set("end")
            until = time.monotonic() + 3 * POLL_S
            while self._without("done") and time.monotonic() < until:
                time.sleep(0.02)

    def _watch(self) -> None:
        while not (self.reason or self._store_gone or self._stopped.wait(POLL_S)):
            if self._try(self._store.check, ["query"], default=False):
                self._set(f"alive-{self._ranks.rank}")
            # Read before the reason: a first rank that fails reports its reason before it sets "end".
            end = self._try(self._store.check, ["end"], default=False)
            if self.find_reason() or end:
                break
        self._set(f"done-{self._ranks.rank}")
        if self.reason and not self._stopped.wait(GRACE_S):
            self._end_process()

    def _end_process(self) -> None:
        with self._ranks.saving:  # a checkpoint that is being written may still be completed
            if not self.explained:
                print(f"error: {self._ranks.name}: ends because {self.reason}", file=sys.stderr, flush=True)
            os._exit(1)

    def _set(self, key: str) -> None:
        self._try(self._store.set, key, "", default=None)

    def _without(self, word: str) -> list[int]:
        """Return the ranks that have not set this word; none if the store is gone."""
        return [rank for rank in range(self._ranks.world)
                if not self._try(self._store.check, [f"{word}-{rank}"], default=True)]  # fmt: skip

    def _try(self, call: Callable[..., Value], *values: object, default: Value) -> Value:
        """Call a method of the store, or return `default` if the store is gone, and with it the process that serves it.

        After that the store is not called again: PyTorch would print a warning of twenty lines each time.
        """
        if not self._store_gone:
            try:
                return call(*values)
            except RuntimeError:  # of a process that is only stopped (SIGSTOP), the call waits
                self._store_gone = True
                served_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
                self.reason = self.reason or f"{'torchrun' if served_by_torchrun else 'rank 0'} {ENDED}"
        return default
