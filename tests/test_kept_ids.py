"""The ids of runs that were written down once: an option that is added later must leave them as they are, which
`dlm.runs.identity.NEUTRAL` is for. An option that nobody has told it about moves the ids here.

    python tests/test_kept_ids.py

adds to tests/data/run_ids.json what has no id there yet: options and recipes that are new. It changes no line.
"""

import json
from pathlib import Path

import pytest
from common import as_before, config, one_in, options
from omegaconf import OmegaConf

from dlm.runs.identity import NEUTRAL, run_id

pytestmark = pytest.mark.trains

KEPT = Path(__file__).parent / "data" / "run_ids.json"
# Groups whose choice can be part of who a run is; what goes beside an option so that its config is whole.
GROUPS = ("attention", "masking", "noise_level", "kernel", "loss", "auxiliary", "rollout", "block_schedule")
GROUPS += ("trainable", "optimizer", "data", "model", "pretrain", "recipe")
BESIDE = {"model=run": ["model.run=abc"]}


def cases() -> list[str]:
    """The default, and every option of every group."""
    return ["", *(f"{group}={option}" for group in GROUPS for option in options(group))]


def resolved(case: str) -> dict:
    cfg = as_before(config(*([case] if case else []), *BESIDE.get(case, [])))
    return OmegaConf.to_container(cfg, resolve=True)


def kept() -> dict[str, str]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


@pytest.mark.parametrize("case", one_in(3, kept()))
def test_a_run_has_the_id_that_it_always_had(case):
    assert run_id(resolved(case)) == kept()[case], "give new options their old behaviour in dlm.runs.identity.NEUTRAL"


@pytest.mark.parametrize("group", ["masking", "trainer", "data", "optimizer"])
def test_an_option_that_is_added_and_forgotten_is_noticed(group):
    cfg = resolved("")
    cfg[group]["an_option_of_tomorrow"] = 1
    assert run_id(cfg) != kept()[""] and f"{group}.an_option_of_tomorrow" not in NEUTRAL


if __name__ == "__main__":
    found = kept()
    found |= {case: run_id(resolved(case)) for case in cases() if case not in found}
    KEPT.write_text(json.dumps(found, indent=1) + "\n")
