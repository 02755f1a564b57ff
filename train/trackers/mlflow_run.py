"""MLflowRun: a run on an MLflow server, or in a folder of MLflow's."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shard.files import write_bytes

EXPERIMENT = "cxr-simclr"
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def prepare_mlflow() -> None:
    """Set MLflow's environment before its first import."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing goes to anybody but the tracking server
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # Background repeats calls, and says so
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for each attempt


class MLflowRun:
    """Sends scalars to MLFLOW_TRACKING_URI or, without it, to the folder mlruns beside the run's folder.

    The experiment is MLFLOW_EXPERIMENT_NAME or cxr-simclr, the run's name that of its folder. MLflow's client is used
    instead of its fluent functions, which add the user's name, the command and the commit.
    """

    def __init__(self, run: Path, id_file: Path, settings: Mapping[str, Any], *, new: bool) -> None:
        """id_file: keeps MLflow's id of the run. settings: sent as parameters. new: whether to begin another run."""
        self._run, self._id_file, self._settings, self._new = run, id_file, settings, new
        self._client: Any = None
        self._id, self._created = "", False

    def open(self) -> bool:
        """Find or create the run, and return whether it was created. Raises what MLflow raises."""
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (self._run.parent / "mlruns").as_uri()
        if "://" not in uri or uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 otherwise wants a database
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = self._client or MlflowClient(tracking_uri=uri)
        if not self._created:
            if not self._new and self._id_file.exists() and self._continue(self._id_file.read_text().strip()):
                return False
            self._id = self._client.create_run(self._experiment(), run_name=self._run.name).info.run_id
            self._created = True  # not again if the next calls fail
        write_bytes(self._id_file, f"{self._id}\n".encode())
        params = [Param(name, str(value)) for name, value in self._settings.items() if value not in (None, "")]
        self._client.log_batch(self._id, params=params)
        return True

    def _continue(self, run_id: str) -> bool:
        """Continue a run; return False if the server does not have it any more."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" and "lifecycle_stage" not in str(error):
                raise
            return False  # another server, or deleted there
        self._id = run_id
        return True

    def _experiment(self) -> str:
        """Return the id of the experiment; create it if it does not exist."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:
            if found := self._client.get_experiment_by_name(name):  # another job created it
                return str(found.experiment_id)
            raise

    def send(self, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Log the scalars of steps."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(tag, value, now, step) for step, scalars in lines
                                                  for tag, value in scalars.items()])  # fmt: skip

    def close(self, status: str) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._id, status=_STATUS[status])
