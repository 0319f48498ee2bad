"""A sweep of the study: named points, each a set of overrides of `conf/train.yaml`, and the runs that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dlm
from dlm.runs import Run, run_id

CONF = Path(dlm.__path__[0]).parent / "conf"
FINISHED = "finished"


@dataclass(frozen=True)
class Point:
    """One row of an artefact with one seed; `run` is its run's id, a function of its resolved `config`."""

    name: str
    label: str
    overrides: tuple[str, ...]
    config: dict[str, Any]
    run: str

    @property
    def seed(self) -> int:
        return self.config["seed"]

    def state(self, runs_dir: Path) -> str:
        """`finished`, or why the run cannot be reported. Rows are comparable only where they were evaluated alike, so a
        run that was evaluated with other settings is not finished; `dlm.train` evaluates it again."""
        run = Run(runs_dir / self.run)
        if run.status == "new":
            return "not trained"
        if run.status != "finished":
            return run.status
        evaluation = run.record.get("evaluation")
        if not evaluation:
            return "not evaluated"
        return FINISHED if evaluation["settings"] == self.config["evaluation"] else "evaluated with other settings"


@dataclass(frozen=True)
class Sweep:
    """What a YAML in `sweeps/` holds. `tokens` is the budget of a point whose `times` is 1."""

    title: str
    tokens: int
    points: tuple[Point, ...]

    @property
    def labels(self) -> dict[str, str]:
        return {point.name: point.label for point in self.points}


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep; `overrides` go to every point. Among them `tokens=N` replaces the budget, which `times` multiplies,
    and `seed=0,1,2` the seeds.

    Raises `ValueError` where the file is not there or lacks a key, where an override does not fit, or where overrides
    make two points the same run.
    """
    if not path.is_file():
        known = ", ".join(str(p) for p in sorted(path.parent.glob("*.yaml"))) or "none there"
        raise ValueError(f"sweep {str(path)!r} does not exist: choose one of {known}")
    raw = OmegaConf.to_container(OmegaConf.load(path))
    missing = {"title", "tokens", "seeds", "shared", "points"} - set(raw)
    if missing:
        raise ValueError(f"sweep {str(path)!r} lacks {', '.join(sorted(missing))}: add it")
    own = {key: value for key, _, value in (o.partition("=") for o in overrides) if key in ("tokens", "seed")}
    tokens = positive("tokens", own["tokens"]) if "tokens" in own else raw["tokens"]
    seeds = own["seed"].split(",") if "seed" in own else raw["seeds"]
    others = [o for o in overrides if o.partition("=")[0] not in own]
    points = [
        make_point(name, point["label"], [*raw["shared"], *point["overrides"], *budget, f"seed={seed}", *others])
        for name, point in raw["points"].items()
        for budget in [[f"tokens={tokens * point.get('times', 1)}"]]
        for seed in seeds
    ]
    refuse_twins(points, overrides)
    return Sweep(raw["title"], tokens, tuple(points))


def positive(name: str, value: str) -> int:
    """A whole number of at least 1, written 4096, 1_500_000 or 1e6."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if number < 1 or number != int(number):
        raise ValueError(f"{name}={value} must be a whole number of at least 1, such as {name}=1_500_000")
    return int(number)


def make_point(name: str, label: str, overrides: list[str]) -> Point:
    """A point with the config that `python -m dlm.train` makes of its overrides."""
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = OmegaConf.to_container(compose("train", overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"point {name} ({' '.join(overrides)}) cannot be composed: {reason}") from error
    return Point(name, label, tuple(overrides), config, run_id(config))


def refuse_twins(points: list[Point], overrides: Sequence[str]) -> None:
    """Two rows that are one run compare nothing."""
    first: dict[str, Point] = {}
    for point in points:
        twin = first.setdefault(point.run, point)
        if twin is not point:
            raise ValueError(
                f"points {twin.name} and {point.name} (seeds {twin.seed} and {point.seed}) are the same run "
                f"{point.run} with {' '.join(overrides) or 'these overrides'}: leave out what makes them equal"
            )
