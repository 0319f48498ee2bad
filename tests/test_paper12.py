"""The paper's twelve benchmarks, with made-up items in place of those that are downloaded."""

import datasets
import pytest
from common import config
from datasets import Dataset

pytest.importorskip("lm_eval")
from lm_eval import simple_evaluate
from lm_eval.api.model import LM

from dlm.harness.task_loading import load_tasks
from dlm.harness.tasks.minerva import is_right

HUMANEVAL = {"task_id": "0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n    assert f() == 1\n"}
MBPP = {"text": "Write one.", "prompt": "Write one.", "code": "x", "test_list": ["assert f() == 1"] * 3}
MMLU = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "x"}
ARC = {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B", "id": "0"}
HELLASWAG = {"ctx_a": "He", "ctx_b": "runs", "activity_label": "Run", "endings": ["a", "b", "c", "d"], "label": "1"}
WINOGRANDE = {"sentence": "The cat saw _ .", "option1": "it", "option2": "her", "answer": "2"}
ITEMS = {
    "evalplus/humanevalplus": HUMANEVAL | {"canonical_solution": "    return 1\n"},
    "google-research-datasets/mbpp": MBPP,
    "evalplus/mbppplus": MBPP,
    "openai/gsm8k": {"question": "How many?", "answer": "One.\n#### 1"},
    "EleutherAI/hendrycks_math": {"problem": "What is it?", "solution": "It is $\\boxed{\\frac{1}{2}}$."},
    "cais/mmlu": MMLU,
    "allenai/ai2_arc": ARC,
    "Rowan/hellaswag": HELLASWAG,
    "baber/piqa": {"goal": "Go", "sol1": "a", "sol2": "b", "label": 1},
    "allenai/winogrande": WINOGRANDE,
}
RIGHT = {"humaneval_plus": "    return 1", "gsm8k": " One.\n#### 1", "minerva_math": " The final answer is $0.5$."}
RIGHT |= {"mbpp": "def f(): return 1", "mbpp_plus": "def f(): return 1"}
# Examples in a question, new tokens of an answer, and the mark of an example: the paper's settings.
SETTINGS = {
    "humaneval": (0, 512, "def "),
    "humaneval_plus": (0, 512, "def f"),
    "mbpp": (3, 512, "[DONE]"),
    "mbpp_plus": (3, 512, "[DONE]"),
    "gsm8k": (8, 256, "#### 1"),
    "minerva_math": (4, 512, "I hope it is correct."),
}


def made_up(path, name=None, split=None, **_):
    row = {
        key: str(value) if key == "answer" and path == "openai/gsm8k" else value for key, value in ITEMS[path].items()
    }
    parts = {part: Dataset.from_list([row] * 12) for part in ("train", "validation", "dev", "test")}
    return parts[split] if split else parts


class Known(LM):
    """Gives right answers, and notes what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = {}

    def generate_until(self, requests):
        for request in requests:
            self.asked[request.task_name] = request.args
        return [RIGHT.get(r.task_name) or r.doc["canonical_solution"] for r in requests]

    def loglikelihood(self, requests):
        return [(-float(request.idx != 1), False) for request in requests]

    loglikelihood_rolling = None


def evaluated(names):
    tasks, model = load_tasks(names, None, True), Known()
    found = simple_evaluate(
        model, tasks=tasks.asked, task_manager=tasks.manager, limit=1, confirm_run_unsafe_code=True, bootstrap_iters=0
    )
    return found["results"], model.asked


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", made_up)


@pytest.mark.trains
def test_the_tasks_that_run_code_and_minerva_score_right_answers_as_right(offline):
    results, asked = evaluated(["mbpp", "mbpp_plus", "humaneval_plus", "minerva_math"])
    assert [results[name]["pass@1,program"] for name in ("mbpp", "mbpp_plus", "humaneval_plus")] == [1.0] * 3
    assert results["minerva_math"]["math_verify,none"] == 1.0
    for name in ("mbpp", "mbpp_plus", "minerva_math"):
        assert asked[name][0].count(SETTINGS[name][2]) == SETTINGS[name][0]


@pytest.mark.slow
def test_the_twelve_are_asked_with_the_papers_examples_and_lengths(offline):
    chosen = config("run=x", "evaluation=paper12", name="evaluate")
    results, asked = evaluated(list(chosen.evaluation.benchmarks))
    for name, (examples, new_tokens, mark) in SETTINGS.items():
        question, options = asked[name]
        asked_of = question.count(mark) - mark.startswith("def ")  # which stands in the question itself
        assert (name, asked_of, options["max_gen_toks"]) == (name, examples, new_tokens)
    right = {task: max((v for v in of.values() if isinstance(v, float)), default=None) for task, of in results.items()}
    likelihood = {"mmlu", "arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande"}
    assert {name: right[name] for name in SETTINGS.keys() | likelihood} == dict.fromkeys(
        SETTINGS.keys() | likelihood, 1.0
    )
    assert sum("mmlu_" in name for name in results) > 57


@pytest.mark.trains
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The final answer is $0.5$. I hope it is correct.", 1.0),
        ("so it is $\\boxed{\\frac{2}{4}}$", 1.0),
        ("The final answer is $2$. I hope it is correct.", 0.0),
        ("", 0.0),
    ],
)
def test_an_answer_to_minerva_is_compared_as_mathematics(answer, right):
    assert is_right({"solution": "It is $\\boxed{\\frac{1}{2}}$."}, [answer]) == {"math_verify": right}
