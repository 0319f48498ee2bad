"""Compares the accuracy of two arms at equal training cost, by their runs at several budgets.

An arm is one conversion whatever its budget. Where it has no run that cost the same as the other's, its accuracy there
is interpolated item by item, over the logarithm of the cost, between the budgets around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.evidence.compare import accuracy_effect
from analysis.evidence.contrasts import at_cost
from analysis.evidence.effect import Effect

# What may be equal → the column of the runs that records it.
COSTS = {"examples": "examples", "FLOPs": "train_flops", "tokens": "tokens"}
EQUAL = 0.01  # the share by which costs that count as equal may differ
# Columns of a run that tell arms apart, within sweeps that vary no other option.
OPTIONS = ("attention_name", "masking_name", "loss_name", "auxiliary_name", "trainable_name", "block_size")
OPTIONS += ("token_shift", "lr")
ARM = (*OPTIONS, "parent")


@dataclass(frozen=True)
class AtEqualCost:
    """A comparison at equal cost: the `effect`, and whether one side was `interpolated` between its budgets."""

    effect: Effect
    interpolated: bool = False


def arms(rows: pd.DataFrame, columns: Sequence[str] = ARM) -> list[tuple[str, ...]]:
    """For every row, what tells its arm from others."""
    return list(zip(*([str(v) for v in rows[column].tolist()] for column in columns), strict=True))


def of_arm(rows: pd.DataFrame, point: pd.DataFrame) -> pd.DataFrame:
    """The rows of the arm that a point's rows are of, one for each run."""
    return rows[[arm == arms(point)[0] for arm in arms(rows)]].drop_duplicates("run")


def at_equal_cost(
    better: pd.DataFrame, worse: pd.DataFrame, rows: pd.DataFrame, cost: str, what: str, **facts: Any
) -> AtEqualCost | None:
    """The points of accuracy by which the point `better` is above the point `worse` at equal `cost`, a key of `COSTS`;
    `rows` are of all runs that may be of their arms. None if the cost was not recorded.

    The cost is that of the dearer point where the runs of the cheaper one's arm reach it, else that of the cheaper one.
    Without either the effect has no value.
    """
    column = COSTS[cost]
    sides = [better.dropna(subset=[column]), worse.dropna(subset=[column])]
    if any(side.empty for side in sides):
        return None
    arms = [of_arm(rows.dropna(subset=[column]), side) for side in sides]
    for level in sorted((float(side[column].astype(float).mean()) for side in sides), reverse=True):
        at_levels = [at_level(arm, column, level) for arm in arms]
        effect = accuracy_effect(*at_levels, what, **facts)
        if effect.seeds:
            return AtEqualCost(effect, any(side["interpolated"].any() for side in at_levels))
    return AtEqualCost(Effect(what, **facts))


def at_level(arm: pd.DataFrame, column: str, level: float) -> pd.DataFrame:
    """One row for each seed of an arm at a level of cost, and whether it is `interpolated`: that of the run that cost
    as much, else between the budgets around it. Seeds whose runs do not reach it are left out."""
    near = arm[(arm[column].astype(float) / level - 1).abs() <= EQUAL].drop_duplicates("seed")
    others = arm[~arm["seed"].isin(near["seed"])]
    between = at_cost(others.assign(at=np.log2(others[column].astype(float))), "at", (), math.log2(level))
    sides = (near.assign(interpolated=False), between.assign(interpolated=True))
    return pd.concat([side for side in sides if len(side)] or sides[:1])
