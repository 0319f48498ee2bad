"""Accuracy by attention pattern, clean context, token shift and LoRA rank."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.compare import (
    SOMETIMES,
    accuracy_effect,
    by_point,
    compare,
    final_evaluation,
    parent_accuracy,
    parent_row,
    scalar_effect,
)
from analysis.evidence.effect import Effect
from analysis.evidence.equal_flops import AT_EQUAL_FLOPS, BOUNDS, PROSE, training_curves, with_validation
from analysis.evidence.kept import KEPT, kept
from analysis.pages.dots import Dot, dots
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.pages.plots import lines
from analysis.tables.domains import DOMAINS
from analysis.tables.results import Results

PLACE = 10
TITLE = "Table 1, and the LoRA rows of Table 8: attention, clean context, token shift"
TOPIC = "attention"
SWEEPS = ("table1_attention",)
SWEEP = SWEEPS[0]
MEASURES = headings("accuracy", "tpf", "nfe", *SOMETIMES, "cloze", "bits_per_byte")
DIGITS = {"TPF": 2, "bits/byte": 3, "paper %": 2, "kept %": 0, "paper kept %": 0}
COSTS = dict.fromkeys((*BOUNDS.values(), *AT_EQUAL_FLOPS.values()), 3)
COSTS |= {"tokens": 0, "examples": 0, "answer tokens": 0, "TFLOP": 2}


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = results.of("evaluations", SWEEP)
    curves, prose = training_curves(results, SWEEP), training_curves(results, SWEEP, PROSE)
    panels = (
        lines(curves, "examples", "value", "label", "answers, equal examples", "training examples", "bits/byte"),
        lines(curves, "flops", "value", "label", "answers, equal FLOPs", "training FLOPs", "bits/byte"),
        lines(prose, "flops", "value", "label", "prose, equal FLOPs", "training FLOPs", "bits/byte"),
    )
    caption = (
        "The bound (NELBO, always with uniform masking) on validation tokens that are the same for every row. A step "
        "with clean context reads up to 2 L rows for L tokens, so equal tokens are not equal work. Lines: mean over "
        "seeds; bands: their range."
    )
    table = accuracies(results, paper["table1_attention"])
    costs, said = training_cost(results)
    return [
        Plot(
            "table1_kept", beside_paper(table), BESIDE, "Accuracy kept of the parent's, here and in the paper, by row"
        ),
        Plot("table1_attention", panels, caption, "the bound on validation answers and prose over training"),
        Table(table, f"At one token per step. {LEGEND}{domains_of(table)}{lora_note(results)}", DIGITS),
        Table(parallel(rows), "Several tokens per forward, thresholds chosen on validation items.", DIGITS, aside=True),
        Table(costs, f"Training cost. {said}", COSTS),
    ]


LEGEND = (
    "TPF: tokens per forward; NFE: forwards per answer, every forward counted. Kept: percent of the AR parent's "
    "accuracy. Accuracy: exact match on the generated tasks; cloze: four-way multiple choice by likelihood, chance "
    "25%; bits/byte of held-out prose: the bound (NELBO) of a dLM, exact for the parent. The paper's code is the mean "
    "of its HumanEval and MBPP columns, its maths of GSM8K and Minerva Math. Our own tasks: "
)
RATES = (
    " LoRA has three learning rates: rows h and i show the middle one, the claim takes that of the lowest validation "
    "bound."
)
ORDER = ["row", "conversion", "KV cache", "accuracy %", "kept %", "paper %", "paper kept %", "TPF", "NFE"]
ORDER += ["code %", "paper code %", "maths %", "paper maths %", "symbols %"]
ORDER += ["right steps %", "sequential %", "parallel %", "cloze %", "bits/byte"]
BESIDE = "Accuracy at one token per step, here and in the paper, each in percent of its own AR parent's."


def domains_of(table: pd.DataFrame) -> str:
    """The families of the domains that the table has, as text."""
    asked = {
        domain: [n.replace("_", " ") for n in names] for domain, names in DOMAINS.items() if f"{domain} %" in table
    }
    return "; ".join(f"{domain}: {', '.join(names)}" for domain, names in asked.items()) + "."


def lora_note(results: Results) -> str:
    """At which learning rate LoRA is shown, if there are several."""
    return RATES * bool(results.of("runs", SWEEP)["point"].astype(str).str.match("[hi]_").any())


def beside_paper(table: pd.DataFrame) -> tuple[Figure, ...]:
    """Percent of the parent's accuracy kept by every row but the parent's, ours and the paper's; none without ours."""
    parent = next(iter(table.loc[table["row"] == "a", "accuracy %"]), None)
    rows = [
        Dot(
            f"{row['row']}  {row['conversion']}",
            row["conversion"],
            kept(row["accuracy %"], parent),
            row["paper kept %"],
        )
        for row in table.to_dict("records")
        if row["row"] != "a" and row["accuracy %"] is not None
    ]
    return (dots(rows, "", KEPT, 100.0),) if rows and parent else ()


def accuracies(results: Results, paper: dict) -> pd.DataFrame:
    """The paper's table next to ours; a row without runs has only the paper's numbers."""
    converted = by_point(final_evaluation(results.of("evaluations", SWEEP)), MEASURES).set_index("point")
    parent = by_point(parent_row(results, SWEEP).assign(point="a", label="AR parent"), MEASURES).set_index("point")
    by_row = pd.concat([frame for frame in (parent, converted) if len(frame)]) if len(converted) else converted
    labels = {"a": "AR parent"} | dict(results.points.query("sweep == @SWEEP")[["point", "label"]].values.tolist())
    table = []
    for point, in_paper in paper_rows(paper).items():
        ours: dict[str, Any] = {
            heading: by_row[heading].get(point) for heading in MEASURES.values() if heading in by_row
        }
        reference = by_row["accuracy %"].get("a")
        value = ours["accuracy %"]
        kept = 100 * value.mean / reference.mean if value and reference and reference.mean else None
        label = labels.get(point, "")
        table.append(
            {"row": point, "conversion": label, "KV cache": in_paper.pop("cache")} | ours | {"kept %": kept} | in_paper
        )
    not_asked = {heading for heading in MEASURES.values() if heading not in by_row}
    return pd.DataFrame(table)[[h for h in ORDER if h.removeprefix("paper ") not in not_asked]]


def paper_rows(paper: dict) -> dict[str, dict[str, Any]]:
    """Row → the paper's numbers, its tasks averaged by our domains."""
    rows = {r[0]: dict(zip(paper["columns"], r, strict=True)) for r in paper["rows"]}
    parent = rows["a"]["avg"]
    return {
        name: {
            "cache": row["kv_cache"],
            "paper %": row["avg"],
            "paper kept %": 100 * row["avg"] / parent,
            "paper code %": sum(row[t] for t in ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus")) / 4,
            "paper maths %": (row["gsm8k"] + row["minerva_math"]) / 2,
        }
        for name, row in rows.items()
    }


def parallel(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per point and decoding setting."""
    measures = headings("accuracy", "tpf", "nfe", "threshold")
    measures |= {"tokens_per_second": "tokens/s"}
    return by_point(final_evaluation(rows, None), measures, ("point", "setting"))


def training_cost(results: Results) -> tuple[pd.DataFrame, str]:
    """Training cost of every point with its validation at the end and at equal FLOPs, and a sentence on the latter."""
    runs = results.of("runs", SWEEP)
    runs = runs.assign(minutes=runs["train_seconds"].astype(float) / 60)
    measures = {"examples": "examples", "tokens": "tokens", "answer_tokens": "answer tokens"}
    measures |= {"train_flops": "TFLOP", "minutes": "minutes"} | BOUNDS
    table = by_point(runs, measures)
    return with_validation(
        table.drop(columns="label"),
        "point",
        lambda metric: training_curves(results, SWEEP, metric),
        ("examples", "answer tokens"),
    )


def in_the_paper(paper: dict, better: str, worse: str) -> dict[str, Any]:
    """The difference of two rows' averages in the paper, as fields of an effect."""
    rows = {r[0]: r[-1] for r in paper["table1_attention"]["rows"]}
    difference = rows[better] - rows[worse]
    return {"in_paper": f"{difference:+.2f}", "paper": difference, "paper_parent": rows["a"]}


def pairs(results: Results, paper: dict, *points: tuple[str, str, str]) -> list[Effect]:
    """An effect for every (better, worse, description), with the paper's difference; its id is `better-worse`."""
    return [
        compare(results, SWEEP, b, w, f"{b} − {w}: {what}", id=f"{b}-{w}", **in_the_paper(paper, b, w))
        for b, w, what in points
    ]


def block_beats_bidir(results: Results, paper: dict) -> list[Effect]:
    return pairs(
        results,
        paper,
        ("d", "b", "block-wise against bidirectional, both with the token shift, without clean context"),
        ("d", "c", "the paper's pair: d has the token shift, c has not"),
        ("g", "c", "with clean context, both without the token shift"),
    )


def clean_context_helps(results: Results, paper: dict) -> list[Effect]:
    points = ("f", "d", "clean context against noisy context"), ("f", "e", "… against twice the tokens")
    return pairs(results, paper, *points)


def no_token_shift_helps(results: Results, paper: dict) -> list[Effect]:
    by_accuracy = pairs(results, paper, ("g", "f", "no shift, block-wise"), ("c", "b", "no shift, bidirectional"))
    return [*by_accuracy, bits_saved(results, "g", "f")]


def bits_saved(results: Results, better: str, worse: str) -> Effect:
    """By how many bits per byte of prose one point's bound is lower than another's."""
    rows = final_evaluation(results.of("evaluations", SWEEP))
    rows = rows[rows["point"].isin([better, worse])]
    bits = rows.pivot_table(index="seed", columns="point", values="bits_per_byte").reindex(columns=[worse, better])
    what = f"{worse} − {better}: bits per byte saved"
    missing = f"{SWEEP} {better} and {worse}"
    facts = {"id": "bits", "sweep": SWEEP, "missing": missing, "in_paper": "not measured"}
    return scalar_effect(what, bits[worse] - bits[better], rows["run"], "bits/byte", 3, **facts)


def lora_is_behind_full(results: Results, paper: dict) -> list[Effect]:
    """LoRA at its own learning rate: that of the lowest validation bound among the points of a rank, which are named
    `h` and `i`, or `h` and `i` with a suffix (`h_lr_3e-3`)."""
    rows = final_evaluation(results.of("evaluations", SWEEP))
    full = rows[rows["point"] == "g"] if len(rows) else rows
    effects = []
    for row, rank in (("h", 16), ("i", 64)):
        lora, rate = at_best_rate(rows[rows["point"].astype(str).str.match(f"{row}(_|$)")] if len(rows) else rows)
        missing = [f"{SWEEP} {name}" for name, side in (("g", full), (row, lora)) if side.empty]
        facts = {"id": f"g-{row}", "sweep": SWEEP, "parent": parent_accuracy(results, SWEEP)}
        what = f"g − {row}: full against rank {rank}{rate}"
        effects.append(accuracy_effect(full, lora, what, missing, **facts, **in_the_paper(paper, "g", row)))
    return effects


def at_best_rate(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows at the learning rate whose mean validation bound is lowest, and that rate as text; "" if there is only
    one. The test items have no part in the choice."""
    bound = rows["val_nelbo"].astype(float).groupby(rows["lr"]).mean() if len(rows) else pd.Series(dtype=float)
    if bound.count() < 2:
        return rows, ""
    best = bound.idxmin()
    return rows[rows["lr"] == best], f", at its best learning rate of {best:g}"
