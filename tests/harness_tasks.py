"""The embedded families and cloze items as tasks of lm-evaluation-harness, in tests."""

import json

from dlm.evaluation import cloze

FAMILIES = """
task: {name}
custom_dataset: !function items.{name}
output_type: {kind}
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: {target}
target_delimiter: ""
{more}
num_fewshot: 0
metadata: {{version: 1.0}}
"""
GENERATION = (
    'generation_kwargs: {until: ["<never>"], do_sample: false, max_gen_toks: 24}\n'
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"
)
CHOICE = "doc_to_choice: options\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"
ITEMS = """
import json
from pathlib import Path
from datasets import Dataset

def read(name):
    path = Path(__file__).parent / f"{name}.json"
    return lambda **metadata: {"test": Dataset.from_list(json.loads(path.read_text()))}

embedded, options = read("embedded"), read("options")
"""


def texts_again(parent, items: list[cloze.Item]) -> list[cloze.Item]:
    """The items of which the tokens can be told from the texts, as the harness has only those."""
    encode = lambda text: parent.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    decode = parent.tokenizer.decode

    def is_same(item):
        context = decode(item.context)
        whole = [encode(context + decode(option)) for option in item.options]
        return (
            context == context.rstrip()
            and encode(context) == item.context
            and whole == [item.context + o for o in item.options]
        )

    return [item for item in items if is_same(item)]


def write_tasks(folder, parent, examples, items) -> None:
    """The embedded families and cloze items as tasks of the harness."""
    folder.mkdir()
    decode = parent.tokenizer.decode
    asked = [{"text": e.prompt, "target": e.answer} for e in examples]
    options = [
        {"text": decode(i.context), "options": [decode(o) for o in i.options], "target": i.answer} for i in items
    ]
    (folder / "embedded.json").write_text(json.dumps(asked))
    (folder / "options.json").write_text(json.dumps(options))
    (folder / "items.py").write_text(ITEMS)
    generation = {"name": "embedded", "kind": "generate_until", "target": '"{{target}}"', "more": GENERATION}
    choice = {"name": "options", "kind": "multiple_choice", "target": "target", "more": CHOICE}
    for task in (generation, choice):
        (folder / f"{task['name']}.yaml").write_text(FAMILIES.format(**task))
