"""A sweep of the study: named points, each a set of overrides of `conf/train.yaml`, and the runs that they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import dlm
from dlm.runs import Run, run_id

CONF = Path(dlm.__path__[0]).parent / "conf"


@dataclass(frozen=True)
class Point:
    """One row of an artefact with one seed; `run` is its run's id, a function of the overrides."""

    name: str
    label: str
    seed: int
    overrides: tuple[str, ...]
    run: str

    def find(self, runs_dir: Path) -> Run | None:
        """The finished and evaluated run of this point, if there is one."""
        run = Run(runs_dir / self.run)
        done = run.status == "finished" and run.record.get("evaluation")
        return run if done else None


@dataclass(frozen=True)
class Sweep:
    """What a YAML in `sweeps/` holds."""

    title: str
    tokens: int
    shared: tuple[str, ...]
    points: tuple[Point, ...]

    @property
    def labels(self) -> dict[str, str]:
        return {point.name: point.label for point in self.points}


def load_sweep(path: Path, extra: list[str] | None = None, tokens: int | None = None) -> Sweep:
    """Read a sweep; `extra` overrides go to every point, `tokens` replaces the budget that `times` multiplies.

    Raises `ValueError` where the file is not there or lacks a key.
    """
    if not path.is_file():
        known = ", ".join(str(p) for p in sorted(path.parent.glob("*.yaml"))) or "none there"
        raise ValueError(f"sweep {str(path)!r} does not exist: choose one of {known}")
    raw = OmegaConf.to_container(OmegaConf.load(path))
    missing = {"title", "tokens", "seeds", "shared", "points"} - set(raw)
    if missing:
        raise ValueError(f"sweep {str(path)!r} lacks {', '.join(sorted(missing))}")
    budget, points = tokens or raw["tokens"], []
    for name, point in raw["points"].items():
        for seed in raw["seeds"]:
            overrides = [
                *raw["shared"],
                *point["overrides"],
                f"tokens={budget * point.get('times', 1)}",
                f"seed={seed}",
            ]
            overrides = (*overrides, *(extra or []))
            points.append(Point(name, point["label"], seed, overrides, id_of(overrides)))
    return Sweep(raw["title"], budget, tuple(raw["shared"]), tuple(points))


def id_of(overrides: tuple[str, ...]) -> str:
    """The id of the run that `python -m dlm.train` makes of these overrides."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return run_id(OmegaConf.to_container(compose("train", list(overrides)), resolve=True))
