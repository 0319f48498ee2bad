"""TensorBoard: `tensorboard --logdir runs` shows the runs of a folder."""

from __future__ import annotations

from typing import Any

import pandas as pd
from lightning.pytorch.loggers import TensorBoardLogger

from dlm.logger.base import Plain
from dlm.markdown import table

ROWS = 200  # of a table, which is shown as text


class TensorBoard(Plain):
    """Writes to `tensorboard/` in the run's folder; every command that adds something writes a file of its own."""

    def __init__(self, save_dir: str, config: dict[str, Any]):
        super().__init__(TensorBoardLogger(save_dir, name="", version="tensorboard", default_hp_metric=False))
        self.config = config

    def log_summary(self, values):
        self.inner.log_hyperparams(self.config, dict(values))

    def log_table(self, name, rows: pd.DataFrame):
        cells = ([str(value).replace("\n", " ") for value in row] for row in rows.head(ROWS).itertuples(index=False))
        self.experiment.add_text(name, table(list(rows.columns), cells), self.last_step)

    def log_picture(self, name, picture, step):
        self.experiment.add_image(name, picture, step, dataformats="HWC")
