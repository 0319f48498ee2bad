"""What watches a run, and where its metrics go, is swapped and added in the config."""

import pandas as pd
import pytest
from common import config
from omegaconf import OmegaConf
from small_runs import metrics, small, weights

from dlm.config.build import make_callbacks
from dlm.runs.identity import run_id
from dlm.train import train

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]

MINE = "+callbacks.mine={_target_:lightning.pytorch.callbacks.Timer,duration:'01:00:00:00'}"
CSV = "+logger.mine={_target_:lightning.pytorch.loggers.CSVLogger,flush_logs_every_n_steps:1}"


def identity(*overrides) -> str:
    return run_id(OmegaConf.to_container(config(*overrides), resolve=True))


@pytest.mark.parametrize(
    "choice", ["callbacks=none", "callbacks=[default,learning_rate]", "callbacks.drift=null", "~callbacks"]
)
def test_what_only_watches_is_no_part_of_the_id(choice):
    assert identity(choice) == identity()


def test_a_callback_that_may_change_the_training_is_part_of_the_id():
    assert len({identity(), identity(MINE), identity("+callbacks.drift.every_step=true")}) == 2


def test_a_run_without_callbacks_has_the_same_weights_and_no_curve_of_drift(runs_dir):
    watched, alone = (
        train(small(runs_dir / name, f"callbacks={name}", "runtime.drift_every=2")) for name in ("default", "none")
    )
    a, b = weights(runs_dir / "default", watched), weights(runs_dir / "none", alone)
    assert all((a[name] == b[name]).all() for name in a)
    assert watched["record"]["selfcheck_seconds"] > 0 == alone["record"]["selfcheck_seconds"]
    curve, none = metrics(runs_dir / "default", watched), metrics(runs_dir / "none", alone)
    assert "drift/ffn/relative" in curve and not any(name.startswith("drift") for name in none)
    pd.testing.assert_frame_equal(curve[none.columns], none, check_exact=True)


def test_a_callback_and_a_logger_of_lightning_are_a_node_away(runs_dir):
    result = train(small(runs_dir, MINE, CSV, "logger=csv", "callbacks=[default,learning_rate]"))
    (path,) = (runs_dir / result["id"]).glob(f"{result['id']}/*/metrics.csv")  # in the run's folder, under its name
    logged = pd.read_csv(path)
    assert {"train/nelbo", "val/nelbo"} <= set(logged.columns)
    assert any(name.startswith("lr-") for name in logged.columns)


def test_several_loggers_are_several_nodes():
    assert list(config("logger=[csv,wandb]").logger) == ["wandb"] and not config("logger=csv").logger


@pytest.mark.parametrize("override", ["+logger.mine=true", "logger.wandb=false"])
def test_a_logger_that_is_no_node_is_refused(override, runs_dir):
    with pytest.raises(ValueError, match=r"must be a node with a _target_: see conf/logger/wandb.yaml"):
        train(small(runs_dir, "logger=wandb", override))


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        ("{_target_: dlm.attention.ar.AR}", "callbacks.mine .* is no callback of Lightning"),
        ("{_target_: subprocess.run}", "is not code that a config may name"),
    ],
)
def test_what_is_no_callback_is_refused(node, problem):
    with pytest.raises(ValueError, match=problem):
        make_callbacks(config(f"+callbacks.mine={node}", "callbacks=none").callbacks)
