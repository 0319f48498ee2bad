"""The one writer of Markdown tables."""

import re

import pytest

from dlm.markdown import table


def test_a_table_by_hand():
    assert table(["a", "b"], [["1", "x y"]]) == "| a | b |\n| --- | --- |\n| 1 | x y |"
    assert table(["a", "b"], [], [":--", "--:"]) == "| a | b |\n| :-- | --: |"


@pytest.mark.parametrize("cell", ["a|b", r"a\|b", r"a\\|b", "|", "||", r"\||"])
def test_no_cell_ends_before_its_end_and_no_escape_is_escaped_again(cell):
    (line,) = table(["header"], [[cell]]).splitlines()[2:]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 2  # GitHub takes a bar for an end unless it is escaped
    (inside,) = re.fullmatch(r"\| (.*) \|", line).groups()
    assert table(["header"], [[inside]]).splitlines()[2] == line
