"""Data: disjoint splits, right answers, rows that are a pure function of (seed, index), and packing."""

import json
import random

import pytest
import torch
from conftest import config, everyday
from transformers import AutoTokenizer, ByT5Tokenizer

from dlm.attention.bidir import Bidir
from dlm.attention.block import Block
from dlm.config.build import make
from dlm.data import prose, tasks
from dlm.data.encoding import encode
from dlm.data.example import Example, check, split_of
from dlm.data.packing import MIN_ROOM, Document, PackedRows, TaskSource, Windows, collate, pack
from dlm.evaluation.likelihood import windows
from dlm.model.parent import resolve


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_splits_share_no_prompt_and_sampling_stays_in_its_split(family):
    rng = random.Random(0)
    prompts = {s: {tasks.sample(family, s, rng).prompt for _ in range(200)} for s in ("train", "val", "test")}
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["val"]
    assert not prompts["val"] & prompts["test"]


def test_prose_splits_are_disjoint_and_hold_at_least_3_mb():
    splits = {s: set(prose.chapters(s)) for s in ("train", "val", "test")}
    assert not splits["train"] & splits["test"] and not splits["train"] & splits["val"]
    assert sum(len(c.encode()) for s in splits.values() for c in s) > 3_000_000


def test_prose_is_encoded_as_the_tokenizer_does_and_once_for_equal_tokenizers():
    def plainly(tokenizer):
        return tokenizer(list(prose.chapters("val")), add_special_tokens=False)["input_ids"]

    tokenizer, again = (AutoTokenizer.from_pretrained(resolve("pkg://dlm/assets/tiny")) for _ in range(2))
    again("cut short, then padded", truncation=True, max_length=2, padding="max_length")  # which a tokenizer remembers
    encoded = prose.encoded("val", again)
    assert encoded == plainly(tokenizer) and encoded is prose.encoded("val", tokenizer)
    again.add_tokens(["the"])  # another tokenizer, which gives other tokens
    assert prose.encoded("val", again) == plainly(again) != plainly(tokenizer)


def test_prose_is_encoded_by_a_tokenizer_in_python():
    encoded = prose.encoded("val", ByT5Tokenizer())  # bytes, after three special tokens
    assert bytes(i - 3 for i in encoded[0]).decode() == prose.chapters("val")[0]


KNOWN = {
    "add": ("37+485=", "522"),
    "running_sum": ("sum:4,9,3=", "4,13,16"),
    "brackets": ("close:([]{=", "})"),
    "reverse": ("reverse:ABC=", "CBA"),
    "sort": ("sort:CAB=", "ABC"),
    "count": ("count A:BAACA=", "3"),
    "list_eval": (">>>[7,2,9,4][1:3]\n", "[2,9]"),
    "str_eval": (">>>'AB'*2\n", "'ABAB'"),
    "word_problem": ("Ruth has 12 figs and buys 7 more. How many figs?", "12+7=19"),
}


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_the_checker_takes_the_right_answer_and_no_other(family):
    prompt, answer = KNOWN[family]
    example = Example(family, prompt, answer)
    assert check(example, f" {answer}\n")
    assert not check(example, answer + "0") and not check(example, "")


@pytest.mark.parametrize("family", ["add", "running_sum", "reverse", "sort", "count", "brackets"])
def test_generated_answers_are_right(family):
    """Recomputed from the prompt by other means."""
    independent = {
        "add": lambda p: str(sum(map(int, p[:-1].split("+")))),
        "running_sum": lambda p: ",".join(
            str(sum(map(int, p[4:-1].split(",")[: i + 1]))) for i in range(p.count(",") + 1)
        ),
        "reverse": lambda p: "".join(reversed(p[8:-1])),
        "sort": lambda p: "".join(sorted(p[5:-1])),
        "count": lambda p: str(sum(c == p[6] for c in p[8:-1])),
    }
    rng = random.Random(1)
    for _ in range(200):
        example = tasks.sample(family, "train", rng)
        if family == "brackets":
            text = example.prompt[6:-1] + example.answer
            while (shorter := text.replace("()", "").replace("[]", "").replace("{}", "")) != text:
                text = shorter
            assert text == ""
        else:
            assert example.answer == independent[family](example.prompt)


def test_evaluation_items_are_distinct_and_always_the_same():
    once, again = tasks.evaluation_set("test", 20), tasks.evaluation_set("test", 20)
    assert once == again
    assert len({e.prompt for e in once}) == 20 * len(tasks.FAMILIES)
    assert all(split_of(e.prompt) == "test" for e in once)


def test_the_tokenizer_gives_back_any_text_and_one_token_per_digit_and_capital(tokenizer):
    text = prose.chapters("test")[0] + " héllo 漢字 🙂\t12+345=357 ([{}])"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    for piece in ("1234567890", "ABCXYZ", "([{}])"):
        assert len(tokenizer(piece)["input_ids"]) == len(piece)


def prepared(tokenizer, *overrides, pattern=None, num_rows=64, seed=0):
    data = make(config(*overrides).data)
    data.prepare(tokenizer, (pattern or Block(16)).tail, num_rows, seed)
    return data


@pytest.mark.trains
@pytest.mark.parametrize("group", everyday([16, 1]))
def test_a_row_is_a_pure_function_of_seed_and_index(tokenizer, group):
    one, two = (prepared(tokenizer, f"+data.group={group}").train_rows for _ in range(2))
    two[5]  # reading other rows first changes nothing
    for name in ("x0", "maskable", "document", "position"):
        assert torch.equal(getattr(one[41], name), getattr(two[41], name))
    assert not torch.equal(one[41].x0, one[42].x0)
    assert not torch.equal(one[41].x0, prepared(tokenizer, f"+data.group={group}", seed=1).train_rows[41].x0)


@pytest.mark.parametrize("pattern", [Block(16), Bidir(16), Block(1)])
def test_rows_hold_whole_documents_of_whole_blocks(tokenizer, pattern):
    rows = prepared(tokenizer, "data.mixture.prose=0", pattern=pattern).train_rows
    batch = collate([rows[i] for i in range(64)])
    assert batch.x0.shape == (64, 128)
    assert not batch.maskable[batch.document < 0].any()
    for row in range(64):
        for document in batch.document[row].unique().tolist():
            where = batch.document[row] == document
            position = batch.position[row][where]
            assert position.tolist() == list(range(len(position)))
            if document >= 0 and not batch.maskable[row][where].all():  # a task, not the filling prose
                assert len(position) % pattern.block_size == 0
                assert batch.x0[row][where][-1] == tokenizer.eos_token_id
                answer = batch.maskable[row][where].int()
                assert (answer.diff() >= 0).all() and answer[-1] == 1


def test_a_source_that_weighs_nothing_is_not_seen_at_all(tokenizer):
    """Of the prose every token may be masked, so that a document of it has no context."""

    def share_of_prose(*overrides):
        rows = prepared(tokenizer, *overrides).train_rows
        batch = collate([rows[i] for i in range(32)])
        documents = [(row, n) for row in range(32) for n in batch.document[row].unique().tolist() if n >= 0]
        return sum(batch.maskable[r][batch.document[r] == n].all().item() for r, n in documents) / len(documents)

    assert share_of_prose("data.mixture.prose=0") == 0 < share_of_prose("data.mixture.prose=1e-9")
    assert share_of_prose("data.mixture.tasks=0") == 1


def documents(tokenizer, size: int, group: int) -> list[Document]:
    """The tasks of 96 rows of data=long without prose, under blocks of a size."""
    overrides = ["data=long", f"data.group={group}", "data.mixture.prose=0"]
    rows = prepared(tokenizer, *overrides, pattern=Block(size), num_rows=96).train_rows
    return [document for i in range(96) for document in rows.documents(i)]


@pytest.mark.trains
def test_rows_that_are_packed_together_hold_more(tokenizer):
    one_by_one, together = (sum(len(d.ids) for d in documents(tokenizer, 8, group)) for group in (1, 16))
    assert together > 1.05 * one_by_one


def test_each_row_of_a_group_has_a_source_of_its_own(tokenizer):
    """Rows without a task are of prose alone."""
    rows = prepared(tokenizer, "data=long", "data.mixture={tasks: 0.5, prose: 0.5}", num_rows=64).train_rows
    has_tasks = [any(d.kind == "answers" for d in rows.documents(i)) for i in range(64)]
    groups = [has_tasks[i : i + 16] for i in range(0, 64, 16)]
    assert all(any(group) and not all(group) for group in groups)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_the_tasks_has_short_answers(tokenizer, share):
    overrides = ["data=long", "data.mixture.prose=0", f"data.short={share}"]
    rows = prepared(tokenizer, *overrides, num_rows=96).train_rows
    answers = [sum(d.maskable) - d.fill for i in range(96) for d in rows.documents(i)]
    assert sum(n < 40 for n in answers) / len(answers) == pytest.approx(share, abs=0.1)


def test_rows_that_are_packed_together_may_hold_many_documents_each(tokenizer):
    """A group of long rows takes more documents than an empty row may refuse."""
    rows = prepared(tokenizer, "data=long", "data.length=1024", "data.group=16", "data.mixture.prose=0").train_rows
    held = [len(rows.documents(n)) for n in range(16)]
    assert min(held) > 5 and sum(held) > 100


def test_the_block_size_does_not_decide_which_tasks_are_seen(tokenizer):
    """Short ones stand in the ends of rows that long ones leave, if each row is closed on its own for many."""
    shares = [
        sum(document.ids.index(tokenizer.eos_token_id) - document.maskable.index(True) < 39 for document in drawn)
        / len(drawn)
        for drawn in (documents(tokenizer, size, 16) for size in (4, 64))
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.06)


class OftenTooLong:
    """A source of one document that fits a row in one of four draws."""

    def draw(self, rng, room):
        return Document([5, 0], [True, True]) if rng.random() < 0.25 else None


class AlwaysTooLong:
    def draw(self, rng, room):
        return None


def test_a_first_document_that_does_not_fit_is_drawn_again_and_a_row_that_nothing_fits_is_named():
    def rows(source):
        return PackedRows([source], [1.0], None, 8, 200, pad_id=1, eos_id=0, tail=lambda *_: 0, seed=0)

    assert all((rows(OftenTooLong())[i].document >= 0).any() for i in range(200))
    with pytest.raises(ValueError, match="no document fits a row of 8 tokens"):
        rows(AlwaysTooLong())[0]


def test_pack_by_hand():
    row = pack([Document([5, 6], [False, True]), Document([7], [True])], 5, pad_id=1)
    assert row.x0.tolist() == [5, 6, 7, 1, 1]
    assert row.maskable.tolist() == [False, True, True, False, False]
    assert row.document.tolist() == [0, 0, 1, -1, -1]
    assert row.position.tolist() == [0, 1, 0, 0, 1]
    with pytest.raises(ValueError, match="do not fit a row of 2"):
        pack([Document([1, 2, 3], [True] * 3)], 2, 1)


def test_windows_cover_the_whole_text():
    source, rng = Windows([list(range(2, 40))], eos_id=0), random.Random(0)
    seen = {token for _ in range(300) for token in source.draw(rng, 8).ids}
    assert seen == {0, *range(2, 40)}


def test_likelihood_windows_score_the_bytes_they_say(tokenizer):
    rows, num_bytes = windows([prose.chapters("test")[0]], tokenizer, 64, 2)
    scored = "".join(tokenizer.decode(row.x0[row.maskable]) for row in rows)
    assert num_bytes == len(scored.encode()) and sum(int(r.maskable.sum()) for r in rows) == 2 * 63


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


def test_windows_draw_what_lengths_as_weights_would_draw(tokenizer):
    texts = [list(range(3, 3 + n)) for n in (5, 1, 40, 17, 2)]
    source, ours, plain = Windows(texts, eos_id=0), random.Random(5), random.Random(5)
    ended = [[*ids, 0] for ids in texts]
    for _ in range(500):
        ids = plain.choices(ended, [len(ids) for ids in ended])[0]
        start = plain.randrange(max(1, len(ids) - MIN_ROOM))
        assert source.draw(ours, 8).ids == ids[start : start + 8]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.mixture={tasks: 0.0, prose: 0.0}", "of which one is > 0"),
        ("+data.mixture.poems=1", "this dataset has"),
        ("data.families=[juggling]", "juggling.* are unknown"),
        ("data.length=1", "data.length 1"),
        ("+data.group=0", "data.group 0"),
    ],
)
def test_bad_values_are_named(tokenizer, override, message):
    with pytest.raises(ValueError, match=message):
        prepared(tokenizer, override)
