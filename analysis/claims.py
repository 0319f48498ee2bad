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
    """A claim and what became of it. `paper` and `ours` are formatted effects, `test` says how it was decided, `runs`
    on what."""

    text: str
    rows: str
    paper: str
    ours: str = ""
    test: str = ""
    verdict: str = "no runs"
    runs: tuple[str, ...] = ()


def of(found: Found, name: str) -> dict[int, Run]:
    """The runs of a point by seed."""
    return {point.seed: run for point, run in found if point.name == name}


def accuracy_verdict(claim: dict, found: Found, paper: dict) -> Verdict:
    """Is `better` more accurate than `worse` at one token per step?

    Decided by the exact sign test over items: of the items that the two answer differently, for how many is `better`
    right more often over the seeds? With one seed this is McNemar's test. An item counts once however many seeds
    answered it, because its answers are not independent.
    """
    better, worse = of(found, claim["better"]), of(found, claim["worse"])
    rows = f"{claim['better']} − {claim['worse']}"
    printed = f"{paper['average'][claim['better']] - paper['average'][claim['worse']]:+.1f} points"
    seeds = sorted(better.keys() & worse.keys())
    if not seeds:
        return Verdict(claim["text"], rows, printed)
    gains = pd.concat([gain(better[s], worse[s]) for s in seeds], axis=1)
    per_item = gains.sum(axis=1)
    wins, losses = int((per_item > 0).sum()), int((per_item < 0).sum())
    p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    per_seed = 100 * gains.mean()
    ours = f"{per_seed.mean():+.1f} points"
    if len(seeds) > 1:
        ours += f" ({per_seed.min():+.1f} to {per_seed.max():+.1f})"
    test = f"{'sign test' if len(seeds) > 1 else 'McNemar'}: {wins} to {losses} of {len(gains)} items, p = {p:.2g}, "
    test += count(seeds)
    verdict = "undecided" if p >= SIGNIFICANT else "agrees" if wins > losses else "disagrees"
    runs = tuple(run.id for seed in seeds for run in (better[seed], worse[seed]))
    return Verdict(claim["text"], rows, printed, ours, test, verdict, runs)


def gain(better: Run, worse: Run) -> pd.Series:
    """For every item 1 where only `better` is right, -1 where only `worse` is, else 0."""
    first, second = items(better), items(worse)
    if list(first["family"]) != list(second["family"]):
        raise ValueError(
            f"runs {better.id} and {worse.id} answered different items ({len(first)} and {len(second)}): evaluate both "
            "again with python -m dlm.evaluate run=ID"
        )
    return first["correct"].astype(int) - second["correct"].astype(int)


def drift_verdict(claim: dict, drift: pd.DataFrame) -> Verdict:
    """Do the weights of `more` move further (relative Frobenius norm) than those of `less`? Decided where all layers
    say the same."""
    rows = f"{claim['more']} / {claim['less']}, {claim['kind']}"
    nothing = Verdict(claim["text"], rows, "further")
    if drift.empty:
        return nothing
    tables = [drift[(drift["point"] == claim[side]) & (drift["kind"] == claim["kind"])] for side in ("more", "less")]
    seeds = sorted(set(tables[0]["seed"]) & set(tables[1]["seed"]))
    if not seeds:
        return nothing
    tables = [table[table["seed"].isin(seeds)] for table in tables]
    more, less = (table.groupby("layer")["relative"].mean() for table in tables)
    ahead, behind = int((more > less).sum()), int((more < less).sum())
    verdict = "agrees" if ahead == len(more) else "disagrees" if behind == len(more) else "undecided"
    test = f"further in {ahead} of {len(more)} layers, {count(seeds)}"
    runs = tuple(dict.fromkeys(run for table in tables for run in table["run"]))
    return Verdict(claim["text"], rows, nothing.paper, f"× {(more / less).mean():.2f}", test, verdict, runs)


def count(seeds: list[int]) -> str:
    return "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
