"""Stores the results of measurements, together with the fingerprint of the weights and the version of the items."""

from __future__ import annotations

import json
import time
from typing import Any

from omegaconf import OmegaConf

from dlm.config.build import make
from dlm.config.inputs import require_same
from dlm.evaluation.items import added_version, items_version
from dlm.measurement.base import Measurement, Subject
from dlm.model.device import device_name
from dlm.runs.digest import weights_fingerprint
from dlm.runs.run import environment, measurement_file
from dlm.runs.storage import write_atomically


def measure(subject: Subject, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure a run with these resolved settings, or load the stored record if the weights and the items are the same.
    The record holds the `result`, `settings`, `weights` (their fingerprint), `items` (their version), `seconds`, and
    the versions and the machine."""
    run = subject.run
    require_same(run, run.config, "model", "masking")
    path = run.folder / measurement_file(settings)
    key = {
        "weights": weights_fingerprint(subject.folder),
        "items": items_version() + added_version(subject.asked),
    }
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        if key.items() <= record.items():
            return record
    measurement: Measurement = make(OmegaConf.create({"measurement": settings}).measurement)
    begin = time.perf_counter()
    result = measurement(subject)
    record = {"run": run.id, "settings": settings, **key, "result": result}
    record |= {"seconds": time.perf_counter() - begin, **environment(device_name(subject.device))}
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(record))
    return record
