"""What `-m` adds to a run: a line per job, a summary at the end, and an exit code that tells whether all succeeded."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from dlm.evaluate import headline


class SweepCallback(Callback):
    """Writes `<sweep dir>/<job>.json` as each job ends, in whatever process it ran."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepCallback.folder = Path(config.hydra.sweep.dir)
        overrides = OverridesParser.create().parse_overrides(OmegaConf.to_container(config.hydra.overrides.task))
        sizes = [len(list(o.sweep_string_iterator())) for o in overrides if o.is_discrete_sweep()]
        print(f"sweep of {math.prod(sizes)} jobs", flush=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self.is_sweep(config):
            print(f"\n[job {config.hydra.job.num}] {config.hydra.job.override_dirname}", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if not self.is_sweep(config):
            return
        failed = job_return.status is not JobStatus.COMPLETED
        result = {"status": "failed"} if failed else job_return.return_value
        error = repr(job_return._return_value) if failed else None
        line = {"job": config.hydra.job.override_dirname, "id": result.get("id"), "status": result["status"]}
        line |= {"error": error, "metrics": headline(result.get("record", {}))}
        path = Path(config.hydra.sweep.dir) / f"{config.hydra.job.num}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(line))
        print(f"[job {config.hydra.job.num}] {line['status']}" + (f": {error}" if error else ""), flush=True)

    @staticmethod
    def is_sweep(config: DictConfig) -> bool:
        return OmegaConf.select(config, "hydra.mode") is not None and config.hydra.mode.name == "MULTIRUN"


def summary_table(lines: list[dict[str, Any]]) -> Table:
    """One row per job."""
    names = list(dict.fromkeys(name for line in lines for name in line["metrics"]))
    table = Table(title=f"{len(lines)} jobs")
    for column in ("job", "run", "status", *names):
        table.add_column(column)
    for line in lines:
        numbers = (f"{line['metrics'][n]:.3f}" if n in line["metrics"] else "" for n in names)
        table.add_row(line["job"], line["id"] or "", line["status"], *numbers)
    return table


def run(main: Callable[[], Any]) -> None:
    """Call a Hydra main; after a sweep, print its summary whatever happened."""
    try:
        main()
    finally:
        folder = SweepCallback.folder
        if folder is not None and folder.exists():
            files = sorted(folder.glob("*.json"), key=lambda p: int(p.stem))
            Console(file=sys.stdout).print(summary_table([json.loads(f.read_text()) for f in files]))
