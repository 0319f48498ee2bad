"""Conversations: only what the assistant says is learned, as a decoder would be asked for it at that turn."""

import json

import pytest
from transformers import AutoTokenizer

from dlm.attention.block import Block
from dlm.data.chat import PLAIN, Chat, ChatEncoder, Conversations
from dlm.data.origin import Batch
from dlm.model.parent import resolve

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Drops the reasoning of earlier answers, as Qwen3's does.
FORGETS = CHATML.replace("m.content | trim", "m.content if loop.last else m.content.split('</think>')[-1]")
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}!{% endgeneration %}"
    "{{ '\n' }}"
    "{% else %}U:{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}nothing like it{% endif %}"
)
UNSTABLE = "{{ messages | length }}" + CHATML
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "6 times 7"},
    {"role": "assistant", "content": "42"},
    {"role": "user", "content": "twice that"},
    {"role": "assistant", "content": "84"},
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(resolve("pkg://dlm/assets/tiny"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def made(tokenizer, row, template=CHATML, **options):
    """The documents of a row as (prompt, answer) in words."""
    found = encoded(tokenizer, [row], template, **options)
    ends, pairs = found.lengths.cumsum(), []
    for start, given, end in zip(ends - found.lengths, found.answers, ends, strict=True):
        ids = found.tokens[start:end]
        pairs.append((tokenizer.decode(ids[:given]), tokenizer.decode(ids[given:])))
    return pairs


def encoded(tokenizer, rows, template=CHATML, columns=None, turns="each"):
    kind = Conversations(template, columns, turns)
    encoder = ChatEncoder(tokenizer, template, kind.columns, kind.turns)
    return encoder(Batch(0, "chat.jsonl", 1, rows))


FIRST = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n6 times 7<|im_end|>\n<|im_start|>assistant\n"
SECOND = FIRST + "42<|im_end|>\n<|im_start|>user\ntwice that<|im_end|>\n<|im_start|>assistant\n"


def test_every_answer_is_a_document_whose_prompt_is_all_that_came_before(tokenizer):
    assert made(tokenizer, {"messages": TURNS}) == [(FIRST, "42<|im_end|><eos>"), (SECOND, "84<|im_end|><eos>")]
    assert made(tokenizer, {"messages": TURNS}, turns="last") == [(SECOND, "84<|im_end|><eos>")]


def test_a_prompt_has_the_tokens_that_a_decoder_is_given(tokenizer):
    found = encoded(tokenizer, [{"messages": TURNS}])
    asked = tokenizer.apply_chat_template(TURNS[:2], add_generation_prompt=True, chat_template=CHATML)["input_ids"]
    assert found.tokens[: found.answers[0]].tolist() == asked


def test_the_end_of_a_turn_that_is_the_eos_is_not_doubled(tokenizer):
    template = CHATML.replace("<|im_end|>", "<eos>")
    assert made(tokenizer, {"messages": TURNS[1:3]}, template)[0][1] == "42<eos>"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": TURNS[1:3], "other": 1}, None),
        ({"conversations": [{"from": "human", "value": "6 times 7"}, {"from": "gpt", "value": "42"}]}, None),
        ({"prompt": "6 times 7", "completion": "42"}, None),
        ({"prompt": TURNS[1:2], "completion": TURNS[2:3]}, None),
        ({"question": "6 times 7", "answer": "42"}, {"prompt": "question", "completion": "answer"}),
        ({"dialog": TURNS[1:3]}, {"messages": "dialog"}),
    ],
)
def test_every_form_of_a_conversation_is_read(row, columns, tokenizer):
    ((prompt, answer),) = made(tokenizer, row, columns=columns)
    assert prompt == "<|im_start|>user\n6 times 7<|im_end|>\n<|im_start|>assistant\n" and answer == "42<|im_end|><eos>"


def test_a_template_that_forgets_is_learned_as_it_decodes(tokenizer):
    turns = [dict(turn) for turn in TURNS[1:]]
    turns[1]["content"], turns[3]["content"] = "<think>six sevens</think>42", "<think>42 again</think>84"
    (first, second) = made(tokenizer, {"messages": turns}, FORGETS)
    assert first[1].startswith("<think>six sevens</think>42") and "six sevens" not in second[0]
    assert second[1].startswith("<think>42 again</think>84")


def test_an_answer_that_the_template_marks_is_taken_as_marked(tokenizer):
    assert made(tokenizer, {"messages": TURNS[1:]}, MARKED) == [
        ("U:6 times 7\nA:", "42!<eos>"),
        ("U:6 times 7\nA:42!\nU:twice that\nA:", "84!<eos>"),
    ]


def test_completions_of_prompts_as_they_stand_need_no_template(tokenizer):
    assert made(tokenizer, {"prompt": "a=", "completion": "b"}, PLAIN) == [("a=", "b<eos>")]


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_what_a_message_spells_are_characters(template, tokenizer):
    row = {"prompt": " say <eos> and <|im_end|> ", "completion": "<|im_start|>!<eos> yes"}
    (document,) = [encoded(tokenizer, [row], template)]
    special = [tokenizer.convert_ids_to_tokens(int(i)) for i in document.tokens if i in tokenizer.all_special_ids]
    ((prompt, answer),) = made(tokenizer, row, template)
    assert "say <eos> and <|im_end|>" in prompt and "<|im_start|>!<eos> yes" in answer
    expected = ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<eos>"]
    assert special == (expected if template == CHATML else ["<eos>"])


@pytest.mark.parametrize(
    ("row", "template", "message"),
    [
        ({"text": "a"}, CHATML, "row 2 of chat.jsonl holds no conversation .* the columns \\['text'\\]"),
        ({"messages": [{"role": "user"}, {"content": "b"}]}, CHATML, "row 2 of chat.jsonl has no role .* in turn 2"),
        ({"messages": TURNS[1:3]}, "{{ raise_exception('no') }}", "cannot render row 2 of chat.jsonl: .*no"),
        ({"messages": TURNS[1:3]}, UNSTABLE, "does not begin an answer as it asks"),
        ({"messages": TURNS}, PLAIN, "row 2 of chat.jsonl has 3 turns: data.template=plain needs"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(row, template, message, tokenizer):
    first = {"messages": [{"role": "user", "content": "never answered"}]}
    with pytest.raises(ValueError, match=message):
        encoded(tokenizer, [first, row], template)


def chat(tokenizer, tmp_path, rows, **options):
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Chat(path=str(path), length=64, batch_size=4, val_rows=2, cache=str(tmp_path / "cache"), **options)
    tokenizer.chat_template = CHATML
    data.prepare(tokenizer, Block(8).tail, 32, 0)
    return data


def rows(number: int):
    def turns(n):
        asked = [{"role": "user", "content": f"{n} and {i}"} for i in range(n % 4 + 1)]
        return [turn for i, ask in enumerate(asked) for turn in (ask, {"role": "assistant", "content": str(n * i)})]

    return [{"messages": turns(n)} for n in range(number)] + [{"messages": turns(0)[:1]}]


def test_conversations_become_rows_of_whole_answers_and_those_that_do_not_fit_are_counted(tokenizer, tmp_path):
    data = chat(tokenizer, tmp_path, rows(80))
    (corpus,) = data.corpora.values()
    assert len(corpus) == 20 * (1 + 2 + 3 + 4) and corpus.record["left_out"] == {"without an answer to a prompt": 1}
    source = data.train_rows.sources[0]
    lengths = [len(ids) for ids in source.part]
    assert source.too_long == sum(length > 64 for length in lengths) > 0
    eos = tokenizer.eos_token_id
    for index in range(32):
        for document in data.train_rows.documents(index):
            assert document.ids[-1] == eos and document.kind == "answers" and len(document.ids) % 8 == 0
            said = [i for i, m in zip(document.ids, document.maskable, strict=True) if m and i != eos]
            assert tokenizer.decode(said).removesuffix("<|im_end|>").isdigit()
    assert set(data.validation_rows.kinds) == {"answers"}


def test_no_block_of_an_answer_holds_what_the_user_says_to_it(tokenizer, tmp_path):
    """A block is denoised with all its tokens in sight: behind an answer are its own EOS and nothing else."""
    data = chat(tokenizer, tmp_path, rows(80))
    for index in range(32):
        for document in data.train_rows.documents(index):
            behind = document.maskable.index(True)
            assert all(document.maskable[behind:])


def test_the_answers_of_one_conversation_are_on_one_side(tokenizer, tmp_path):
    (corpus,) = chat(tokenizer, tmp_path, rows(80)).corpora.values()
    train, val = (set(corpus.keys[corpus.part(split, "hash").numbers]) for split in ("train", "val"))
    assert train and val and not train & val


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turns": "first"}, "data.turns 'first' is unknown"),
        ({"columns": {"question": "q"}}, "data.columns .*question.* are unknown"),
        ({"template": "absent.jinja"}, "data.template 'absent.jinja' does not exist"),
        ({"held_out": "none"}, "data.held_out 'none' is unknown"),
        ({"num_proc": 0}, "data.num_proc 0 must be at least 1"),
    ],
)
def test_bad_options_are_named(options, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        chat(tokenizer, tmp_path, rows(3), **options)


def test_what_fits_no_row_and_a_tokenizer_without_a_template_are_refused(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(resolve("pkg://dlm/assets/tiny"))
    with pytest.raises(ValueError, match=r"has no chat template: data.template=FILE"):
        Conversations().encoder(tokenizer)
    long = [{"prompt": "a " * 100, "completion": str(n)} for n in range(40)]
    with pytest.raises(ValueError, match=r"all \d+ documents of the train split have more than data.length 64 tokens"):
        chat(tokenizer, tmp_path, long, template=PLAIN)
