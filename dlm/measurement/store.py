"""What was measured of a run, kept beside the fingerprint of the weights that it was found of."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from omegaconf import OmegaConf

from dlm.config.build import make
from dlm.config.inputs import require_same
from dlm.measurement.base import Measurement, Subject
from dlm.runs.run import Run, environment, measurement_file
from dlm.runs.storage import write_atomically


def measure(subject: Subject, settings: dict[str, Any]) -> dict[str, Any]:
    """What a measurement with these resolved settings finds of a run, or has found of the same weights: `result` and,
    beside it, `settings`, `weights` (their fingerprint), `seconds` and the versions and the machine."""
    run = subject.run
    require_same(run, run.config, "model", "masking")
    path, weights = run.folder / measurement_file(settings), fingerprint(run)
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["weights"] == weights:
            return found
    measurement: Measurement = make(OmegaConf.create({"measurement": settings}).measurement)
    begin = time.perf_counter()
    result = measurement(subject)
    found = {"run": run.id, "settings": settings, "weights": weights, "result": result}
    found |= {"seconds": time.perf_counter() - begin, **environment()}
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(found))
    return found


def fingerprint(run: Run) -> str:
    """A hash of a run's converted weights, as they lie on the disk."""
    digest = hashlib.sha256()
    for path in sorted(run.model_folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
