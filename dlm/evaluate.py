"""Evaluate a finished run beside its parent: `python -m dlm.evaluate run=ID [evaluation.thresholds=[0.9,0.5] ...]`."""

from __future__ import annotations

from omegaconf import DictConfig

from dlm.config.build import default_decoding, requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.kinds import require_options
from dlm.config.loggers import logging_again
from dlm.config.settings import Evaluate
from dlm.evaluation.results import send_results
from dlm.evaluation.suite import evaluate_again
from dlm.evaluation.summary import show
from dlm.runs.lease import lease
from dlm.runs.run import Run


@hydra_command("evaluate")
def main(cfg: DictConfig) -> None:
    require_options(cfg, Evaluate)
    run = Run.load(str(cfg.run), cfg.runs_dir)
    with lease(run.folder):
        evaluate_again(run, cfg.evaluation, requested_decoding(cfg, default_decoding(run.config)), cfg.device)
        with logging_again(run, cfg.get("logger")) as loggers:
            send_results(loggers, run)
    show(run)


if __name__ == "__main__":
    main()
