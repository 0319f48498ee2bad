"""Evaluate a finished run beside its parent: `python -m dlm.evaluate run=ID [evaluation.thresholds=[0.9,0.5] ...]`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from dlm.config.arguments import call
from dlm.config.kinds import require_kinds
from dlm.config.settings import Evaluate
from dlm.console import command
from dlm.evaluation.suite import evaluate_again
from dlm.evaluation.summary import show
from dlm.runs.lease import lease
from dlm.runs.run import Run


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
@command
def main(cfg: DictConfig) -> None:
    require_kinds(cfg, Evaluate)
    run = Run.load(str(cfg.run), cfg.runs_dir)
    with lease(run.folder):
        evaluate_again(run, cfg.evaluation)
    show(run)


if __name__ == "__main__":
    call(main)
