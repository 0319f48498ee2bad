"""The paper's claims, each held against our runs: agrees, disagrees, undecided, or no runs."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from scipy.stats import binomtest

from analysis.runs import items
from analysis.sweep import Point
from dlm.runs import Run

SIGNIFICANT = 0.05
Found = list[tuple[Point, Run]]


@dataclass(frozen=True)
class Verdict:
    """A claim and what became of it. `paper` and `ours` are formatted effects, `test` says how it was decided."""

    text: str
    rows: str
    paper: str
    ours: str
    test: str
    verdict: str


def of(found: Found, name: str) -> dict[int, Run]:
    """The runs of a point by seed."""
    return {point.seed: run for point, run in found if point.name == name}


def accuracy_verdict(claim: dict, found: Found, paper: dict) -> Verdict:
    """Is `better` more accurate than `worse` at one token per step? Decided by the exact McNemar test over the items
    that the two answer differently (same items, same seeds)."""
    better, worse = of(found, claim["better"]), of(found, claim["worse"])
    rows = f"{claim['better']} − {claim['worse']}"
    printed = f"{paper['average'][claim['better']] - paper['average'][claim['worse']]:+.1f} points"
    seeds = sorted(better.keys() & worse.keys())
    if not seeds:
        return Verdict(claim["text"], rows, printed, "", "", "no runs")
    first, second = (pd.concat([items(runs[s]) for s in seeds]) for runs in (better, worse))
    wins, losses = int((first & ~second).sum()), int((~first & second).sum())
    p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    ours = f"{100 * (first.mean() - second.mean()):+.1f} points"
    test = f"McNemar: {wins} to {losses} of {len(first)} items, p = {p:.2g}, {len(seeds)} seed(s)"
    verdict = "undecided" if p >= SIGNIFICANT else "agrees" if wins > losses else "disagrees"
    return Verdict(claim["text"], rows, printed, ours, test, verdict)


def drift_verdict(claim: dict, drift: pd.DataFrame) -> Verdict:
    """Do the weights of `more` move further (relative Frobenius norm) than those of `less`? Decided where all layers
    say the same."""
    rows = f"{claim['more']} / {claim['less']}, {claim['kind']}"
    shown = "further (plotted, not printed)"
    chosen = drift[drift["kind"] == claim["kind"]] if len(drift) else drift
    by_point = {name: chosen[chosen["point"] == claim[name]] for name in ("more", "less")} if len(chosen) else {}
    if not by_point or any(table.empty for table in by_point.values()):
        return Verdict(claim["text"], rows, shown, "", "", "no runs")
    more, less = (by_point[name].groupby("layer")["relative"].mean() for name in ("more", "less"))
    ahead = int((more > less).sum())
    seeds = min(table["seed"].nunique() for table in by_point.values())
    verdict = "agrees" if ahead == len(more) else "disagrees" if ahead == 0 else "undecided"
    test = f"further in {ahead} of {len(more)} layers, {seeds} seed(s)"
    return Verdict(claim["text"], rows, shown, f"× {(more / less).mean():.2f}", test, verdict)
