"""Schedules a number of the objective by training progress: `schedule={masking.half_life: {0: 1.0, 1: 0.1}}`.

The key is the path of the number in the config. Between the points of progress its value is linear.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Schedule:
    """A piecewise linear function. `points` maps progress in [0, 1] to values; anything else is a `ValueError`."""

    def __init__(self, points: dict[float, float]):
        points = {float(progress): float(value) for progress, value in points.items()}
        if not points or not all(0 <= progress <= 1 for progress in points):
            raise ValueError(f"schedule {points} must map points of progress in [0, 1] to values")
        self.progress, self.value = zip(*sorted(points.items()), strict=True)

    def __call__(self, progress: float) -> float:
        """The value at `progress`; before the first point and after the last it is constant."""
        return float(np.interp(progress, self.progress, self.value))


class Schedules:
    """Sets scheduled attributes of `objects`, the roots of the paths (`masking`, `loss`, `auxiliary`).

    Raises `ValueError` for a path that does not lead to a number.
    """

    def __init__(self, schedules: dict[str, dict[float, float]], objects: dict[str, Any]):
        self.targets = [(*resolve(path, objects), Schedule(points)) for path, points in schedules.items()]

    def __call__(self, progress: float) -> None:
        """Set every scheduled number to its value at `progress`."""
        for owner, name, schedule in self.targets:
            setattr(owner, name, schedule(progress))


def resolve(path: str, objects: dict[str, Any]) -> tuple[Any, str]:
    """Split a path into the object that owns its last name and that name."""
    root, *names = path.split(".")
    owner: Any = objects.get(root)
    for name in names[:-1]:
        owner = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
    value = getattr(owner, names[-1], None) if names else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"schedule {path!r} names no number that can be scheduled: begin with one of {', '.join(objects)}, such as "
            "masking.t_max or auxiliary.ar.weight"
        )
    return owner, names[-1]
