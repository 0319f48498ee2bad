"""Measure a finished run, without training: `python -m dlm.measure run=ID measurement=decode [option=value]`.

The result is stored in `runs/<id>/measurements/<kind>-<digest of the settings>.json`, together with the fingerprint of
the weights. The same weights are not measured twice with the same settings.
"""

from __future__ import annotations

import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlm.config.command_line import hydra_command
from dlm.config.kinds import require_options
from dlm.config.loggers import logging_again
from dlm.config.settings import Measure
from dlm.evaluation.results import send_measurements
from dlm.measurement.base import Subject
from dlm.measurement.store import measure
from dlm.runs.run import Run, measurement_file

LONG = 40  # values of a list that the screen shows


def shortened(value: Any) -> Any:
    """A result for the screen: long lists are counted, and the file holds them whole."""
    if isinstance(value, dict):
        return {key: shortened(part) for key, part in value.items()}
    if isinstance(value, list):
        return f"[{len(value)} values]" if len(value) > LONG else [shortened(part) for part in value]
    return value


@hydra_command("measure")
def main(cfg: DictConfig) -> None:
    require_options(cfg, "measure", Measure)
    run = Run.load(str(cfg.run), cfg.runs_dir)
    settings = OmegaConf.to_container(cfg.measurement, resolve=True)
    record = measure(Subject(run, cfg.device), settings)
    with logging_again(run, cfg.get("logger")) as loggers:
        send_measurements(loggers, run, {measurement_file(settings): record["result"]})
    print(json.dumps(shortened(record["result"]), indent=1))
    print(run.folder / measurement_file(settings))


if __name__ == "__main__":
    main()
