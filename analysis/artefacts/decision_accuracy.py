"""Does an ordering at this budget and size foretell the ordering at another?"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from analysis.artefacts.table1_attention import at_best_rate
from analysis.artefacts.table2_masking import PRINTED, SCHEMES
from analysis.artefacts.table5_ladder import RUNGS
from analysis.evidence.compare import final_evaluation, parent_row, sweep_evaluation
from analysis.evidence.decisions import OPPOSITE, PAPER_TIE, SAME, TIE, Contest, between_runs, with_paper
from analysis.evidence.equal_cost import OPTIONS, arms
from analysis.evidence.geometry import with_several_blocks
from analysis.pages import tips
from analysis.pages.colours import VERDICTS
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.pages.plots import panel
from analysis.tables.results import Results

PLACE = 280
TITLE = "Beyond the paper: decision accuracy"
TOPIC = "training"
TABLE1, BLOCKS, MASKING, LADDER = "table1_attention", "figure3_block_size", "table2_masking", "table5_ladder"
BUDGETS = ("more_tokens", "shift_by_budget", "shift_by_position", LADDER, "figure8_tokens")
SIZES = ("block_by_size", "shift_by_setting")
SWEEPS = (TABLE1, BLOCKS, "table7_lr", *BUDGETS, *SIZES, MASKING)
LARGER = 4.0  # times the base budget
NEAR = 0.05  # the share by which a budget may differ from what it should be
SAID = (
    "Decision accuracy. A pair is ordered where the intervals of its difference exclude 0 here and there (in the "
    f"paper, which prints none: from {PAPER_TIE:g} point on); else it is a tie within noise. Pairs share points: the "
    "interval counts as many pairs as there are points less one. By means: every pair by the sign of its mean; a coin "
    "has 50%."
)


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    all_contests = contests(results, paper)
    panels = tuple(drawn(contest) for contest in all_contests if contest.pairs)
    return [
        Plot("decision_accuracy", panels, DRAWN, "Differences of pairs at the base budget and elsewhere"),
        Table(summary(all_contests) if panels else pd.DataFrame(), SAID, 0),
        Table(every_pair(all_contests), "Every pair, in points of accuracy.", aside=True),
    ]


DRAWN = (
    "Every pair of points: its difference in points of accuracy here and there. Green: the same order; red: the "
    "opposite one; hollow: a tie on either side."
)


def contests(results: Results, paper: dict) -> list[Contest]:
    """At four times the budget, at every other size of the parent, and with the paper."""
    rows = final_evaluation(results.of("evaluations", SWEEPS)).drop_duplicates("run")
    base = rows[(rows["sweep"] == TABLE1) & (rows["point"] != "e")]
    if base.empty:
        nothing = [Contest(name, 0) for name in (f"{LARGER:g} times the budget", "another parent size")]
        return [*nothing, against_paper(results, paper)]
    parent, times = base["parent"].mode()[0], times_budget(rows, base)
    same_size, at_base = rows["parent"] == parent, (times - 1).abs() <= NEAR
    here = by_arm(rows[same_size & at_base])
    larger = by_arm(rows[same_size & ((times / LARGER - 1).abs() <= NEAR)])
    sizes = [
        between_runs(f"a parent of {size / 1e6:.2g}M parameters", here, by_arm(of_size))
        for size, of_size in rows[~same_size & at_base].groupby("parameters")
    ]
    sizes = [contest for contest in sizes if contest.pairs] or [Contest("another parent size", 0)]
    return [between_runs(f"{LARGER:g} times the budget", here, larger), *sizes, against_paper(results, paper)]


def times_budget(rows: pd.DataFrame, base: pd.DataFrame) -> pd.Series:
    """The budget of every row in units of that of the rows `base`: in examples where all record them, else tokens."""
    unit = "examples" if rows["examples"].notna().all() else "tokens"
    return rows[unit].astype(float) / float(base[unit].astype(float).median())


def by_arm(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Arm, in words, → its rows, one for each seed."""
    named = rows.assign(arm=[in_words(arm) for arm in arms(rows, OPTIONS)])
    return {name: group.drop_duplicates("seed") for name, group in named.groupby("arm", sort=False)}


def in_words(arm: tuple[str, ...]) -> str:
    """The options of an arm that are not the base recipe's: `bidir, shift, block 8`."""
    options = dict(zip(OPTIONS, arm, strict=True))
    shift = "shift" if options["token_shift"] == "True" else "no shift"
    words = [options["attention_name"], shift, f"block {float(options['block_size']):g}"]
    usual = {"masking_name": "uniform", "loss_name": "nelbo", "trainable_name": "full"}
    words += [options[name] for name, value in usual.items() if options[name] != value]
    return ", ".join([*words, f"lr {float(options['lr']):g}"])


def against_paper(results: Results, paper: dict) -> Contest:
    """Rows of Table 1, training blocks of Figure 3, schemes of Table 2 and rungs of Table 5."""
    return with_paper("the paper", list(paper_groups(results, paper)))


def paper_groups(results: Results, paper: dict) -> Iterator[tuple[dict[str, pd.DataFrame], dict[str, float]]]:
    """(point → rows here, point → accuracy in the paper) of every group of points that the paper has, too."""
    table1 = final_evaluation(results.of("evaluations", TABLE1))
    names = [row[0] for row in paper["table1_attention"]["rows"]]
    of_row = {n: table1[table1["point"].astype(str).str.match(f"{n}(_|$)")] for n in names} if len(table1) else {}
    rows = {f"row {n}": at_best_rate(found)[0] for n, found in of_row.items()}
    yield rows, {f"row {row[0]}": row[-1] for row in paper["table1_attention"]["rows"]}

    blocks = final_evaluation(results.of("evaluations", BLOCKS))
    blocks = with_several_blocks(blocks, "block_size", parent_row(results, BLOCKS))
    grid, sizes = paper["figure3_block_size"]["qwen2_5_1_5b_50b_tokens"], paper["figure3_block_size"]["eval_block_size"]
    theirs = {f"block {size}": row[sizes.index(size)] for size, row in grid.items()}
    yield {f"block {size:g}": group for size, group in blocks.groupby("block_size")}, theirs

    masking = sweep_evaluation(results.of("evaluations", MASKING), "one_token")
    theirs = {scheme: paper["table2_masking"][PAPER_NAMES.get(scheme, scheme)][0] for scheme in MASKINGS}
    yield dict(list(masking.groupby("point"))), theirs

    ladder = final_evaluation(results.of("evaluations", LADDER))
    yield (
        dict(list(ladder.groupby("point"))),
        dict(zip(RUNGS, (r[-1] for r in paper["table5_ladder"]["rows"]), strict=True)),
    )


PAPER_NAMES = {point: printed for point, (_, printed) in SCHEMES.items()}
MASKINGS = [next((p for p, name in PAPER_NAMES.items() if name == printed), printed) for printed in PRINTED]


def summary(all_contests: list[Contest]) -> pd.DataFrame:
    """One row per contest."""
    return pd.DataFrame(
        {
            "against": contest.name,
            "points": contest.points,
            "pairs": len(contest.pairs) or "no runs",
            **{outcome: contest.count(outcome) for outcome in (SAME, OPPOSITE, TIE)},
            "decision accuracy %": percent(contest),
            "by means %": None if contest.by_means is None else 100 * contest.by_means,
        }
        for contest in all_contests
    )


def percent(contest: Contest) -> str:
    """Decision accuracy with its interval, in percent; – without an ordered pair."""
    if contest.accuracy is None:
        return "–"
    value, low, high = (f"{100 * x:.0f}" for x in contest.accuracy)
    return f"{value} ({low} to {high})"


def every_pair(all_contests: list[Contest]) -> pd.DataFrame:
    """One row per pair of every contest."""
    return pd.DataFrame(
        {
            "against": contest.name,
            "pair": f"({pair.first}) − ({pair.second})",
            "here": f"{pair.here.value:+.1f} ({pair.here.low:+.1f} to {pair.here.high:+.1f})".replace("-", "−"),
            "there": pair.there.value,
            "outcome": pair.outcome,
        }
        for contest in all_contests
        for pair in contest.pairs
    )


def drawn(contest: Contest) -> Figure:
    """A contest's pairs: their difference there over that here."""
    figure, axes = panel(contest.name, "points here", "points there")
    axes.axhline(0, linewidth=0.8, color="#7a828b")
    axes.axvline(0, linewidth=0.8, color="#7a828b")
    colours = {SAME: VERDICTS["agrees"], OPPOSITE: VERDICTS["disagrees"], TIE: VERDICTS["undecided"]}
    for pair in contest.pairs:
        x, y, colour = pair.here.value, pair.there.value, colours[pair.outcome]
        face = "none" if pair.outcome == TIE else colour
        axes.plot([x], [y], "o", markersize=5, color=colour, markerfacecolor=face)
        lines = [f"({pair.first}) − ({pair.second}): {pair.outcome}", f"here {x:+.1f}, there {y:+.1f} points"]
        tips.over(axes, x, y, "\n".join([*lines, *tips.of_runs(pair.runs)]))
    return figure
