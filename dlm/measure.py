"""Measure a finished run once more, without training: `python -m dlm.measure run=ID measurement=decode [option=value]`.

What is found lies in `runs/<id>/measurements/<kind>-<digest of the settings>.json`, beside the fingerprint of the
weights that it was found of. The same weights are not measured twice with the same settings.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from dlm.arguments import call
from dlm.build import make
from dlm.console import command
from dlm.inputs import require_same
from dlm.kinds import require_kinds
from dlm.measurement.base import Measurement, Subject
from dlm.runs import Run, environment, measurement_file
from dlm.settings import Measure
from dlm.storage import write_atomically


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


@hydra.main(version_base="1.3", config_path="../conf", config_name="measure")
@command
def main(cfg: DictConfig) -> None:
    require_kinds(cfg, Measure)
    run = Run.load(str(cfg.run), cfg.runs_dir)
    settings = OmegaConf.to_container(cfg.measurement, resolve=True)
    found = measure(Subject(run), settings)
    print(json.dumps(found["result"], indent=1))
    print(run.folder / measurement_file(settings))


if __name__ == "__main__":
    call(main)
