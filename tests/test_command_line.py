"""What is typed: flags in any place, and options under the names that they had before."""

import json

import pytest
from common import config
from omegaconf import OmegaConf

from analysis.plan.compose import resolve_config
from dlm.config.command_line import RENAMED, flags_first, print_once, with_present_name
from dlm.runs.identity import run_id


@pytest.fixture(autouse=True)
def nothing_said_yet():
    print_once.cache_clear()


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_sweep_may_be_asked_for_anywhere_on_the_command_line(flag):
    assert flags_first(["seed=0,1", flag, "lr=1"]) == [flag, "seed=0,1", "lr=1"]


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_option_under_its_earlier_name_becomes_the_present_one_and_stderr_says_so_once(old, new, prefix, capsys):
    for _ in range(2):
        assert with_present_name(f"{prefix}{old}.some=1=2") == f"{prefix}{new}.some=1=2"
    assert capsys.readouterr().err == f"{old}.some is now called {new}.some\n"


@pytest.mark.parametrize(
    "override", ["runtime.threads=1", "trainer.volatiles=1", "prompt=trainer.volatile.threads=1", "-m"]
)
def test_what_has_no_earlier_name_stays_as_it_is(override, capsys):
    assert with_present_name(override) == override
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("evaluation=null", "evaluation=none"),
        ("~evaluation", "evaluation=none"),
        ("callbacks=null", "callbacks=none"),
        ("schedule=null", "schedule=null"),
    ],
)
def test_null_is_the_option_none_of_a_group_that_has_one(typed, read):
    assert with_present_name(typed) == read


def test_a_study_takes_the_earlier_names_too():
    assert resolve_config("train", "point", ["trainer.volatile.threads=3"])["runtime"]["threads"] == 3


@pytest.mark.trains
def test_a_config_of_an_earlier_version_has_the_id_of_the_present_one():
    present_one = OmegaConf.to_container(config(), resolve=True)
    earlier = json.loads(json.dumps(present_one))
    earlier["trainer"]["volatile"] = earlier.pop("runtime")
    assert run_id(earlier) == run_id(present_one)
