"""WandbRun: a run on Weights & Biases, or in its offline folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shard.errors import InputError
from shard.files import write_bytes

PROJECT = "cxr-simclr"
OFFLINE = ("offline", "disabled", "dryrun")
INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 20.0, 8.0  # wandb's defaults are 90 seconds and no limit


def prepare_wandb() -> None:
    """Set wandb's environment before its first import."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing goes to anybody but wandb's server


def check_wandb() -> None:
    """Raise InputError unless wandb is offline or has a key."""
    import wandb

    if os.environ.get("WANDB_MODE", "online") not in OFFLINE and not wandb.api.api_key:
        raise InputError("--log=wandb: no API key; run wandb login, set WANDB_API_KEY, or keep the run on this machine "
                         "with WANDB_MODE=offline")  # fmt: skip


class WandbRun:
    """Sends scalars to wandb, in the mode of WANDB_MODE; files go to the folder wandb in the run's folder.

    The project is WANDB_PROJECT or cxr-simclr, the run's name that of its folder. wandb sends neither the console's
    output, which may name images, nor code, commit, command line, host name or the state of the machine. Scalars are
    plotted against `step`, because a resumed run may repeat some steps, with equal values.
    """

    def __init__(self, run: Path, id_file: Path, settings: Mapping[str, Any], *, new: bool) -> None:
        """id_file: keeps wandb's id of the run. settings: sent as its config. new: whether to begin another run."""
        self._folder, self._settings = run, settings
        self._run: Any = None
        self._is_new = new or not id_file.exists()
        if self._is_new:
            write_bytes(id_file, f"{secrets.token_hex(4)}\n".encode())
        self._id = id_file.read_text().strip()

    def open(self) -> bool:
        """Start or continue the run, and return whether it is new. Raises what wandb raises."""
        import wandb

        private = wandb.Settings(
            silent=True, console="off", save_code=False, disable_code=True, disable_git=True, host="", email="",
            username="", x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
            x_save_requirements=False, init_timeout=INIT_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=True,
        )  # fmt: skip
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), dir=self._folder, id=self._id, name=self._folder.name,
            resume="allow", config=dict(self._settings), settings=private,
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")
        return self._is_new

    def send(self, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Log the scalars of steps. wandb keeps them on disk until they are uploaded."""
        for step, scalars in lines:
            self._run.log({"step": step, **scalars})

    def close(self, status: str) -> None:
        """End the run. Raises TimeoutError if the upload does not end in time; wandb sync then completes it."""
        self._run.finish(exit_code=int(status == "failed"))
