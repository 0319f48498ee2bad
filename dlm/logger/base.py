"""Where the numbers of a run go beside its own folder, and the calls that every such place gets.

A logger of Lightning takes metrics. A `RunLogger` takes tables, pictures, results and the model as well; a place that
cannot show one of these leaves it out, so whoever sends need not know where it goes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

Picture = UInt8[np.ndarray, "H W 3"]


class RunLogger(Logger):
    """Contract: nothing is opened before something is sent, and a run that was closed is continued by its id.

    Of several processes only the first one sends. `tokens_per_step` is what one optimizer step trains on: every metric
    is sent with the `tokens` that the model has seen by then."""

    tokens_per_step = 0
    tokens = 0  # of the last metrics: whoever adds to a finished run sets those of its training

    def __init__(self, project: str, id: str):
        self.project, self.id = project, id

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send metrics of the optimizer step `step`, counted from 0."""
        if step is not None:
            self.tokens = (step + 1) * self.tokens_per_step
        self.send({**metrics, "tokens": self.tokens}, step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: a logger gets the run's config when it is made."""

    def finalize(self, status: str) -> None:
        """Nothing: Lightning calls this after training, and the evaluation is still to come."""

    @abstractmethod
    def send(self, metrics: dict[str, float], step: int | None) -> None:
        """Send metrics as they are."""

    @abstractmethod
    def log_summary(self, values: Mapping[str, float]) -> None:
        """Send the results of the run, which have no step."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """End the run, if anything was sent."""

    def log_table(self, name: str, rows: pd.DataFrame) -> None:
        """Send a table."""

    def log_picture(self, name: str, picture: Picture, step: int) -> None:
        """Send an RGB picture of the optimizer step `step`."""

    def log_model(self, folder: Path) -> None:
        """Send the converted model, a Hugging Face folder, if that was asked for."""


class Plain(RunLogger):
    """Any logger of Lightning: it gets the metrics, and the results as metrics of the last step."""

    def __init__(self, inner: Logger):
        super().__init__(str(inner.name), str(inner.version))
        self.inner, self.last_step = inner, 0

    @property
    def experiment(self) -> Any:
        return self.inner.experiment

    @property
    def save_dir(self) -> str | None:
        return self.inner.save_dir

    def send(self, metrics, step):
        self.last_step = self.last_step if step is None else step
        self.inner.log_metrics(metrics, step)

    def log_summary(self, values):
        self.inner.log_metrics(dict(values), self.last_step)

    def close(self, failed):
        self.inner.save()
        self.inner.finalize("failed" if failed else "success")
