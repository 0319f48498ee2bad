"""The workspace and the report that are made from a specification, offline and on a server."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from common import ROOT, config, options
from omegaconf import OmegaConf
from wandb_server import serving

from dlm import dashboard
from dlm.workspace.build import as_json, report, workspace
from dlm.workspace.panels import KINDS, named, panel

# What W&B calls the panel of every kind.
VIEWS = {
    "parallel": "Parallel Coordinates Plot",
    "importance": "Parameter Importance",
    "bars": "Bar Chart",
    "scatter": "Scatter Plot",
    "lines": "Run History Line Plot",
    "pictures": "Media Browser",
    "rows": "Weave",
    "compare": "Run Comparer",
    "text": "Markdown Panel",
}


def specification(name: str = "ablation") -> dict:
    return OmegaConf.to_container(config(f"workspace={name}", name="dashboard").workspace, resolve=True)


def kinds(section: dict) -> list[str]:
    return [VIEWS[kind] for entry in section["panels"] for kind in entry]


@pytest.mark.trains
@pytest.mark.parametrize("name", options("workspace"))
def test_every_section_and_panel_of_a_specification_is_in_the_workspace(name):
    asked = specification(name)
    spec = json.loads(as_json(workspace(asked, "me", "mine")))["spec"]["section"]
    found = spec["panelBankConfig"]["sections"]
    assert [section["name"] for section in found] == [section["name"] for section in asked["sections"]]
    for section, expected in zip(found, asked["sections"], strict=True):
        assert [p["viewType"] for p in section["panels"]] == kinds(expected), expected["name"]
    assert spec["settings"]["xAxis"] == "tokens" and not spec["settings"]["shouldAutoGeneratePanels"]


def test_the_sections_are_those_that_a_study_needs():
    names = [section["name"] for section in specification()["sections"]]
    assert names == ["Overview", "Frontier", "Drift", "Training health", "Samples"]
    assert {"parallel", "importance", "bars"} <= {k for p in specification()["sections"][0]["panels"] for k in p}


@pytest.mark.trains
@pytest.mark.parametrize("name", options("workspace"))
def test_every_part_of_the_report_is_about_the_runs_of_a_sweep_that_there_is(name):
    asked = specification(name)["report"]
    made = report(specification(name), "me", "mine", saved=False)
    grids = [b for b in json.loads(as_json(made))["spec"]["blocks"] if b["type"] == "panel-grid"]
    for grid, part in zip(grids, asked["parts"], strict=True):
        assert (ROOT / "sweeps" / f"{part['sweep']}.yaml").exists()
        (runs,) = grid["metadata"]["runSets"]
        assert runs["filters"]["filters"][0]["value"] == [part["sweep"]]
        assert [p["viewType"] for p in grid["metadata"]["panelBankSectionConfig"]["panels"]] == kinds(part)


def test_the_setting_of_decoding_that_is_compared_is_one_value():
    made = config("workspace.decoding=tpf2_8", name="dashboard").workspace
    names = set(named(OmegaConf.to_container(made, resolve=True)["sections"]))
    assert {"eval/tpf2_8/accuracy", "eval/tpf2_8/tpf"} <= names and not [n for n in names if "tpf4" in n]


@pytest.mark.trains
def test_the_specification_that_the_page_shows_makes_a_workspace_and_a_report():
    page = (ROOT / "docs" / "how_to" / "dashboard.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[1])
    assert json.loads(as_json(workspace(shown, "me", "mine")))["displayName"] == "mine"
    assert as_json(report(shown, "me", "mine", saved=False))


def test_a_name_with_a_slash_is_a_result_and_any_other_a_value_of_the_config():
    columns = panel({"parallel": {"columns": ["options.masking.half_life", "lr", "eval/tpf4/low"], "log": ["lr"]}})
    found = columns._to_model().model_dump(by_alias=True)["config"]["columns"]
    assert [c["accessor"] for c in found] == [
        "config:options.value.masking.half_life",
        "config:lr.value",
        "summary:eval/tpf4/low",
    ]
    assert [c["log"] for c in found] == [None, True, None]


@pytest.mark.parametrize("entry", [{"pie": {}}, "lines", {"bars": {}, "lines": {}}, {}])
def test_what_is_no_panel_is_refused(entry):
    with pytest.raises(ValueError, match="workspace: a panel is one of parallel, importance, bars, scatter, lines"):
        panel(entry)


def test_an_argument_that_a_panel_does_not_take_is_named():
    with pytest.raises(ValueError, match="a panel lines takes other arguments: .*'colour'"):
        panel({"lines": {"title": "x", "y": [], "colour": "red"}})


def test_every_kind_of_panel_is_known_by_the_name_that_the_server_has_for_it():
    assert VIEWS.keys() == KINDS.keys()


def test_offline_the_command_writes_both_and_says_that_nothing_was_saved(call, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, said, _ = call(dashboard.main, f"to={tmp_path / 'board'}", "project=mine")
    assert code == 0 and "not saved to Weights & Biases" in said
    assert json.loads((tmp_path / "board" / "workspace.json").read_text())["project"] == "mine"
    assert json.loads((tmp_path / "board" / "report.json").read_text())["spec"]["blocks"]


def test_without_the_package_the_command_says_what_installs_it(call, monkeypatch):
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    code, _, said = call(dashboard.main)
    assert code == 1 and "pip install 'dlm[dashboard]'" in said


@pytest.mark.slow
def test_with_a_key_both_are_saved_on_the_server_as_they_were_written(tmp_path):
    with serving() as (url, saved):
        environment = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}
        command = [sys.executable, "-m", "dlm.dashboard", f"to={tmp_path}"]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}
        )
    assert done.returncode == 0, done.stderr
    assert [view["type"] for view in saved] == ["project-view", "runs"] and {v["entityName"] for v in saved} == {"mine"}
    assert f"workspace: {url}/mine/dlm" in done.stdout and f"report: {url}/mine/dlm/reports/" in done.stdout
    written = json.loads((tmp_path / "workspace.json").read_text())["spec"]
    assert json.loads(saved[0]["spec"]) == written
    grids = [block["metadata"] for block in json.loads(saved[1]["spec"])["blocks"] if block["type"] == "panel-grid"]
    assert all(runs["project"]["entityName"] == "mine" for grid in grids for runs in grid["runSets"])
