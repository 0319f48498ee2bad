"""Is a gain of Table 1 one of the choice, or of what the choice cost? Accuracy at equal examples and at equal FLOPs."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import final_evaluation
from analysis.evidence.equal_cost import COSTS, EQUAL, AtEqualCost, at_equal_cost
from analysis.evidence.equal_flops import NOT_MEASURED
from analysis.pages.claims import effect_text
from analysis.pages.exhibits import Exhibit, Table
from analysis.tables.results import Results

PLACE = 200
TITLE = "Beyond the paper: Table 1 at equal examples, FLOPs and tokens"
TOPIC = "attention"
SWEEPS = ("table1_attention", "shift_by_budget", "figure8_tokens")
TABLE1 = SWEEPS[0]
PAIRS = {
    "d − b": "block-wise against bidirectional, noisy context",
    "g − c": "block-wise with clean context against bidirectional",
    "f − d": "clean against noisy context",
    "g − f": "without against with the token shift, block-wise",
    "c − b": "without against with the token shift, bidirectional",
}
SAID = (
    f"Points of accuracy, with 95% intervals and seeds. Costs within {100 * EQUAL:.0f}% count as equal. Where no run "
    "cost the same as the dearer row, the cheaper one's accuracy is interpolated item by item between its budgets (≈)."
)


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = final_evaluation(results.of("evaluations", SWEEPS))
    table = []
    for pair, what in PAIRS.items():
        better, worse = (rows[(rows["sweep"] == TABLE1) & (rows["point"] == name)] for name in pair.split(" − "))
        if len(better) and len(worse):
            outcomes = {f"equal {cost}": text(at_equal_cost(better, worse, rows, cost, pair)) for cost in COSTS}
            table.append({"pair": pair, "what": what} | outcomes)
    frame = pd.DataFrame(table)
    absent = [c for c in frame.columns if (frame[c] == NOT_MEASURED).all()] if table else []
    lacking = f" Not measured in these runs: {', '.join(absent)}." if absent else ""
    return [Table(frame.drop(columns=absent), SAID + lacking)]


def text(outcome: AtEqualCost | None) -> str:
    """A comparison at equal cost, or why there is none."""
    if outcome is None:
        return NOT_MEASURED
    if not outcome.effect.seeds:
        return "no runs at a common cost"
    seeds = f"{outcome.effect.seeds} seed{'s' if outcome.effect.seeds > 1 else ''}"
    return f"{'≈ ' * outcome.interpolated}{effect_text(outcome.effect).replace(' points', '')}; {seeds}"
