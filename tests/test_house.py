"""The plan of the code: no file and no function outgrows what can be read at once."""

import pytest
from common import ROOT

from analysis import house


def test_no_file_has_more_lines_than_can_be_read_at_once():
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in house.files_of(ROOT)}
    assert {file.name: n for file, n in lines.items() if n > house.FILE_LINES} == {}


@pytest.mark.trains
def test_no_function_has_more_lines_than_can_be_read_at_once():
    functions = house.functions(house.files_of(ROOT))
    assert [(name, lines) for lines, name in functions if lines > house.FUNCTION_LINES] == []
