"""`python -m dlm.data`: what is prepared, seen and found wrong before a training."""

import json
import sys

import pytest
from common import config, exit_code

from dlm.config.build import make_tokenizer
from dlm.data import __main__ as data_command
from dlm.data.external import summary_lines
from dlm.data.prepared import identity
from dlm.model.parent import load_parent

OPTIONS = ["data.length=64", "data.batch_size=2", "block_size=8", "tokens=6400"]


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch, own_cache):
    monkeypatch.chdir(tmp_path)
    pairs = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(60)]
    write("chat", [*pairs, {"prompt": "long " * 50, "completion": "0"}])
    write("text", [{"text": f"number {n} is a text of some words"} for n in range(60)])


def write(name: str, rows: list[dict]) -> None:
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def asked(*overrides: str):
    return config(*OPTIONS, *overrides, name="data")


CHAT = ("data=chat", "data.path=chat.jsonl", "data.template=plain", "data.held_out=tail", "data.group=1")


def test_the_summary_counts_documents_tokens_epochs_and_what_fits_no_row():
    data, _ = data_command.prepared(asked("data=chat", "data.path=chat.jsonl", "data.template=plain"))
    part, of = data.train_rows.sources[0].part, data.summary(200)["chat"]
    assert of["documents"] + of["held_out"] == 61 and of["documents"] == len(part) and of["tokens"] == part.num_tokens
    assert of["cut"] == 0 and of["rows"] == 1 and of["left_out"] == sum(len(ids) > 64 for ids in part)
    assert of["epochs"] == pytest.approx(200 * 64 / part.num_tokens, rel=0.5)
    (line,) = summary_lines({"chat": of | {"left_out": 1}})
    assert "100% of the rows" in line and line.endswith("1 documents fit no row and are left out")


@pytest.mark.trains
@pytest.mark.parametrize("order", ["sequential", "packed"])
def test_the_epochs_of_passes_are_those_that_are_made(order):
    data, _ = data_command.prepared(asked("data=text", "data.path=text.jsonl", f"data.order={order}"))
    (table,) = data.train_rows.tables
    assert data.summary(3 * len(table))["text"]["epochs"] == pytest.approx(3, rel=1e-6)


@pytest.mark.trains
def test_rows_are_painted_by_what_is_given_hidden_and_scored(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    data_command.inspect(asked(*CHAT, "block_size=16", "rows=1", "noise_level=full"))
    said = capsys.readouterr().out
    assert "row 0" in said and "row 1" not in said
    row = said.split("row 0")[1]
    dim, red, yellow = ("\x1b[2m", "\x1b[1;37;41m", "\x1b[30;43m")
    assert all(style in row for style in (dim, red, yellow))  # prompts, answers and the fill behind them
    assert f"{yellow}<eos>" in row and f"{dim}=" in row


def test_every_row_that_cannot_be_used_is_listed_and_the_exit_code_says_so(capsys, tmp_path):
    data_command.validate(asked(*CHAT))
    assert "61 rows, 0 problems" in capsys.readouterr().out
    write("text", [{"text": "a"}, {"text": None}, {"text": "b"}, {"text": 3}])
    with pytest.raises(SystemExit) as ended:
        data_command.validate(asked("data=text", "data.path=text.jsonl"))
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "4 rows, 2 problems" in said
    assert "in document 2, but nothing" in said and "in document 4, but" in said
    assert not (tmp_path / "cache" / "corpora").exists()


def test_data_that_is_made_by_the_code_needs_no_preparation(capsys, monkeypatch):
    with pytest.raises(ValueError, match="needs no preparation: choose data=text, chat, image_chat or mixed"):
        data_command.prepare(asked())
    monkeypatch.setattr(sys, "argv", ["dlm.data", "tidy"])
    assert exit_code(data_command.main) == 2 and "validate" in capsys.readouterr().err


def test_a_tokenizer_alone_is_that_of_its_parent():
    """So that what was prepared without weights is found by the training."""
    node = asked("model=tiny").model
    assert identity(make_tokenizer(node)) == identity(load_parent("pkg://dlm/assets/tiny", check=False).tokenizer)
