"""The part of a product that a quick run takes."""

from itertools import product

from pairwise import MANY, covering, enough, tuples


def cases(**values):
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def covered(chosen, size):
    return set().union(*(tuples(case, size) for case in chosen))


def part(every):
    return [every[i] for i in enough(every)]


def test_every_pair_of_values_is_covered_by_far_fewer_cases():
    every = cases(architecture=["llama", "gemma"], size=[1, 3, 8], shift=[False, True])
    assert covered(part(every), 2) == covered(every, 2)
    assert 6 <= len(part(every)) <= MANY < len(every) == 12  # three sizes with two architectures are 6 pairs


def test_where_the_pairs_need_many_cases_every_value_is_covered():
    every = cases(pattern=[1, 2, 3, 4, 5, 6], size=[1, 3, 8], shift=[False, True])
    assert len(covering(every, 2)) > MANY
    assert covered(part(every), 1) == covered(every, 1) and len(part(every)) == 6


def test_a_small_product_of_two_is_taken_whole_and_a_large_one_by_its_values():
    assert enough(cases(pattern=[1, 2, 3], rule=["a", "b"])) == set(range(6))
    assert len(enough(cases(pattern=range(MANY), rule=["a", "b"]))) == MANY


def test_a_list_of_cases_of_which_each_has_a_value_of_its_own_is_taken_whole():
    assert len(enough([{"given": i, "message": i % 3} for i in range(50)])) == 50


def test_the_choice_is_always_the_same():
    every = cases(a=[0, 1, 2], b=[0, 1, 2], c=[0, 1, 2])
    assert enough(every) == enough(every)


def test_a_pair_that_only_one_case_has_is_not_lost():
    every = [*cases(a=[0, 1], b=[0, 1], c=[0, 1]), {"a": 2, "b": 0, "c": 1}]
    assert 8 in enough(every)
