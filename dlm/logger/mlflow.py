"""MLflow: a server, or a file that `mlflow ui` shows."""

from __future__ import annotations

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from dlm.logger.base import Plain, RunLogger

TAG = "dlm_run"  # of an MLflow run: the id of ours, by which it is found again


class MLFlow(Plain):
    """`uri` null is what MLFLOW_TRACKING_URI says, else the file `mlflow.db` beside the runs, with `mlflow/` for tables
    and pictures. `model=True` sends the converted model as an artifact."""

    def __init__(
        self,
        save_dir: str,
        id: str,
        config: dict[str, Any],
        group: str | None,
        tags: list[str],
        experiment: str,
        uri: str | None,
        model: bool,
    ):
        RunLogger.__init__(self, experiment, id)
        import mlflow  # noqa: F401  a run without the package shall fail before it trains

        runs = Path(save_dir).absolute().parent
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.artifacts = None if self.uri else (runs / "mlflow").as_uri()
        self.uri = self.uri or f"sqlite:///{runs / 'mlflow.db'}"
        self.config, self.model, self.last_step = config, model, 0
        self.tags = {TAG: id} | ({"group": group} if group else {}) | {f"tag.{tag}": "yes" for tag in tags}

    @cached_property
    def inner(self) -> MLFlowLogger:
        """Lightning's logger of the MLflow run with our id, which is made if there is none."""
        from mlflow.tracking import MlflowClient

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        client, run_id = MlflowClient(self.uri), None
        if known := client.get_experiment_by_name(self.project):
            runs = client.search_runs([known.experiment_id], f"tags.{TAG} = '{self.id}'")
            run_id = runs[0].info.run_id if runs else None
        inner = MLFlowLogger(
            self.project, self.id, self.uri, self.tags, artifact_location=self.artifacts, run_id=run_id
        )
        if run_id is None:
            inner.log_hyperparams(self.config)
        return inner

    def log_table(self, name, rows):
        self.experiment.log_table(self.inner.run_id, rows, f"{name}.json")

    def log_picture(self, name, picture, step):
        self.experiment.log_image(self.inner.run_id, picture, f"{name}-{step}.png")

    def log_model(self, folder):
        if self.model:
            self.experiment.log_artifacts(self.inner.run_id, str(folder), "model")

    @rank_zero_only
    def close(self, failed):
        if "inner" in vars(self):
            super().close(failed)
