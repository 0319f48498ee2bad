"""What the logits of a few tokens show of a model that does not obey its mask and positions."""

import pytest
import torch

from dlm.model.probe import PROBE_TOKENS, ProbeLogits, disobedience
from dlm.types import generator


def moved(logits: torch.Tensor, *rows: int) -> torch.Tensor:
    """Logits of which some rows are others."""
    other = logits.clone()
    other[list(rows)] += torch.arange(logits.shape[1])
    return other


ROWS = torch.randn(PROBE_TOKENS, 20, generator=generator(0))
LAST, HALF = PROBE_TOKENS - 1, PROBE_TOKENS // 2
OBEYED = {"plain": ROWS, "causal": ROWS, "reversed": ROWS, "both_ways": ROWS}
OBEYED |= {"plain_changed": moved(ROWS, LAST), "both_ways_changed": moved(ROWS, *range(HALF, PROBE_TOKENS))}


def test_logits_of_a_model_that_obeys_show_no_fault():
    assert list(disobedience(ProbeLogits(**OBEYED), torch.float32)) == []


@pytest.mark.parametrize(
    ("name", "row", "fault"),
    [
        ("plain_changed", 0, "not autoregressive"),
        ("causal", LAST, "it ignores the mask"),
        ("reversed", 3, "the order of the columns"),
        ("both_ways_changed", 0, "leaks into others"),
    ],
)
def test_each_way_to_disobey_is_seen(name, row, fault):
    found = list(disobedience(ProbeLogits(**OBEYED | {name: moved(OBEYED[name], row)}), torch.float32))
    assert any(fault in reason for reason in found)


def test_that_no_position_sees_a_later_one_is_seen():
    (reason,) = disobedience(ProbeLogits(**OBEYED | {"both_ways_changed": ROWS}), torch.float32)
    assert reason == "under a bidirectional mask no position sees a later one"
