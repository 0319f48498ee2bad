"""Measure what a study wants of one finished run: `python -m analysis.plan.measure RUN_FOLDER SETTINGS.json THREADS`.

The settings are a list of resolved measurements. Each is written as soon as it is made, so whatever ends this early
loses one of them at most. Jobs side by side share the cores: more threads than these would wait for each other, and
what is timed with one thread does not count what other jobs compute.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dlm.console import quiet
from dlm.measurement.base import Subject
from dlm.measurement.store import measure
from dlm.runs.run import Run


def main(folder: str, settings: str, threads: str) -> int:
    quiet()
    torch.set_num_threads(int(threads))
    try:
        subject = Subject(Run.load(folder, Path(folder).parent))
        for wanted in json.loads(Path(settings).read_text(encoding="utf-8")):
            found = measure(subject, wanted)
            print(f"{wanted['_target_']} in {found['seconds']:.1f} s", flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
