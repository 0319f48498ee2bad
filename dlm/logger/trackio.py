"""Trackio: a dashboard on one's own machine, without an account; `trackio show` opens it."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from dlm.logger.base import RunLogger


class Trackio(RunLogger):
    """Writes where TRACKIO_DIR says, by default in the cache of Hugging Face. Results are what a run logs last."""

    def __init__(self, id: str, config: dict[str, Any], group: str | None, project: str):
        super().__init__(project, id)
        import trackio  # noqa: F401  a run without the package shall fail before it trains

        self.config, self.group, self.run = config, group, None

    @property
    def experiment(self):
        """The run of Trackio, opened on first use."""
        import trackio

        if self.run is None:
            with contextlib.redirect_stdout(io.StringIO()):  # eight lines on how to open the dashboard
                self.run = trackio.init(
                    self.project, self.id, self.group, config=self.config, resume="allow", embed=False
                )
        return self.run

    def send(self, metrics, step):
        self.experiment.log(metrics, step=step)

    def log_summary(self, values):
        self.send(dict(values), None)

    def log_table(self, name, rows):
        import trackio

        self.log_metrics({name: trackio.Table(dataframe=rows)})

    def log_picture(self, name, picture, step):
        import trackio

        self.log_metrics({name: trackio.Image(picture)}, step)

    @rank_zero_only
    def close(self, failed):
        if self.run is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                self.run.finish()
            self.run = None
