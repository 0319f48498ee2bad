"""Support for sweeps (`-m`): a line per job, a summary at the end, and an exit code that says if all jobs succeeded."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlm.runs.digest import digest
from dlm.runs.identity import is_volatile
from dlm.runs.run import headline

# This environment variable describes the sweep to its jobs, which may be processes: {"jobs": number, "swept": keys,
# "name": see `sweep_name`}.
SWEEP = "DLM_SWEEP"
LONGEST = 50  # characters of the keys in the name of a sweep, which is a tag of W&B


class SweepCallback(Callback):
    """Prints a line as each job starts and ends, and leaves `<sweep dir>/<job>.json` for the summary."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepCallback.folder = claim_folder(config)
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # the loader resolves glob(*)
        overrides = [o for o in parser.parse_overrides(list(config.hydra.overrides.task)) if o.is_sweep_override()]
        sweeper = config.hydra.get("sweeper") or {}
        swept = list(dict.fromkeys([o.get_key_element() for o in overrides] + list(sweeper.get("params") or ())))
        jobs = sweeper.get("n_trials")  # of a sweeper that chooses the values itself
        if jobs is None:
            jobs = math.prod(len(list(o.sweep_string_iterator())) for o in overrides)
        name = sweep_name(swept, config.hydra.overrides.task)
        os.environ[SWEEP] = json.dumps({"jobs": jobs, "swept": swept, "name": name})
        print(f"sweep of {jobs} jobs over {', '.join(swept) or 'nothing'}", flush=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.began = time.perf_counter()
        if is_part_of_sweep(config):
            print(f"\n[{job_position(config)}] {job_name(config)}", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if not is_part_of_sweep(config):
            return
        job_return.cfg = job_return.hydra_cfg = None  # Hydra holds the return values of all jobs until the last ends
        failed = job_return.status is not JobStatus.COMPLETED
        result = {"status": "failed"} if failed else job_return.return_value
        if not failed:  # what a sweeper that looks for the best values sees
            job_return.return_value = objective_of(result.get("record", {}), config.get("objective"))
        error = str(job_return._return_value) if failed else None
        line = {"job": job_name(config), "id": result.get("id"), "status": result["status"], "error": error}
        line |= {"metrics": headline(result.get("record", {}))}
        path = Path(config.hydra.sweep.dir) / f"{config.hydra.job.num}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(line))
        seconds = time.perf_counter() - self.began
        reason = f": {error}" if error else ""
        print(f"[{job_position(config)}] {line['status']} in {seconds:.0f} s{reason}", flush=True)


def objective_of(record: dict[str, Any], name: str | None) -> float | None:
    """The number of a run's record that a sweeper optimises: one of the run's metrics by name, or `accuracy`, at one
    token per step. None for None, and for a record without training. Raises `ValueError` for an unknown name."""
    if name is None or "train" not in record:
        return None
    metrics = record["train"] | headline(record)
    if accuracies := [value for key, value in metrics.items() if key.startswith("accuracy, ")]:
        metrics["accuracy"] = accuracies[0]
    if not isinstance(metrics.get(name), int | float):
        known = sorted(key for key, value in metrics.items() if isinstance(value, int | float))
        raise ValueError(f"objective {name!r} is no metric of a run: choose one of {known}")
    return float(metrics[name])


def sweep_name(swept: Sequence[str], overrides: Sequence[str]) -> str:
    """The name of a sweep for loggers: the keys that are swept, and a digest of the overrides that make its runs what
    they are. The same sweep has it whenever, and with whatever loggers, it is started."""
    of_runs = sorted(o for o in overrides if not is_volatile(o.partition("=")[0].lstrip("+~")))
    return f"{'-'.join(swept)[:LONGEST]}-{digest({'overrides': of_runs}, 6)}"


def claim_folder(config: DictConfig) -> Path:
    """Create the folder of a sweep, with a numbered suffix if another sweep started in the same second. The name is
    added to the overrides from which the configs of the jobs are composed."""
    preferred = Path(config.hydra.sweep.dir)
    names = itertools.chain([preferred.name], (f"{preferred.name}_{number}" for number in itertools.count(2)))
    folder = next(f for f in map(preferred.with_name, names) if create(f))
    if folder != preferred:
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={json.dumps(str(folder))}")
    return folder


def create(folder: Path) -> bool:
    """Create a folder; False if it already exists."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def is_part_of_sweep(config: DictConfig) -> bool:
    return OmegaConf.select(config, "hydra.mode") is not None and config.hydra.mode.name == "MULTIRUN"


def job_position(config: DictConfig) -> str:
    """The position of a job in its sweep: `job 3 of 8`."""
    return f"job {config.hydra.job.num + 1} of {json.loads(os.environ[SWEEP])['jobs']}"


def job_name(config: DictConfig) -> str:
    """The swept options with their values in this job: `attention=bidir block_size=4`."""
    swept = json.loads(os.environ[SWEEP])["swept"]
    return " ".join(o for o in config.hydra.overrides.task if o.partition("=")[0] in swept)


def summary_table(lines: list[dict[str, Any]]) -> Table:
    """One row per job, narrow enough for a terminal of 80 columns."""
    rows = [cells(line["metrics"]) for line in lines]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(title=f"{len(lines)} jobs", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    words = [word for line in lines for word in line["job"].split()]
    table.add_column("job", min_width=max(map(len, words), default=0))  # broken between overrides, never within
    for column in ("run", "status", *names):
        table.add_column(Text(column.replace(" ", "\n")), no_wrap=True)
    for line, row in zip(lines, rows, strict=True):
        texts = (line["job"], line["id"] or "", line["status"], *(row.get(name, "") for name in names))
        table.add_row(*map(Text, texts))  # rich would read brackets in a plain string as markup
    return table


def cells(metrics: dict[str, float]) -> dict[str, str]:
    """The headline metrics of a job by column, with the accuracy of a decoding setting above its tokens per forward."""
    by_column = {}
    for name, value in metrics.items():
        kind, _, setting = name.partition(", ")
        if kind == "accuracy":
            by_column[setting] = f"{value:.1%}\nTPF {metrics[f'TPF, {setting}']:.2f}"
        elif kind != "TPF":
            by_column[name] = f"{value:.3f}"
    return by_column


def summarized(main: Callable[[], Any]) -> Callable[[], None]:
    """Decorate a command so that it prints the summary of its sweep at the end, even after an error."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        finally:
            folder = SweepCallback.folder
            if folder is not None and folder.exists():
                files = sorted(folder.glob("*.json"), key=lambda p: int(p.stem))
                Console(file=sys.stdout).print(summary_table([json.loads(f.read_text()) for f in files]))
                if (best := folder / "optimization_results.yaml").exists():  # of a sweeper that looks for the best
                    values = OmegaConf.to_container(OmegaConf.load(best))
                    print("best: " + ", ".join(f"{name} {value}" for name, value in values.items()))

    return run
