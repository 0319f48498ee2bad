"""Accuracy by masking scheme, at one token per forward and at more."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import accuracy_effect, accuracy_of, by_point, parent_row, sweep_evaluation
from analysis.evidence.effect import Effect
from analysis.evidence.geometry import CEILING_DIGITS, CEILINGS, beyond_ceiling, ceilings, tokens_per_answer
from analysis.evidence.kept import KEPT, with_kept
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.pages.plots import align, frontier
from analysis.tables.results import Results

PLACE = 80
TITLE = "Table 2: masking scheme and parallel decoding"
TOPIC = "masking"
SWEEPS = ("table2_masking",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = with_kept(results, parallel(results.of("evaluations", SWEEP)))
    measures = headings("accuracy", "tpf", "nfe", "threshold")
    table = by_point(rows, measures, ("label", "setting")).rename(columns={"label": "masking"})
    in_paper = paper["table2_masking"]
    columns = [f"TPF {v:g}" for v in in_paper["tokens_per_forward"]]
    theirs = pd.DataFrame([in_paper[name] for name in PRINTED], columns=columns)
    theirs.insert(0, "masking", list(PRINTED.values()))
    panels = (
        frontier(rows, "tpf", "label", "setting", "here", TPF, KEPT, "kept"),
        frontier(of_paper(paper), "tpf", "label", "tpf", "paper", TPF, KEPT, "kept"),
    )
    align(panels)
    return [
        Plot(
            "table2_masking", panels, BESIDE, "Accuracy by tokens per forward and masking scheme, here and the paper's"
        ),
        Table(by_scheme(rows), "Accuracy %, by scheme and setting."),
        Table(
            table,
            f"By scheme and tokens per forward. Thresholds are chosen on validation items; {REACHED}",
            {"TPF": 2, "threshold": 2},
            aside=True,
        ),
        Table(ceilings(parent_row(results, SWEEP), rows["block_size"].astype(float)), CEILINGS, CEILING_DIGITS),
        Table(theirs, "The paper's: accuracy %, average of six tasks.", 2),
    ]


PRINTED = {"uniform": "uniform", "right_to_left": "right to left"}
PRINTED |= {"half_life_0.25": "half-life 0.25", "half_life_0.10": "half-life 0.1", "half_life_0.05": "half-life 0.05"}
TPF = "tokens per forward"
BESIDE = "Here and the paper's, each in percent of its own AR parent's accuracy. Here: mean over seeds."
NEAR = 0.15
REACHED = f"a target that a scheme misses by more than {100 * NEAR:.0f}% is marked as not reached."


def by_scheme(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per scheme, one column per setting, estimates of accuracy as cells."""
    table = by_point(rows, {"accuracy": "accuracy"}, ("label", "setting"))
    settings = list(dict.fromkeys(table["setting"]))
    wide = table.pivot(index="label", columns="setting", values="accuracy") if len(table) else table
    return wide.reindex(list(dict.fromkeys(table["label"])))[settings].rename_axis("masking").reset_index()


def of_paper(paper: dict) -> pd.DataFrame:
    """The paper's numbers as rows of `label`, `tpf` and the fraction `kept` of its parent's accuracy."""
    section, parent = paper["table2_masking"], paper["parents"]["qwen3_4b"]
    return pd.DataFrame(
        {"label": label, "tpf": tpf, "kept": value / parent}
        for name, label in PRINTED.items()
        for tpf, value in zip(section["tokens_per_forward"], section[name], strict=True)
    )


def parallel(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows at one token per step, then at increasing TPF targets, each with its `setting` and whether the target is
    `reached`: with short blocks or answers even the lowest threshold may not come near.

    A target is not reached where any point misses it by more than `NEAR` in the mean over its seeds.
    """
    fast = sweep_evaluation(rows, "tpf")
    mean = fast.groupby(["target", "point"])["tpf"].mean()
    missed = (mean / mean.index.get_level_values("target") - 1).abs() > NEAR
    fast = fast.assign(reached=~fast["target"].isin(missed[missed].index.get_level_values("target")))
    rows = pd.concat([sweep_evaluation(rows, "one_token").assign(target=1.0, reached=True), fast])
    names = [
        "1 token/step" if t == 1 else f"TPF ≈ {t:g}" if reached else f"TPF {t:g}: not reached"
        for t, reached in zip(rows["target"], rows["reached"], strict=True)
    ]
    return rows.assign(setting=names).sort_values("target", kind="stable")


def positional_masking_helps(results: Results, paper: dict) -> list[Effect]:
    """Half-life 0.1 against uniform masking, and uniform against right to left, at the paper's numbers of tokens per
    forward."""
    rows, parent = parallel(results.of("evaluations", SWEEP)), parent_row(results, SWEEP)
    targets = paper["table2_masking"]["tokens_per_forward"]
    pairs = (("half_life_0.1", "uniform"), ("uniform", "right_to_left"))
    return [at_target(rows, parent, paper, *names, target) for names in pairs for target in targets]


def at_target(rows: pd.DataFrame, parent: pd.DataFrame, paper: dict, better: str, worse: str, target: float) -> Effect:
    """One scheme against another at a number of tokens per forward, with the paper's difference there."""
    (first, above), (second, below) = SCHEMES[better], SCHEMES[worse]
    section = paper["table2_masking"]
    column = section["tokens_per_forward"].index(target)
    difference = section[above][column] - section[below][column]
    at = rows[rows["target"] == target]
    sides = [at[at["point"] == name] for name in (better, worse)]
    missing = [f"{SWEEP} {n} at TPF {target:g}" for n, side in zip((better, worse), sides, strict=True) if side.empty]
    facts = {"id": f"{better} at {target:g}", "paper": difference, "paper_parent": paper["parents"]["qwen3_4b"]}
    facts |= {"in_paper": f"{difference:+.2f}", "obstacle": out_of_reach(pd.concat(sides), parent, target)}
    facts |= {"parent": accuracy_of(parent), "sweep": SWEEP}
    return accuracy_effect(*sides, f"{first} − {second}, TPF {target:g}", missing, **facts)


def out_of_reach(rows: pd.DataFrame, parent: pd.DataFrame, target: float) -> str:
    """Why the rows do not show accuracy at a target of tokens per forward; "" if they do."""
    if rows.empty or target == 1:
        return ""
    block = float(rows["block_size"].iloc[0])
    if len(parent) and (above := beyond_ceiling(target, tokens_per_answer(parent), block)):
        return above
    if rows["reached"].all():
        return ""
    return f"decoding comes to {rows['tpf'].min():.2f} to {rows['tpf'].max():.2f} tokens per forward, not to {target:g}"


# Point → its name in the text, and its row in the paper's numbers.
SCHEMES = {
    "half_life_0.1": ("half-life 0.1", "half_life_0.10"),
    "uniform": ("uniform", "uniform"),
    "right_to_left": ("right to left", "right_to_left"),
}
