"""A run that an earlier version has written, without its weights, is read by this one: tests/data/old_run is kept as it
was, whatever has moved since."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dlm.config.build import build
from dlm.config.targets import require_known
from dlm.runs.identity import run_id
from dlm.runs.renamed import PRESENT, with_targets
from dlm.runs.run import Run


@pytest.fixture
def run() -> Run:
    return Run.load(str(Path(__file__).parent / "data" / "old_run"), "runs")


def test_its_config_gives_the_id_that_it_was_written_under(run):
    assert run_id(OmegaConf.to_container(run.config, resolve=True)) == run_id(run.record["config"]) == run.record["id"]


@pytest.mark.trains
def test_whatever_its_config_names_is_found_and_what_trains_is_built(run):
    require_known(with_targets(run.record["config"], PRESENT))
    experiment = build(run.config)
    assert experiment.num_steps == run.record["steps"]
    assert experiment.parent.fingerprint() == run.record["parent"]["fingerprint"]
