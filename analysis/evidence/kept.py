"""Accuracy in percent of the AR parent's: the one scale on which ours and the paper's numbers are drawn."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import final_evaluation
from analysis.evidence.stats import Estimate
from analysis.tables.results import PARENT, Results

KEPT = "% of the AR parent's accuracy"


def with_kept(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `kept`: their accuracy as a fraction of that of their run's parent; NaN without one."""
    parents = final_evaluation(results.evaluations, model=PARENT)
    of_run = parents.drop_duplicates("run").set_index("run")["accuracy"].astype(float)
    reference = rows["run"].map(of_run).astype(float) if len(rows) else pd.Series(dtype=float)
    return rows.assign(kept=rows["accuracy"].astype(float) / reference.where(reference > 0) if len(rows) else [])


def kept(value: Estimate | None, parent: Estimate | None) -> Estimate | None:
    """An accuracy in percent, in percent of the parent's; the parent's own uncertainty is not added."""
    if value is None or parent is None or not parent.mean:
        return None
    ends = (100 * x / parent.mean for x in (value.mean, value.low, value.high))
    return Estimate(*ends, value.seeds, value.n, value.over, value.runs)
