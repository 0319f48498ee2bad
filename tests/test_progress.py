"""What a training says while it goes on."""

import re

import pytest
from small_runs import small

from dlm.train import train


@pytest.mark.trains
def test_a_log_that_is_no_terminal_has_a_line_for_every_step_that_is_logged(runs_dir, capsys, short_prose):
    train(small(runs_dir, "runtime.progress_bar=true", "runtime.log_every=2"))
    said = capsys.readouterr().out
    lines = re.findall(r"^step (\d+) of 4, 0:\d\d:\d\d left, tok/s \d+, train/nelbo [\d.]+.*$", said, re.M)
    assert lines == ["2", "4"] and "\r" not in said
