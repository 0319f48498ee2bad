"""A sweep of the study: named points, each a run and what is measured of it, from a YAML in `sweeps/`.

    title        what it is
    points       name → {label, overrides of conf/train.yaml}; `times=2` among them doubles the budget
    grid         key → values: its combinations are points, or multiply the `points`. The values of a key are a list, or
                 name → overrides where one value takes several
    shared       overrides of every point                                       seeds    instead of the scale's
    only         the names of the points that there are at this scale; null: all
    evaluations  name → {overrides of conf/measure.yaml, grid, points (default: all)}: measured of finished runs,
                 without training

`${study.…}` is a value of the scale (`conf/scale/`). `key=@sweep:point` is the run of another sweep's point, and
`key=@sweep:point/evaluation` the file that holds one of its evaluations; the point needs them first.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.plan.compose import resolved
from dlm.runs.run import Run, measurement_file, run_id

FINISHED, DIVERGED = "finished", "diverged"
KEYS = {"title", "points", "grid", "shared", "only", "seeds", "evaluations"}


@dataclass(frozen=True)
class Evaluation:
    """One measurement of a finished run. `name` is its section in the sweep, `values` what the section's grid varies,
    `settings` the resolved measurement, and `file` where it lies in the run's folder."""

    name: str
    values: dict[str, Any]
    overrides: tuple[str, ...]
    settings: dict[str, Any]
    file: str


@dataclass(frozen=True)
class Point:
    """One row of an artefact with one seed; `run` is its run's id, a function of its resolved `config`. `values` are
    those of the grid. `needs` are points that have to be there first, with the evaluations that are needed of them."""

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

    def state(self, runs_dir: Path) -> str:
        """`finished`, or why the run cannot be reported. Rows are comparable only where they were evaluated alike, so a
        run that was evaluated with other settings is not finished; `dlm.train` evaluates it again. A run that diverged
        stands for no design choice, and is reported as what it is."""
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
        return FINISHED if evaluation.get("settings") == self.config["evaluation"] else "evaluated with other settings"

    def to_measure(self, runs_dir: Path) -> list[Evaluation]:
        """The evaluations that its run's folder does not hold."""
        return [e for e in self.evaluations if not (runs_dir / self.run / e.file).exists()]


@dataclass(frozen=True)
class Sweep:
    """What a YAML in `sweeps/` holds. `tokens` is the budget of a point whose `times` is 1."""

    name: str
    title: str
    tokens: int
    points: tuple[Point, ...]

    @property
    def labels(self) -> dict[str, str]:
        return {point.name: point.label for point in self.points}


@dataclass(frozen=True)
class Variant:
    """What is overridden, under a name; `values` are those of the grid."""

    name: str
    label: str
    overrides: tuple[str, ...]
    values: dict[str, Any]


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep; `overrides` go to every point. Among them `scale=NAME` chooses the scale, `tokens=N` replaces its
    budget, which `times` multiplies, `seed=0,1,2` its seeds, and `model=NAME` is the parent where a point chooses none.

    Raises `ValueError` where the file is not there or is no sweep, where an override does not fit, or where overrides
    make two points the same run.
    """
    if not path.is_file():
        known = ", ".join(str(p) for p in sorted(path.parent.glob("*.yaml"))) or "none there"
        raise ValueError(f"sweep {str(path)!r} does not exist: choose one of {known}")
    own = {key: value for key, _, value in (o.partition("=") for o in overrides) if key in ("tokens", "seed")}
    parent = [o for o in overrides if o.startswith("model=")]  # of the points that do not choose one
    others = [o for o in overrides if o.partition("=")[0] not in own and o not in parent]
    study = resolved("train", f"sweep {path.stem}", [o for o in others if o.startswith("scale=")])["study"]
    raw = read(path, study)
    tokens = positive("tokens", own["tokens"]) if "tokens" in own else study["tokens"]
    seeds = own["seed"].split(",") if "seed" in own and "seeds" not in raw else raw.get("seeds", study["seeds"])
    evaluations = [
        (section.get("points"), evaluation)
        for name, section in raw.get("evaluations", {}).items()
        for evaluation in make_evaluations(name, section, study["measure"])
    ]
    points, everything = [], list(variants(raw.get("points", {}), raw.get("grid", {})))
    refuse_strangers(path, raw, {variant.name for variant in everything})
    for variant in everything if raw.get("only") is None else (v for v in everything if v.name in raw["only"]):
        mine = tuple(e for wanted, e in evaluations if wanted is None or variant.name in wanted)
        chosen = [*study["shared"], *parent, *raw.get("shared", []), *variant.overrides]
        budget = with_budget(chosen, tokens)
        for seed in seeds:
            merged, needs = with_references([*budget, f"seed={seed}", *others], path, overrides)
            config = resolved("train", f"point {variant.name}", merged)
            points.append(
                Point(variant.name, variant.label, tuple(merged), config, run_id(config), variant.values, mine, needs)
            )
    refuse_twins(points, overrides)
    return Sweep(path.stem, raw["title"], tokens, tuple(points))


def read(path: Path, study: dict[str, Any]) -> dict[str, Any]:
    """The YAML with the scale's values in it."""
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


def variants(points: dict[str, dict], grid: dict[str, Any]) -> Iterator[Variant]:
    """The points, multiplied by the combinations of the grid."""
    begin = [Variant(name, p["label"], tuple(p.get("overrides", ())), {}) for name, p in points.items()]
    axes = [axis(key, values) for key, values in grid.items()]
    for chosen in itertools.product(*([begin] if begin else []), *axes):
        yield Variant(
            ", ".join(v.name for v in chosen),
            ", ".join(v.label for v in chosen),
            tuple(itertools.chain.from_iterable(v.overrides for v in chosen)),
            {key: value for v in chosen for key, value in v.values.items()},
        )


def axis(key: str, values: list | dict[str, list[str]]) -> list[Variant]:
    """The values of a key of a grid; of a dict each name stands for its overrides."""
    if isinstance(values, dict):
        return [Variant(f"{key}={name}", f"{key} {name}", tuple(o), {key: name}) for name, o in values.items()]
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    word = key.rpartition(".")[2].replace("_", " ")
    return [
        Variant(f"{key}={text}", f"{word} {text}", (f"{key}={text}",), {key: value})
        for text, value in zip(texts, values, strict=True)
    ]


def make_evaluations(name: str, section: dict[str, Any], shared: list[str]) -> Iterator[Evaluation]:
    """The evaluations of one section, with the settings that `python -m dlm.measure` makes of their overrides."""
    begin = {name: {"label": name, "overrides": section["overrides"]}}
    for variant in variants(begin, section.get("grid", {})):
        merged = (*shared, *variant.overrides)
        settings = resolved("measure", f"evaluation {name}", list(merged))["measurement"]
        yield Evaluation(name, variant.values, merged, settings, measurement_file(settings))


def with_budget(overrides: list[str], tokens: int) -> list[str]:
    """`times=N`, once or never, as a budget: the last one counts."""
    times = [float(o.partition("=")[2]) for o in overrides if o.startswith("times=")]
    rest = [o for o in overrides if not o.startswith("times=")]
    return [*rest, f"tokens={round(tokens * (times[-1] if times else 1))}"]


def with_references(overrides: list[str], path: Path, given: Sequence[str]) -> tuple[list[str], tuple[Point, ...]]:
    """The overrides with every `@sweep:point` replaced by what it names, and the points that it names."""
    merged, needs = [], []
    seed = next(o.partition("=")[2] for o in reversed(overrides) if o.startswith("seed="))
    for override in overrides:
        key, _, value = override.partition("=")
        if value.startswith("@"):
            target, name = find(value[1:], path, given, int(seed))
            needs.append(target)
            value = f"{target.run}/{target.evaluations[0].file}" if name else target.run
        merged.append(f"{key}={value}")
    return merged, tuple(needs)


def find(reference: str, path: Path, given: Sequence[str], seed: int) -> tuple[Point, str]:
    """The point `sweep:point`, with the same seed where it has one, and the name of the evaluation after a slash: the
    point is given with that evaluation alone."""
    sweep, _, rest = reference.partition(":")
    name, _, evaluation = rest.partition("/")
    points = [p for p in points_of(path.with_name(f"{sweep}.yaml"), tuple(given)) if p.name == name]
    if not points:
        raise ValueError(f"sweep {path.stem} refers to @{reference}, but {sweep} has no point {name!r}")
    point = next((p for p in points if p.seed == seed), points[0])
    chosen = tuple(e for e in point.evaluations if e.name == evaluation)
    if evaluation and not chosen:
        raise ValueError(f"sweep {path.stem} refers to @{reference}, but {name} has no evaluation {evaluation!r}")
    return replace(point, evaluations=chosen), evaluation


@cache
def points_of(path: Path, overrides: tuple[str, ...]) -> tuple[Point, ...]:
    """The points of a sweep that others refer to, loaded once for all of these."""
    return load_sweep(path, overrides).points


def positive(name: str, value: str) -> int:
    """A whole number of at least 1, written 4096, 1_500_000 or 1e6."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if number < 1 or number != int(number):
        raise ValueError(f"{name}={value} must be a whole number of at least 1, such as {name}=1_500_000")
    return int(number)


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


def refuse_strangers(path: Path, raw: dict[str, Any], names: set[str]) -> None:
    """An evaluation of a point that is not there would never be made, nor would the point."""
    wanted = {f"evaluation {section}": content.get("points") for section, content in raw.get("evaluations", {}).items()}
    for what, points in (wanted | {"only": raw.get("only")}).items():
        if unknown := set(points or ()) - names:
            raise ValueError(
                f"sweep {str(path)!r}, {what}: {', '.join(sorted(unknown))} is none of its points "
                f"{', '.join(sorted(names))}"
            )
