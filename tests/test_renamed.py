"""Names in configs may change; what earlier runs are called may not."""

import pytest
from common import config
from omegaconf import OmegaConf

from dlm.config.build import make
from dlm.config.targets import require_known
from dlm.runs.identity import run_id
from dlm.runs.renamed import PRESENT, RENAMED, with_targets


@pytest.mark.parametrize("name", RENAMED)
def test_every_renamed_target_leads_to_code_and_no_other_has_its_earlier_name(name):
    require_known({"_target_": name})
    assert len(PRESENT) == len(RENAMED), "two names cannot have had the same earlier one"
    assert not PRESENT.keys() & RENAMED.keys(), "an earlier name that is in use again would mean two things"


def test_an_id_does_not_depend_on_whether_a_config_has_present_or_earlier_names():
    present = OmegaConf.to_container(config(), resolve=True)
    earlier = with_targets(present, RENAMED)
    assert earlier != present
    assert run_id(earlier) == run_id(present)


def test_a_config_with_earlier_names_makes_what_the_present_ones_make():
    present = config().trainable
    earlier = OmegaConf.create(with_targets(OmegaConf.to_container(present), RENAMED))
    assert earlier._target_ == RENAMED[present._target_]
    assert type(make(earlier)) is type(make(present))
