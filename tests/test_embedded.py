"""The embedded data: disjoint splits, right answers, and a tokenizer that gives every text back."""

import random

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from dlm.data import prose, tasks
from dlm.data.example import Example, check, split_of
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
