"""Runs that look for a fault: a few rows learned by heart, a few steps with everything around them."""

import pandas as pd
import pytest
import torch
from common import BASE, config
from hydra import compose, initialize_config_dir
from small_runs import SMALL

from dlm.config.build import build
from dlm.config.folders import CONF
from dlm.runs.run import Run
from dlm.train import train


@pytest.mark.trains
def test_rows_begin_again_after_those_that_are_distinct():
    rows = build(config(*SMALL, "+data.distinct=3", "tokens=4096")).data.train_rows
    assert len({tuple(rows[index].x0.tolist()) for index in range(3)}) == 3
    assert all(torch.equal(rows[index].x0, rows[index % 3].x0) for index in range(len(rows)))
    with pytest.raises(ValueError, match="data.distinct 0 must be at least 1, or null"):
        build(config(*SMALL, "+data.distinct=0"))


@pytest.mark.parametrize("name", [path.stem for path in (CONF / "debug").glob("*.yaml")])
def test_every_way_of_looking_for_a_fault_composes(name):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", [f"debug={name}"])
    assert cfg.tokens < 1_000_000 and "wandb" not in cfg.logger


@pytest.mark.slow
def test_a_few_rows_are_learned_by_heart(tmp_path):
    base = [f"{option}={value}" for option, value in BASE.items() if option not in ("evaluation", "tokens")]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", [*base, "debug=overfit", "lr=3e-3", "tokens=80_000", f"runs_dir={tmp_path}"])
    found = pd.read_csv(Run.load(train(cfg)["id"], tmp_path).folder / "metrics.csv")["train/nelbo"].dropna()
    assert found.iloc[-1] < 0.25 * found.iloc[0]
