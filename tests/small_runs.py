"""Small runs of the embedded parent, and what they leave."""

import pandas as pd
import pytest
import torch
from common import config
from safetensors.torch import load_file

from dlm.conversion.module import Conversion
from dlm.runs.run import Run
from dlm.train import train

# Four optimizer steps on the embedded parent, without evaluation.
SMALL = (
    "tokens=1024",
    "block_size=8",
    "data.length=64",
    "data.batch_size=4",
    "data.val_rows=4",
    "runtime.progress_bar=false",
    "runtime.log_every=1",
    "evaluation=none",
    "logger=csv",
)


def small(runs_dir, *overrides):
    return config(*SMALL, f"runs_dir={runs_dir}", *overrides)


def train_and_interrupt(cfg, monkeypatch, micro_batches: int = 6) -> None:
    """Train a run that is asked to stop in the step after so many micro-batches."""
    step = Conversion.training_step

    def breaks(self, batch, batch_idx):
        if self.micro_batches == micro_batches:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "training_step", breaks)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)


def weights(runs_dir, result) -> dict[str, torch.Tensor]:
    files = Run.load(result["id"], runs_dir).model_folder.rglob("*.safetensors")
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def metrics(runs_dir, result) -> pd.DataFrame:
    return pd.read_csv(runs_dir / result["id"] / "metrics.csv")
