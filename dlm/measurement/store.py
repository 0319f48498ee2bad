"""What was measured of a run, kept beside the fingerprint of the weights and the version of the items that it was found
of."""

from __future__ import annotations

import json
import time
from typing import Any

from omegaconf import OmegaConf

from dlm.config.build import make
from dlm.config.inputs import require_same
from dlm.evaluation.items import items_version
from dlm.measurement.base import Measurement, Subject
from dlm.runs.digest import weights_fingerprint
from dlm.runs.run import environment, measurement_file
from dlm.runs.storage import write_atomically


def measure(subject: Subject, settings: dict[str, Any]) -> dict[str, Any]:
    """What a measurement with these resolved settings finds of a run, or has found of the same weights with the same
    items: `result` and, beside it, `settings`, `weights` (their fingerprint), `items` (their version), `seconds` and
    the versions and the machine."""
    run = subject.run
    require_same(run, run.config, "model", "masking")
    path = run.folder / measurement_file(settings)
    key = {"weights": weights_fingerprint(subject.folder), "items": items_version()}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if key.items() <= found.items():
            return found
    measurement: Measurement = make(OmegaConf.create({"measurement": settings}).measurement)
    begin = time.perf_counter()
    result = measurement(subject)
    found = {"run": run.id, "settings": settings, **key, "result": result}
    found |= {"seconds": time.perf_counter() - begin, **environment()}
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(found))
    return found
