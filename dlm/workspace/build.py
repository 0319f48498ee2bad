"""A workspace and a report of Weights & Biases from one plain specification (conf/workspace/)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.workspace.panels import STEP, panel, reports


def workspace(specification: Mapping[str, Any], entity: str, project: str) -> Any:
    """The workspace of a project: a section for each of the specification's `sections`."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(
            name=section["name"], is_open=section.get("open", True), panels=[panel(p) for p in section["panels"]]
        )
        for section in specification["sections"]
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=specification["name"],
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=specification["max_runs"]),
        auto_generate_panels=False,
    )


def report(specification: Mapping[str, Any], entity: str, project: str, saved: bool) -> Any:
    """The report of a project: a heading, a text and panels for each of the `parts`, which is about the runs of one
    sweep. A report that is to be `saved` names the project of its runs, for which the server is asked."""
    wr, of_report = reports(), specification["report"]
    where = {"entity": entity, "project": project} if saved else {}
    blocks = [wr.P(of_report["text"]), wr.TableOfContents()]
    for part in of_report["parts"]:
        runs = wr.Runset(name=part["sweep"], filters=f'Tags in ["{part["sweep"]}"]', **where)
        grid = wr.PanelGrid(runsets=[runs], panels=[panel(p) for p in part["panels"]])
        blocks += [wr.H2(part["title"]), wr.P(part["text"]), grid]
    return wr.Report(entity=entity, project=project, title=of_report["title"], blocks=blocks, width="fluid")


def as_json(view: Any) -> str:
    """What would be saved."""
    return view._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)
