"""The part of a product that a quick run takes."""

from itertools import product

from pairwise import covering, pairs


def cases(**values):
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def test_every_pair_of_values_is_covered_by_far_fewer_cases():
    every = cases(architecture=["llama", "gemma"], pattern=[1, 2, 3, 4, 5, 6], size=[1, 3, 8], shift=[False, True])
    chosen = covering(every)
    assert set().union(*(pairs(every[i]) for i in chosen)) == set().union(*map(pairs, every))
    assert 18 <= len(chosen) <= 24 < len(every) == 72  # six patterns at three sizes are 18 pairs


def test_a_product_of_two_is_taken_whole_and_the_choice_is_always_the_same():
    every = cases(pattern=[1, 2, 3], rule=["a", "b"])
    assert covering(every) == set(range(6))
    large = cases(a=[0, 1, 2], b=[0, 1, 2], c=[0, 1, 2])
    assert covering(large) == covering(large)


def test_a_pair_that_only_one_case_has_is_not_lost():
    every = [*cases(a=[0, 1], b=[0, 1], c=[0, 1]), {"a": 2, "b": 0, "c": 1}]
    assert 8 in covering(every)
