"""Make the W&B workspace and report of a project's runs: `python -m dlm.dashboard [project=NAME] [option=value ...]`.

They are written to a folder as JSON, and saved to Weights & Biases where there is a key. `workspace=NAME` is another
specification of `conf/workspace/`, in the package or in the working directory. `draw=RUNS` draws its panels from what
the runs of a folder logged offline.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dlm.config.command_line import hydra_command
from dlm.config.kinds import require_options
from dlm.config.settings import Dashboard
from dlm.logger.wandb import mode, project_of
from dlm.runs.storage import write_atomically
from dlm.workspace.build import as_json, report, workspace
from dlm.workspace.drawn import drawn, offline_runs


@hydra_command("dashboard")
def main(cfg: DictConfig) -> None:
    require_options(cfg, "dashboard", Dashboard)
    if find_spec("wandb_workspaces") is None:
        raise ValueError("the dashboard needs wandb-workspaces, which is not there: pip install 'dlm[dashboard]'")
    from wandb.errors import Error

    try:
        make(cfg, online=mode() == "online")
    except Error as error:
        raise ValueError(f"Weights & Biases refuses: {error}. WANDB_MODE=offline writes the JSON only") from error


def make(cfg: DictConfig, online: bool) -> None:
    """Write the workspace and the report, and save them as new ones if `online`."""
    specification, project = OmegaConf.to_container(cfg.workspace, resolve=True), project_of(cfg.project)
    entity = entity_of(cfg.entity, online)
    parts = {
        "workspace": workspace(specification, entity, project),
        "report": report(specification, entity, project, saved=online),
    }
    folder = Path(cfg.to).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for name, view in parts.items():
        write_atomically(folder / f"{name}.json", as_json(view))
        print(folder / f"{name}.json")
        if online:
            view.save()
            print(f"{name}: {view.url}")
    if cfg.draw:
        for name, figure in drawn(specification["sections"], offline_runs(Path(cfg.draw).expanduser())):
            picture = folder / f"{name.lower().replace(' ', '_')}.png"
            figure.savefig(picture)
            print(picture)
    if not online:
        print("not saved to Weights & Biases: offline, or no key (wandb login, or WANDB_API_KEY)")


def entity_of(entity: str | None, online: bool) -> str:
    """The entity that is asked for, else that of WANDB_ENTITY, else that of the key."""
    named = entity or os.environ.get("WANDB_ENTITY")
    if named or not online:
        return named or "entity"
    import wandb

    return wandb.Api().default_entity


if __name__ == "__main__":
    main()
