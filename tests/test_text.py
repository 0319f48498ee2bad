"""Texts of your own: read, split, and encoded so that no character becomes a special token."""

import json
import random

import pytest
from prepared_data import prepared
from transformers import AutoTokenizer, ByT5Tokenizer

from dlm.data import prose, tasks
from dlm.data.encoding import encode
from dlm.data.packing import TaskSource
from dlm.model.parent import resolve


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_text_files_are_read_split_and_tokenised(tmp_path, tokenizer, suffix):
    documents = [f"document number {i} is long enough to fill some of a row" for i in range(40)]
    path = tmp_path / f"corpus{suffix}"
    lines = {
        ".txt": "\n\n".join(documents),
        ".jsonl": "\n".join(f'{{"text": "{d}"}}' for d in documents),
        ".csv": "text\n" + "\n".join(documents),
    }
    path.write_text(lines[suffix])
    data = prepared(tokenizer, "data=text", f"data.path={path}", "data.length=32")
    text = tokenizer.decode(data.train_rows[0].x0)
    assert "document number" in text or "long enough" in text
    assert len(data.sources("val", tokenizer)["text"].texts) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "is empty: name a file that holds text"),
        ("blank.jsonl", '{"text": " "}\n{"text": ""}', "holds 0 non-empty documents"),
        ("other.jsonl", '{"body": "x"}\n{"body": "y"}', "'text' is not a column"),
        ("numbers.jsonl", '{"text": 1}\n{"text": 2}', "does not hold text in document 1, but 1:"),
        ("null.jsonl", '{"text": "a"}\n{"text": null}\n{"text": "c"}', "does not hold text in document 2, but nothing"),
        ("lacking.jsonl", '{"text": "a", "n": 1}\n{"n": 2}', "does not hold text in document 2, but nothing"),
        ("one.txt", "one\nline after the other", "blank lines part the documents of a .txt file"),
        ("picture.png", "x", "is not text: '.png' is not one of"),
        ("broken.jsonl", '{"text": ', "broken.jsonl' could not be read: "),
        ("absent.jsonl", None, "absent.jsonl' does not exist: name a file that does, or a hub id"),
    ],
)
def test_an_empty_or_non_text_dataset_is_refused(tmp_path, tokenizer, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        prepared(tokenizer, "data=text", f"data.path={tmp_path / name}")


def test_a_text_of_the_word_NA_is_text(tmp_path, tokenizer):
    (tmp_path / "words.csv").write_text("text\nNA\nnull\n\nNaN\n")
    data = prepared(tokenizer, "data=text", f"data.path={tmp_path / 'words.csv'}")
    corpus = data.corpora["text"]
    assert [tokenizer.decode(corpus.ids(n)[:-1]) for n in range(len(corpus))] == ["NA", "null", "NaN"]


def test_characters_never_become_a_special_token(tmp_path, tokenizer):
    """A document may spell any of them; the only special tokens are the ends of documents."""
    spelt = "before <mask> and <eos> and <pad> after"
    (tmp_path / "corpus.jsonl").write_text("\n".join([json.dumps({"text": spelt})] * 4))
    data = prepared(tokenizer, "data=text", f"data.path={tmp_path / 'corpus.jsonl'}", "data.length=32")
    for source in (data.sources(split, tokenizer)["text"] for split in ("train", "val")):
        for *ids, end in source.texts:
            assert not set(ids) & set(tokenizer.all_special_ids) and end == tokenizer.eos_token_id
            assert tokenizer.decode(ids) == spelt
    assert encode(ByT5Tokenizer(), ["a</s>"]) == [[100, *(ord(c) + 3 for c in "</s>"), 1]]  # one in Python


def test_text_without_special_tokens_is_encoded_as_ever(tokenizer):
    texts = [*prose.chapters("test")[:3], *(e.prompt for e in tasks.evaluation_set("test", 3))]
    assert encode(tokenizer, texts) == tokenizer(texts)["input_ids"] and encode(tokenizer, []) == []


def test_a_mask_that_is_an_ordinary_token_is_refused_with_the_document_that_holds_it(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(resolve("pkg://dlm/assets/tiny"))
    tokenizer.mask_token = "Q"
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("a", "", "b", "Quite", "d")))
    with pytest.raises(ValueError, match=r"document 4 of data.path '.*' holds the mask token 'Q' .* model.mask_token"):
        prepared(tokenizer, "data=text", f"data.path={path}")
    with pytest.raises(ValueError, match="the task 'reverse:.*Q.* holds the mask token 'Q'"):
        [TaskSource("train", tokenizer, ["reverse"]).draw(random.Random(i), 64) for i in range(100)]
    tokenizer.mask_token = "."
    with pytest.raises(ValueError, match="chapter 1 of the train prose holds the mask token '.'"):
        prepared(tokenizer)
