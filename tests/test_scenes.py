"""Scenes: what is asked of a picture has one right answer, of the length that is said, and splits share no scene."""

import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from dlm.data import scenes, tasks
from dlm.data.example import Grade, check, grade, split_of
from dlm.data.scenes.drawing import CELL, COLOURS, GRID, GROUND, SHAPES, SIZE, STENCILS, Symbol, draw
from dlm.data.scenes.families import FAMILIES, WORDS, at, count, grid, list_, words
from dlm.evaluation.generation import prompt_ids
from dlm.evaluation.items import added_version

EMPTY = (None,) * GRID**2
OBJECTS = (Symbol("disc", "red"), None, Symbol("bar", "blue"), *EMPTY[4:], Symbol("ring", "red"))


@pytest.mark.parametrize(
    ("ask", "cells", "answer"),
    [
        (list_, OBJECTS, "A red disc;C blue bar;P red ring"),
        (count, OBJECTS, "red2;green0;blue1;yellow0;white0;pink0"),
        (grid, (Symbol("7", "red"), None, Symbol("0", "blue"), *EMPTY[3:]), "7.0.;....;....;...."),
        (words, tuple(n and Symbol(n, "red") for n in "SUN") + EMPTY[3:], "SUN;;;"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_question_has_the_answer_that_the_picture_shows(ask, cells, answer):
    assert ask(cells, random.Random(0))[1] == answer


def test_at_asks_for_full_and_for_empty_cells_and_names_what_is_in_each():
    prompt, answer = at(OBJECTS, random.Random(0))
    asked, in_cell = prompt.removeprefix("at ").removesuffix(":"), {"A": "red disc", "C": "blue bar", "P": "red ring"}
    assert len(set(asked)) == 5 and 2 <= len(in_cell.keys() & set(asked)) < 5
    assert answer == ";".join(f"{cell} {in_cell.get(cell, 'none')}" for cell in asked)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_have_12_to_44_tokens_and_no_two_splits_share_a_scene(family):
    tokenizer, rng = AutoTokenizer.from_pretrained("dlm/assets/long"), random.Random(0)
    drawn = {split: [scenes.sample(family, split, rng) for _ in range(12)] for split in ("train", "val", "test")}
    lengths = [len(tokenizer(scene.answer)["input_ids"]) + 1 for of in drawn.values() for scene in of]
    assert min(lengths) >= 12 and max(lengths) <= 44 and sum(lengths) / len(lengths) >= 16
    contents = {split: {make_again(family, split, n) for n in range(6)} for split in drawn}
    assert not contents["train"] & contents["test"] and not contents["train"] & contents["val"]
    assert not contents["val"] & contents["test"]


def make_again(family, split, seed):
    """What stands in the cells of a scene of a split."""
    make, _ = FAMILIES[family]
    rng = random.Random(seed)
    while split_of(repr(cells := make(rng))) != split:
        pass
    assert scenes.sample(family, split, random.Random(seed)).image.shape == (SIZE, SIZE, 3)
    return cells


def test_the_split_is_that_of_the_scene_and_not_of_its_question():
    objects_of = {family: make_again(family, "test", 3) for family in ("list", "count", "at")}
    assert len(set(objects_of.values())) == 1


def test_equal_arguments_give_equal_questions_and_pictures():
    first, again = (tasks.evaluation_set("test", 3, families=["scenes.at", "scenes.words"]) for _ in range(2))
    assert [s.prompt for s in first] == [s.prompt for s in again] and len({s.image.tobytes() for s in first}) == 6
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))


def test_a_program_checks_answers_and_counts_right_steps():
    scene = scenes.Scene("list", "list:", "A red disc;C blue bar", np.zeros((SIZE, SIZE, 3), np.uint8))
    assert check(scene, "A red disc;C blue bar") and not check(scene, "A red disc;C blue ring")
    assert grade(scene, "A red disc;C blue ring") == Grade(0.5, 1)


def test_each_symbol_is_drawn_in_its_cell_in_its_colour_and_no_two_look_alike():
    for name in STENCILS:
        picture = draw((*EMPTY[:5], Symbol(name, "red"), *EMPTY[6:]), random.Random(0))
        inside = picture[CELL : 2 * CELL, CELL : 2 * CELL]
        assert (picture != GROUND).any(2).sum() == (inside != GROUND).any(2).sum() == STENCILS[name].sum()
        assert inside[..., 0].max() > 180 and inside[..., 1].max() < 60
    shapes = [STENCILS[name] for name in SHAPES]
    glyphs = [STENCILS[name] for name in STENCILS if name not in SHAPES]
    for alike in (shapes, glyphs):
        assert min((a ^ b).sum() for n, a in enumerate(alike) for b in alike[:n]) >= 4
    assert len({COLOURS[name] for name in COLOURS}) == len(COLOURS)
    assert {letter for word in WORDS for letter in word} <= STENCILS.keys()


def test_the_version_of_items_changes_with_the_pictures_that_are_asked_about(monkeypatch):
    before = added_version(("scenes.list",))
    added_version.cache_clear()
    monkeypatch.setattr(scenes, "draw", lambda cells, rng: draw(cells, rng)[::-1])
    assert added_version(("scenes.list",)) != before
    added_version.cache_clear()


def test_a_tokenizer_is_not_asked_about_pictures():
    with pytest.raises(ValueError, match="a scene has pictures, and the parent reads text only"):
        prompt_ids(AutoTokenizer.from_pretrained("dlm/assets/long"), tasks.evaluation_set("val", 1, 0, ["scenes.at"]))
