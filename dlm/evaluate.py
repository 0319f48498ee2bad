"""Evaluate a finished run beside its parent: `python -m dlm.evaluate run=ID [evaluation.thresholds=[0.9,0.5] ...]`.

With `tasks=gsm8k,hellaswag`, benchmarks of lm-evaluation-harness are asked instead, of a run or an exported folder.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dlm.config.build import default_decoding, requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.finished import FinishedRun, opened
from dlm.config.kinds import require_options
from dlm.config.loggers import logging_again
from dlm.config.settings import Evaluate, Harness
from dlm.config.values import evaluation_of
from dlm.evaluation.results import send_results
from dlm.evaluation.suite import evaluate_again
from dlm.evaluation.summary import show
from dlm.harness.benchmarks import benchmark, merged, print_table
from dlm.runs.lease import lease
from dlm.runs.run import Run


def evaluate(cfg: DictConfig) -> None:
    """Measure a run again on our own tasks."""
    run = Run.load(str(cfg.run), cfg.runs_dir)
    with lease(run.folder):
        decoding = requested_decoding(cfg, default_decoding(run.config))
        evaluate_again(run, evaluation_of(cfg.evaluation, run.config.data), decoding, cfg.device)
        with logging_again(run, cfg.get("logger")) as loggers:
            send_results(loggers, run)
    show(run)


def evaluate_benchmarks(cfg: DictConfig, tasks: list[str]) -> None:
    """Ask benchmarks of a run, whose record gets the scores, or of an exported folder."""
    settings = Harness(**OmegaConf.to_container(cfg.harness, resolve=True))
    source = opened(str(cfg.run), cfg.runs_dir, cfg.device)
    decoding = requested_decoding(cfg, OmegaConf.create(source.decoding)) or source.decoding
    run = source.run if isinstance(source, FinishedRun) else None
    out = Path(settings.out) if settings.out else (run or source).folder / "benchmarks"
    with lease(run.folder) if run else nullcontext():
        results = benchmark(source, decoding, tasks, settings, cfg.allow_code_execution, out)
        if run:
            run.update(benchmarks=merged(run.record.get("benchmarks", {}), results))
            with logging_again(run, cfg.get("logger")) as loggers:
                send_results(loggers, run)
    print_table(results)


def listed(argument: str) -> str:
    """`tasks=a,b` as the list that it is; Hydra takes it for a sweep."""
    key, _, value = argument.partition("=")
    return f"tasks=[{value}]" if key == "tasks" and value not in ("", "null") and value[0] not in "['\"" else argument


@hydra_command("evaluate", read=listed)
def main(cfg: DictConfig) -> None:
    require_options(cfg, "evaluate", Evaluate)
    tasks = cfg.tasks or cfg.evaluation.get("benchmarks")
    if tasks:
        evaluate_benchmarks(cfg, list(tasks))
    else:
        evaluate(cfg)


if __name__ == "__main__":
    main()
