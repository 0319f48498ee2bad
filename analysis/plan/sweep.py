"""A sweep of the study: named points, each a run and its evaluations, read from a YAML in `sweeps/`.

    title        what the sweep compares
    points       name → {label, overrides of conf/train.yaml}; the override `times=2` doubles the budget
    grid         key → values. Each combination is a point, or multiplies every entry of `points`. Values are a list,
                 name → overrides if one value needs several, or `glob(*)`, the options of a config group
    shared       overrides of every point
    base         what every point has before `shared`, by default `${study.shared}`
    budget       {unit, amount} of a point whose `times` is 1, by default `${study.budget}`
    seeds        the seeds of this sweep, by default `${study.seeds}`
    only         the names of the points to include at this scale; null: all
    evaluations  name → {overrides of conf/measure.yaml, grid, points (default: all)}: measurements of finished runs,
                 without training

`${study.…}` refers to a value of the scale (`conf/scale/`). `key=@sweep:point` refers to the run of another sweep's
point, and `key=@sweep:point/evaluation` to the file of one of its evaluations; these are made before the point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.plan.compose import resolve_config
from analysis.plan.variants import Variant, variants
from dlm.runs.identity import run_id
from dlm.runs.run import Run, measurement_file

FINISHED, DIVERGED = "finished", "diverged"
KEYS = {"title", "points", "grid", "base", "shared", "budget", "only", "seeds", "evaluations"}


@dataclass(frozen=True)
class Evaluation:
    """One measurement of a finished run. `name` is its section in the sweep, `values` the section's grid values,
    `settings` the resolved measurement config, and `file` its path relative to the run's folder."""

    name: str
    values: dict[str, Any]
    overrides: tuple[str, ...]
    settings: dict[str, Any]
    file: str


@dataclass(frozen=True)
class Point:
    """One row of an artefact with one seed. `run` is the id of its run, a function of its resolved `config`; `values`
    are its grid values. `needs` are the points that must be finished first, each with its required evaluations."""

    name: str
    label: str
    overrides: tuple[str, ...]
    config: dict[str, Any]
    run: str
    values: dict[str, Any]
    evaluations: tuple[Evaluation, ...] = ()
    needs: tuple[Point, ...] = ()

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def budget(self) -> tuple[str, float]:
        """The unit and the amount of what it trains on."""
        budget = self.config["budget"]
        return budget["unit"], budget["amount"] or self.config["tokens"]

    @property
    def evaluated_with(self) -> dict[str, Any]:
        """The settings that its evaluation records: those of the config and the families that its data asks."""
        asked = get_class(self.config["data"]["_target_"]).asked
        return self.config["evaluation"] | ({"families": list(asked)} if asked else {})

    def state(self, runs_dir: Path) -> str:
        """`finished`, or why the run cannot be reported.

        Rows are comparable only if evaluated with the same settings, so a run evaluated with others does not count as
        finished, and `dlm.train` evaluates it again. A diverged run says nothing about a design choice and is reported
        as `diverged`.
        """
        run = Run(runs_dir / self.run)
        if not run.record_path.exists():
            return "not trained"
        try:
            record = run.record
        except ValueError:
            return "damaged"
        if record.get("status") != "finished":
            return "not trained" if record.get("status") == "new" else str(record.get("status"))
        if record.get("diverged"):
            return DIVERGED
        evaluation = record.get("evaluation")
        if not isinstance(evaluation, dict) or not evaluation:
            return "not evaluated"
        return FINISHED if evaluation.get("settings") == self.evaluated_with else "evaluated with other settings"

    def to_measure(self, runs_dir: Path) -> list[Evaluation]:
        """The evaluations whose files are missing from the run's folder."""
        return [e for e in self.evaluations if not (runs_dir / self.run / e.file).exists()]


@dataclass(frozen=True)
class Sweep:
    """A loaded sweep."""

    name: str
    title: str
    points: tuple[Point, ...]

    @property
    def labels(self) -> dict[str, str]:
        return {point.name: point.label for point in self.points}


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Load a sweep, applying `overrides` to every point.

    `scale=NAME` chooses the scale; `tokens=N` replaces its budget (which `times` multiplies) and `seed=0,1,2` its
    seeds; `model=NAME` is the parent of points that choose none.

    Raises `ValueError` if the file is missing or not a sweep, if an override does not apply, or if the overrides make
    two points the same run.
    """
    if not path.is_file():
        known = ", ".join(str(p) for p in sorted(path.parent.glob("*.yaml"))) or "none there"
        raise ValueError(f"sweep {str(path)!r} does not exist: choose one of {known}")
    by_key = {key: value for key, _, value in (o.partition("=") for o in overrides) if key in ("tokens", "seed")}
    parent = [o for o in overrides if o.startswith("model=")]
    others = [o for o in overrides if o.partition("=")[0] not in by_key and o not in parent]
    study = resolve_config("train", f"sweep {path.stem}", [o for o in others if o.startswith("scale=")])["study"]
    if "seed" in by_key:
        study |= dict.fromkeys(("seeds", "few_seeds"), by_key["seed"].split(","))
    raw = read(path, study)
    budget = raw.get("budget", study["budget"])
    if "tokens" in by_key:
        budget = {"unit": "tokens", "amount": positive("tokens", by_key["tokens"])}
    evaluations = [
        (section.get("points"), evaluation)
        for name, section in raw.get("evaluations", {}).items()
        for evaluation in make_evaluations(name, section, study["measure"])
    ]
    points = []
    for variant in included(path, raw):
        evals = tuple(e for names, e in evaluations if names is None or variant.name in names)
        merged = [*raw.get("base", study["shared"]), *parent, *raw.get("shared", []), *variant.overrides]
        unseeded = with_budget(last_of_each_key(merged), **budget)
        for seed in raw.get("seeds", study["seeds"]):
            final, needs = with_references(last_of_each_key([*unseeded, f"seed={seed}", *others]), path, overrides)
            config = resolve_config("train", f"point {variant.name}", final)
            points.append(
                Point(variant.name, variant.label, tuple(final), config, run_id(config), variant.values, evals, needs)
            )
    refuse_equal_runs(points, overrides)
    return Sweep(path.stem, raw["title"], tuple(points))


def read(path: Path, study: dict[str, Any]) -> dict[str, Any]:
    """The sweep's YAML with the scale's values (`study`) interpolated. Raises `ValueError` if it is malformed."""
    try:
        raw = OmegaConf.to_container(OmegaConf.merge({"study": study}, OmegaConf.load(path)), resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"sweep {str(path)!r} does not fit the scale: {' '.join(str(error).split())}") from error
    del raw["study"]
    if "title" not in raw or not {"points", "grid"} & set(raw):
        raise ValueError(f"sweep {str(path)!r} lacks a title, or points or a grid: add it")
    if unknown := set(raw) - KEYS:
        raise ValueError(f"sweep {str(path)!r} has {', '.join(sorted(unknown))}: choose of {', '.join(sorted(KEYS))}")
    return raw


def included(path: Path, raw: dict[str, Any]) -> list[Variant]:
    """The points of a sweep's YAML at this scale, without seeds. Raises `ValueError` if it names one that it lacks."""
    candidates = list(variants(raw.get("points", {}), raw.get("grid", {})))
    refuse_unknown_points(path, raw, {variant.name for variant in candidates})
    return candidates if raw.get("only") is None else [v for v in candidates if v.name in raw["only"]]


def make_evaluations(name: str, section: dict[str, Any], shared: list[str]) -> Iterator[Evaluation]:
    """The evaluations of one section, resolved as `python -m dlm.measure` resolves their overrides."""
    base = {name: {"label": name, "overrides": section["overrides"]}}
    for variant in variants(base, section.get("grid", {})):
        merged = (*shared, *variant.overrides)
        settings = resolve_config("measure", f"evaluation {name}", list(merged))["measurement"]
        yield Evaluation(name, variant.values, merged, settings, measurement_file(settings))


def last_of_each_key(overrides: list[str]) -> list[str]:
    """The overrides without those that a later one replaces. Hydra refuses two choices of one group."""
    return list({override.partition("=")[0]: override for override in overrides}.values())


def with_budget(overrides: list[str], unit: str, amount: float) -> list[str]:
    """The overrides with every `times=N` replaced by one budget; the last `times` counts, default 1."""
    times = [float(o.partition("=")[2]) for o in overrides if o.startswith("times=")]
    rest = [o for o in overrides if not o.startswith("times=")]
    total = round(amount * (times[-1] if times else 1))
    return [*rest, *([f"tokens={total}"] if unit == "tokens" else [f"budget.unit={unit}", f"budget.amount={total}"])]


def with_references(overrides: list[str], path: Path, shared: Sequence[str]) -> tuple[list[str], tuple[Point, ...]]:
    """The overrides with every `@sweep:point` resolved to a run or file, and the points referred to.

    `shared` are the overrides that every sweep is loaded with.
    """
    merged, needs = [], []
    seed = next(o.partition("=")[2] for o in reversed(overrides) if o.startswith("seed="))
    for override in overrides:
        key, _, value = override.partition("=")
        if value.startswith("@"):
            target, name = find_point(value[1:], path, shared, int(seed))
            needs.append(target)
            value = f"{target.run}/{target.evaluations[0].file}" if name else target.run
        merged.append(f"{key}={value}")
    return merged, tuple(needs)


def find_point(reference: str, path: Path, shared: Sequence[str], seed: int) -> tuple[Point, str]:
    """The point of the reference `sweep:point[/evaluation]`, and the evaluation's name ("" if none).

    Prefers the same seed, else takes the first. The point is returned with that evaluation alone, or without any.
    """
    sweep, _, rest = reference.partition(":")
    name, _, evaluation = rest.partition("/")
    points = [p for p in points_of(path.with_name(f"{sweep}.yaml"), tuple(shared)) if p.name == name]
    if not points:
        raise ValueError(f"sweep {path.stem} refers to @{reference}, but {sweep} has no point {name!r}")
    point = next((p for p in points if p.seed == seed), points[0])
    evaluations = tuple(e for e in point.evaluations if e.name == evaluation)
    if evaluation and not evaluations:
        raise ValueError(f"sweep {path.stem} refers to @{reference}, but {name} has no evaluation {evaluation!r}")
    return replace(point, evaluations=evaluations), evaluation


@cache
def points_of(path: Path, overrides: tuple[str, ...]) -> tuple[Point, ...]:
    """The points of a sweep that others refer to, cached across references."""
    return load_sweep(path, overrides).points


def positive(name: str, value: str) -> int:
    """Parse a whole number of at least 1, written 4096, 1_500_000 or 1e6. Raises `ValueError` for anything else."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if number < 1 or number != int(number):
        raise ValueError(f"{name}={value} must be a whole number of at least 1, such as {name}=1_500_000")
    return int(number)


def refuse_equal_runs(points: list[Point], overrides: Sequence[str]) -> None:
    """Raise `ValueError` if two points are the same run, since comparing them is meaningless."""
    first: dict[str, Point] = {}
    for point in points:
        twin = first.setdefault(point.run, point)
        if twin is not point:
            raise ValueError(
                f"points {twin.name} and {point.name} (seeds {twin.seed} and {point.seed}) are the same run "
                f"{point.run} with {' '.join(overrides) or 'these overrides'}: leave out what makes them equal"
            )


def refuse_unknown_points(path: Path, raw: dict[str, Any], names: set[str]) -> None:
    """Raise `ValueError` if `only` or an evaluation names a point outside `names`; it would silently be skipped."""
    wanted = {f"evaluation {section}": content.get("points") for section, content in raw.get("evaluations", {}).items()}
    for source, points in (wanted | {"only": raw.get("only")}).items():
        if unknown := set(points or ()) - names:
            raise ValueError(
                f"sweep {str(path)!r}, {source}: {', '.join(sorted(unknown))} is none of its points "
                f"{', '.join(sorted(names))}"
            )
