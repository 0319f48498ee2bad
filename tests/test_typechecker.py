"""Which calls are checked, and that a wrong shape is found in one that is."""

import jaxtyping
import pytest
import torch
from typechecker import ONE_IN, Sampling, sampled

from dlm.types import Batch, generator


def test_the_first_call_in_the_cases_of_each_test_is_checked_and_then_one_in_so_many(monkeypatch):
    monkeypatch.setattr(Sampling, "every_call", False)
    checked, numbers = [], list(range(2 * ONE_IN))
    call = sampled(lambda n: n, lambda n: checked.append(n) or n)
    for test in ("this", "another"):
        monkeypatch.setattr(Sampling, "test", test)
        assert [call(n) for n in numbers] == numbers
    assert checked == [0, ONE_IN] * 2


def test_make_test_all_checks_every_call(monkeypatch):
    monkeypatch.setattr(Sampling, "every_call", True)
    checked = []
    call = sampled(lambda n: n, lambda n: checked.append(n) or n)
    assert [call(n) for n in range(3)] == checked == [0, 1, 2]


def test_a_wrong_type_or_shape_is_refused_in_functions_and_dataclasses():
    ids, both = torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)
    Batch(ids, both, ids, ids)
    Sampling.test += ", again"  # else that was the first call
    with pytest.raises(jaxtyping.TypeCheckError, match="document"):
        Batch(ids, both, ids[:, :3], ids)
    with pytest.raises(jaxtyping.TypeCheckError, match="seed"):
        generator("seed")
