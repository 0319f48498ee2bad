"""Makes a study's measurements of one finished run: `python -m analysis.plan.measure RUN_FOLDER SETTINGS.json THREADS`.

The settings are a list of resolved measurement configs. Each result is written as soon as it is measured, so an
interruption loses at most one. THREADS is this job's share of the cores: with more, concurrent jobs would wait for each
other, and timings would include the work of other jobs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dlm.config.loggers import logging_again
from dlm.console import quiet
from dlm.evaluation.results import send_measurements
from dlm.measurement.base import Subject
from dlm.measurement.store import measure
from dlm.runs.run import Run, measurement_file
from dlm.trainer.resources import device_of


def main(folder: str, settings: str, threads: str) -> int:
    quiet()
    torch.set_num_threads(int(threads))
    try:
        run = Run.load(folder, Path(folder).parent)
        subject = Subject(run, str(device_of(run.config.trainer.accelerator)))  # where the run itself was evaluated
        results = {}
        for measurement in json.loads(Path(settings).read_text(encoding="utf-8")):
            record = measure(subject, measurement)
            results[measurement_file(measurement)] = record["result"]
            print(f"{measurement['_target_']} in {record['seconds']:.1f} s", flush=True)
        with logging_again(run) as loggers:
            send_measurements(loggers, run, results)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
