"""What the templates print: a section per artefact with its exhibits, and the limits of the study in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from markupsafe import Markup

from analysis.evidence.compare import final_evaluation
from analysis.evidence.effect import CANNOT_DECIDE, NO_RUNS
from analysis.pages import render
from analysis.pages.claims import Claim
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.pages.provenance import command, notes, setting_text, training_facts
from analysis.pages.tables_in_page import table_context
from analysis.tables.results import FINISHED, PARENT, Results


def section_context(
    name: str, module: ModuleType, results: Results, paper: dict[str, Any], claims: list[Claim], figures: Path
) -> dict[str, Any]:
    """The template variables of one artefact's section; writes its figures to `figures`. Without a finished run it has
    no exhibits."""
    has_runs = len(results.of("runs", module.SWEEPS)) > 0
    exhibits = module.exhibits(results, paper) if has_runs else []
    made_by = partial(command, results, module.SWEEPS)
    shown = [exhibit_context(e, name, i, made_by, figures) for i, e in enumerate(exhibits) if not is_empty(e)]
    return {
        "name": name,
        "title": module.TITLE,
        "topic": module.TOPIC,
        "beyond": module.TITLE.startswith("Beyond"),
        "about": " ".join((module.__doc__ or "").split()),
        "paper": paper["settings"].get(name),
        "claims": [c for c in claims if c.artefact == name],
        "trained": has_runs,
        "exhibits": shown,
        "unmeasured": unmeasured([e for e in exhibits if is_empty(e)]),
        "ran": training_facts(results, module.SWEEPS),
        "setting": setting_text(results, module.SWEEPS),
        "sweeps": module.SWEEPS,
        "ran_sweeps": [sweep for sweep in module.SWEEPS if len(results.of("runs", sweep))],
        "missing": missing(results, module.SWEEPS),
    }


def is_empty(exhibit: Exhibit) -> bool:
    """Whether a table has no rows, or a plot nothing in any panel."""
    if isinstance(exhibit, Table):
        return exhibit.frame.empty
    drawn = (axes for figure in exhibit.panels for axes in figure.axes)
    return not any(axes.lines or axes.images or axes.collections or axes.patches for axes in drawn)


def unmeasured(empty: Sequence[Exhibit]) -> str:
    """The names of an artefact's empty exhibits, as text; "" for none."""
    plots = [e.alt for e in empty if isinstance(e, Plot)]
    return "; ".join(plots) or ("a table" if empty else "")


def exhibit_context(
    exhibit: Exhibit, section: str, number: int, made_by: render.Command, figures: Path
) -> dict[str, Any]:
    """The template variables of a table, or of a plot: inline panels and file names; writes a plot's files. `made_by`
    gives the command that makes runs."""
    if isinstance(exhibit, Table):
        return {"table": exhibit, "caption": exhibit.caption, "page": table_context(exhibit, f"{section}-{number}")}
    drawings = render.save_plot(exhibit, figures, made_by)
    panels = [Markup(panel) for panel in drawings]  # noqa: S704 matplotlib escapes the texts in them
    files = [f"figures/{exhibit.name}-{i}" for i in range(1, len(panels) + 1)]
    return {"panels": panels, "files": files, "alt": exhibit.alt, "caption": exhibit.caption}


def missing(results: Results, sweeps: Sequence[str]) -> list[str]:
    """The points without a finished run and why, one line for all seeds in the same state."""
    rows = results.missing(sweeps)
    lines = []
    for (sweep, point, state), group in rows.groupby(["sweep", "point", "state"], sort=False):
        seeds = ", ".join(f"{s}" for s in sorted(group["seed"]))
        lines.append(f"{sweep} {point}, seed{'s' if len(group) > 1 else ''} {seeds}: {state}")
    return lines


def limits(results: Results, claims: Sequence[Claim]) -> list[str]:
    """What the numbers cannot carry, in sentences, from the results."""
    said, runs = [], results.runs
    if len(runs):
        sizes, budgets = runs["parameters"].astype(float), runs["tokens"].astype(float)
        said.append(
            f"Parents of {between(sizes)} parameters and conversions of up to {budgets.max() / 1e6:.2g}M tokens stand "
            "in  for 1.5B to 8B parameters and 25 to 500 billion tokens: compare directions, not levels."
        )
    parents = final_evaluation(results.evaluations, model=PARENT)
    if len(parents) and parents["nfe"].notna().any():
        said.append(
            f"An answer takes the AR parent {parents['nfe'].astype(float).mean():.1f} forwards on average, so several "
            "tokens per forward, and blocks longer than that, soon hold a whole answer."
        )
    effects = [effect for claim in claims for effect in claim.effects if effect.verdict != NO_RUNS]
    if powerless := sum(effect.verdict == CANNOT_DECIDE for effect in effects):
        said.append(f"{powerless} of {len(effects)} comparisons cannot be decided with this set-up; each says why.")
    if (unfinished := int((results.points["state"] != FINISHED).sum())) and len(runs):
        said.append(f"{unfinished} of {len(results.points)} points of the study have no finished run.")
    return [*said, *notes(results)]


def between(values) -> str:
    """The range of a column as text: `0.31M to 4.2M`."""
    ends = dict.fromkeys(f"{v / 1e6:.2g}M" for v in (values.min(), values.max()))
    return " to ".join(ends)


def evidence(claim: Claim, sections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every comparison of a claim: the rows of its section's printed tables that it compares, and its sweep."""
    section = next(s for s in sections if s["name"] == claim.artefact)
    rows = [row for e in section["exhibits"] if "page" in e and e["page"]["printed"] for row in e["page"]["rows"]]
    sources = []
    for effect in claim.effects:
        of_runs: dict[frozenset[str], dict[str, Any]] = {}
        for row in rows:
            if row["runs"] and set(row["runs"]) <= set(effect.runs):
                of_runs.setdefault(frozenset(row["runs"]), row)
        sweep = effect.sweep or section["sweeps"][0]
        whole = [row for runs, row in of_runs.items() if not any(runs < other for other in of_runs)]
        sources.append({"rows": whole, "sweep": sweep})
    return sources
