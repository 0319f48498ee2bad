"""A scale goes with every option of every other group, and switches nothing on that was switched off."""

import pytest
from common import CONF, config, one_in, option_yaml, options
from omegaconf import OmegaConf

from dlm.config.values import evaluation_of

pytestmark = pytest.mark.trains

DEFAULTS = OmegaConf.load(CONF / "train.yaml").defaults
GROUPS = sorted({group for entry in DEFAULTS if OmegaConf.is_dict(entry) for group in entry} - {"scale"})
SETTINGS = set(OmegaConf.load(CONF / "evaluation" / "full.yaml"))


def rounds() -> list[list[str]]:
    """Choices that together name every option of every group: one list for each position in the longest group."""
    choices = {group: options(group) for group in GROUPS}
    longest = max(map(len, choices.values()))
    return [[f"{group}={names[i % len(names)]}" for group, names in choices.items()] for i in range(longest)]


@pytest.mark.parametrize("scale", options("scale"))
@pytest.mark.parametrize("number", one_in(3, range(len(rounds()))))
def test_every_scale_composes_with_every_option_of_another_group(scale, number):
    choices = rounds()[number]
    cfg = config(f"scale={scale}", *choices)
    OmegaConf.to_container(cfg, resolve=True)
    own = next(choice.partition("=")[2] for choice in choices if choice.startswith("evaluation="))
    evaluation = evaluation_of(cfg.get("evaluation"), config().data)  # not every option of data is whole without a path
    assert (evaluation is None) == option_yaml("evaluation", own).get("skip", False)
    assert evaluation is None or set(cfg.evaluation) == SETTINGS == set(evaluation.recorded) - {"families"}


@pytest.mark.parametrize("scale", options("scale"))
@pytest.mark.parametrize("off", ["evaluation=none", "~evaluation"])
@pytest.mark.parametrize("others", [[], ["pretrain=embedded"]], ids=str)
def test_no_scale_switches_an_evaluation_on_again(scale, off, others):
    cfg = config(f"scale={scale}", off, *others)
    assert evaluation_of(cfg.get("evaluation"), cfg.data) is None
