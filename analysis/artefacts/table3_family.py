"""The embedded family: AR models of several sizes, and the dLM at several thresholds."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import SOMETIMES, by_point
from analysis.evidence.kept import KEPT, with_kept
from analysis.pages.exhibits import Exhibit, Plot, Table, headings, paper_table
from analysis.pages.plots import align, frontier
from analysis.tables.results import DLM, PARENT, Results

PLACE = 100
TITLE = "Table 3 and Figure 9: accuracy, tokens per forward and tokens per second"
TOPIC = "decoding"
SWEEPS = ("table3_family",)
SWEEP = SWEEPS[0]
DIGITS = {"TPF": 2, "threshold": 2, "tokens/s": 0, "bits/byte": 3, "parameters": 0}


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = family(results)
    measures = headings("accuracy", "tpf", "nfe", "tokens_per_second", *SOMETIMES, "cloze", "bits_per_byte")
    table = by_point(rows, measures, ("type", "name", "threshold")).rename(columns={"name": "model"})
    drawn = {"here": with_speed_up(results, rows)} if len(rows) else {}
    panels = [
        frontier(group, "faster", "name", "tpf", title, FASTER, KEPT, "kept")
        for title, group in (drawn | {"paper": of_paper(paper)}).items()
    ]
    align(panels)
    return [
        Plot(
            "figure9_frontier",
            tuple(panels),
            SAID,
            "Accuracy kept against speed-up over the parent, here and the paper's",
        ),
        Table(
            table, "Tokens/s at batch 1 on the machine of the run. The parents differ in more than their size.", DIGITS
        ),
        paper_table(paper["table3_family"], "12 tasks, accuracy %; tokens/s on one H100 at batch 1", aside=True),
    ]


FASTER = "tokens/s over the AR parent's, batch 1"
SAID = (
    "Figure 9: a dLM's accuracy and speed, both relative to its own AR parent, so that ours and the paper's share one "
    "scale; points are decoding settings, here means over seeds. The paper's are from the numbers of its Table 3."
)
# The paper's dLM → the AR model of its Table 3 that it is converted from.
PARENT_OF = {"Efficient-DLM 1.5B": "Qwen2.5 1.5B", "Efficient-DLM 4B": "Qwen3 4B", "Efficient-DLM 8B": "Qwen3 8B"}


def with_speed_up(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The dLMs' rows with `kept` and with `faster`: tokens per second in units of those of their parent."""
    rate = rows[rows["type"] == "AR"].set_index("parent")["tokens_per_second"].astype(float)
    dlms = with_kept(results, rows[rows["type"] == "dLM"])
    return dlms.assign(faster=dlms["tokens_per_second"].astype(float) / dlms["parent"].map(rate), tpf=dlms["threshold"])


def of_paper(paper: dict) -> pd.DataFrame:
    """`name`, `tpf`, `kept` and `faster` of the paper's dLMs whose parent is in its Table 3."""
    table = pd.DataFrame(paper["table3_family"]["rows"], columns=paper["table3_family"]["columns"]).set_index("model")
    dlms = table[table.index.isin(PARENT_OF)]
    parents = table.loc[[PARENT_OF[name] for name in dlms.index]]
    kept, faster = (dlms[c].to_numpy() / parents[c].to_numpy() for c in ("avg", "tps"))
    return pd.DataFrame({"name": dlms.index, "tpf": dlms["tpf"].to_numpy(), "kept": kept, "faster": faster})


def family(results: Results, batch: int = 1) -> pd.DataFrame:
    """Rows of every dLM at every threshold and of each parent once, with the likelihoods of the final evaluation."""
    rows = results.of("evaluations", SWEEP)
    likelihood = rows[rows["evaluation"] == ""].drop_duplicates(["run", "model"])
    likelihood = likelihood[["run", "model", *(c for c in rows.columns if c.startswith(("cloze", "bits_per_byte")))]]
    rows = rows[rows["evaluation"].isin(["ar", "dlm"]) & (rows["batch_size"] == batch)]
    rows = rows.drop(columns=likelihood.columns[2:]).merge(likelihood, on=["run", "model"], how="left")
    parents = rows[rows["model"] == PARENT].drop_duplicates("parent").assign(type="AR")
    parents = parents.assign(name=[f"AR {size(n)}" for n in parents["parameters"]])
    dlms = rows[rows["model"] == DLM].assign(type="dLM")
    dlms = dlms.assign(name=[f"dLM {size(n)}" for n in dlms["parameters"]])
    return pd.concat([parents, dlms]).sort_values(["type", "parameters", "nfe"], ascending=[True, True, False])


def size(parameters: float) -> str:
    """A number of parameters as text, in millions or billions."""
    return f"{parameters / 1e6:.3g}M" if parameters < 1e9 else f"{parameters / 1e9:.3g}B"
