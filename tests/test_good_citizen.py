"""An exported folder does what transformers asks of a model: in a process that has never heard of us."""

import json
import subprocess
import sys
from itertools import chain

import pytest
import torch
from test_export import MAX_NEW_TOKENS, PROMPTS, make_run, perturbed
from transformers import AutoModelForCausalLM

from dlm.export import export

pytestmark = pytest.mark.trains

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}{% if add_generation_prompt %}={% endif %}"
)
# What a stranger would run: plain transformers, and nothing of ours to be found.
STRANGER = """
import json, sys
sys.modules["dlm"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TextStreamer, pipeline
folder = sys.argv[1]
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
prompts, new = json.load(sys.stdin)
ids = tokenizer(prompts[0], return_tensors="pt").input_ids

class Collects(TextStreamer):
    def __init__(self):
        super().__init__(tokenizer)
        self.parts, self.texts, self.ended = [], [], False
    def put(self, value):
        self.parts.append(value.tolist())
        super().put(value)
    def on_finalized_text(self, text, stream_end=False):
        self.texts.append(text)
        self.ended = stream_end

def drawn(**said):
    generator = torch.Generator().manual_seed(5)
    return model.generate(ids, max_new_tokens=new, do_sample=True, generator=generator, **said).tolist()

streamer = Collects()
plain = model.generate(ids, max_new_tokens=new, streamer=streamer, eos_token_id=None)
stopped = Collects()
words = tokenizer.decode(plain[0, ids.shape[1]:])[3:7]
said = {"stop_strings": words, "tokenizer": tokenizer, "streamer": stopped, "eos_token_id": None}
until = model.generate(ids, max_new_tokens=new, **said)
pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
chat = [{"role": "user", "content": prompts[0]}]
asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
one_by_one = [model.generate(tokenizer(p, return_tensors="pt").input_ids, max_new_tokens=new)[0] for p in prompts]
tokenizer.padding_side = "left"
batch = tokenizer(prompts, padding=True, return_tensors="pt")
json.dump({
    "prompt": ids[0].tolist(), "plain": plain[0].tolist(), "parts": streamer.parts, "ended": streamer.ended,
    "text": "".join(streamer.texts), "decoded": tokenizer.decode(plain[0]),
    "until": until[0].tolist(), "until_parts": stopped.parts, "words": words, "until_text": tokenizer.decode(until[0]),
    "drawn": drawn(), "three": drawn(num_return_sequences=3), "configured": drawn(
        generation_config=GenerationConfig(num_return_sequences=3, do_sample=True)),
    "pipe": pipe(prompts[0], max_new_tokens=new, return_full_text=False)[0]["generated_text"],
    "generated": tokenizer.decode(model.generate(ids, max_new_tokens=new)[0, ids.shape[1]:], skip_special_tokens=True),
    "chat": pipe(chat, max_new_tokens=new)[0]["generated_text"],
    "chat_text": pipe(asked, max_new_tokens=new, return_full_text=False)[0]["generated_text"], "asked": asked,
    "pad": tokenizer.pad_token_id, "rows": [row.tolist() for row in one_by_one],
    "inferred": model.generate(batch.input_ids, max_new_tokens=new, pad_token_id=tokenizer.pad_token_id).tolist(),
    "masked": model.generate(**batch, max_new_tokens=new).tolist(), "width": batch.input_ids.shape[1],
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parent = perturbed()
    parent.tokenizer.chat_template = TEMPLATE
    parent.tokenizer.pad_token = parent.tokenizer.convert_ids_to_tokens(1)
    root = tmp_path_factory.mktemp("citizen")
    return export(make_run(root / "run", parent), root / "out", threshold=0.2)


# The process takes six seconds, and that of test_export.py is an everyday one.
of_a_stranger = pytest.mark.slow


@pytest.fixture(scope="module")
def found(folder):
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder)],
        input=json.dumps([PROMPTS, MAX_NEW_TOKENS]),
        capture_output=True,
        text=True,
        cwd=folder.parent,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hf"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@of_a_stranger
def test_a_streamer_gets_the_prompt_and_then_every_block_when_it_is_finished(found):
    begin, parts = len(found["prompt"]), found["parts"]
    assert parts[0] == found["prompt"] and list(chain(*parts)) == found["plain"]
    ends = [begin + sum(map(len, parts[1 : n + 2])) for n in range(len(parts) - 1)]
    assert all(end % 8 == 0 for end in ends[:-1]) and ends[-1] == begin + MAX_NEW_TOKENS
    assert found["ended"] and found["text"].rstrip("\n") == found["decoded"]


@of_a_stranger
def test_a_streamer_is_never_given_what_a_stop_string_takes_away(found):
    assert list(chain(*found["until_parts"])) == found["until"] and len(found["until"]) < len(found["plain"])
    assert found["until_text"].endswith(found["words"]) or found["words"] in found["until_text"]


@of_a_stranger
def test_several_sequences_of_a_prompt_are_drawn_one_after_the_other(found):
    assert len(found["three"]) == 3 and found["three"][0][: len(found["drawn"][0])] == found["drawn"][0]
    assert len({tuple(row) for row in found["three"]}) == 3 and found["configured"] == found["three"]
    assert all(row[: len(found["prompt"])] == found["prompt"] for row in found["three"])


@of_a_stranger
def test_a_pipeline_takes_a_text_or_a_conversation(found):
    assert found["pipe"] == found["generated"]
    assert found["asked"] == f"user:{PROMPTS[0]};="
    assert found["chat"][0] == {"role": "user", "content": PROMPTS[0]}
    assert found["chat"][1] == {"role": "assistant", "content": found["chat_text"]}


@of_a_stranger
def test_padding_that_no_mask_names_is_found_by_its_token(found):
    assert found["inferred"] == found["masked"]
    for row, alone in zip(found["inferred"], found["rows"], strict=True):
        text = row[next(n for n, token in enumerate(row) if token != found["pad"]) :]
        assert text[: len(alone)] == alone


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"pad_token_id": 0, "eos_token_id": 0},
            "pad_token_id 0 is also an EOS, so padding shows only in attention_mask",
        ),
        ({"attention_mask": torch.ones(2, 3)}, r"attention_mask has shape \[2, 3\] and input_ids \[2, 4\]: give one"),
        ({"attention_mask": torch.ones(2, 1, 4, 4)}, r"attention_mask has shape \[2, 1, 4, 4\]"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]])}, "attention_mask has a hole: only padding"),
    ],
)
def test_padding_that_cannot_be_known_is_refused(said, message, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([[0, 5, 6, 7], [5, 6, 7, 8]]), max_new_tokens=2, **said)


def test_one_prompt_may_begin_with_the_token_that_pads(folder):
    """As in models whose only special token opens, ends and pads a text."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = torch.tensor([[0, 5, 6, 7]])
    said = {"max_new_tokens": 9, "pad_token_id": 0, "eos_token_id": 0}
    assert torch.equal(model.generate(ids, **said), model.generate(ids, torch.ones_like(ids), **said))
