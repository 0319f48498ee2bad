"""Generated tasks with one correct answer: abilities of the embedded parent that a conversion may destroy.

Mathematics (`add`, `running_sum`, `word_problem`), code (`list_eval`, `str_eval`, `brackets`) and symbols (`reverse`,
`sort`, `count`) have short answers; the families of `LONG` have answers of many steps. Letters are capitals, and every
digit, capital and punctuation mark is one token, so that a task tests the operation and not the tokenizer. The hash of
a prompt decides its split: no prompt occurs in two splits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from dlm.data import scenes
from dlm.data.example import Example, split_of
from dlm.data.families import parallel, sequential

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NAMES = ("Ruth", "Adam", "Sarah", "Jonah", "Esther", "Caleb", "Naomi", "Levi")
THINGS = ("figs", "sheep", "loaves", "stones", "fishes", "coins", "vines", "jars")


def add(rng: random.Random) -> tuple[str, str]:
    a, b = (rng.randrange(10 ** rng.randint(1, 3)) for _ in range(2))
    return f"{a}+{b}=", str(a + b)


def running_sum(rng: random.Random) -> tuple[str, str]:
    terms = [rng.randint(1, 9) for _ in range(rng.randint(3, 7))]
    totals = [sum(terms[: i + 1]) for i in range(len(terms))]
    return f"sum:{','.join(map(str, terms))}=", ",".join(map(str, totals))


def word_problem(rng: random.Random) -> tuple[str, str]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(2, 60), rng.randint(2, 39)
    if rng.random() < 0.5:
        verb = rng.choice(("buys", "finds"))
        return f"{name} has {a} {thing} and {verb} {b} more. How many {thing}?", f" {a}+{b}={a + b}"
    a, b = max(a, b), min(a, b)
    verb = rng.choice(("sells", "loses"))
    return f"{name} has {a} {thing} and {verb} {b}. How many {thing}?", f" {a}-{b}={a - b}"


def list_eval(rng: random.Random) -> tuple[str, str]:
    xs = [rng.randrange(10) for _ in range(rng.randint(3, 7))]
    i, j = sorted(rng.sample(range(len(xs) + 1), 2))
    text = str(xs).replace(" ", "")
    expression = rng.choice(
        (f"{text}[{i % len(xs)}]", f"{text}[{i}:{j}]", f"{text}[::-1]")
        + tuple(f"{name}({text})" for name in ("max", "min", "len", "sorted"))
    )
    return f">>>{expression}\n", str(eval(expression, {"__builtins__": {}}, BUILTINS)).replace(" ", "")  # noqa: S307


def str_eval(rng: random.Random) -> tuple[str, str]:
    word = "".join(rng.choices(LETTERS, k=rng.randint(2, 6)))
    other = "".join(rng.choices(LETTERS, k=rng.randint(1, 3)))
    i, j = sorted(rng.sample(range(len(word) + 1), 2))
    expression = rng.choice(
        (f"'{word}'+'{other}'", f"'{word}'[::-1]", f"'{word}'[{i % len(word)}]", f"'{word}'[{i}:{j}]")
        + (f"'{word}'*{rng.randint(2, 3)}", f"'{word}'.replace('{word[0]}','{other[0]}')")
    )
    return f">>>{expression}\n", repr(eval(expression, {"__builtins__": {}}, {}))  # noqa: S307


# Only expressions built one line above are evaluated, and these are their only builtins.
BUILTINS = {"max": max, "min": min, "len": len, "sorted": sorted}


def brackets(rng: random.Random) -> tuple[str, str]:
    closing, stack, text = {"(": ")", "[": "]", "{": "}"}, [], ""
    for _ in range(rng.randint(2, 10)):
        if stack and rng.random() < 0.35:
            text += closing[stack.pop()]
        else:
            stack.append(rng.choice("([{"))
            text += stack[-1]
    if not stack:
        stack.append("(")
        text += "("
    return f"close:{text}=", "".join(closing[b] for b in reversed(stack))


def reverse(rng: random.Random) -> tuple[str, str]:
    word = "".join(rng.choices(LETTERS, k=rng.randint(3, 10)))
    return f"reverse:{word}=", word[::-1]


def sort(rng: random.Random) -> tuple[str, str]:
    word = "".join(rng.choices(LETTERS, k=rng.randint(3, 10)))
    return f"sort:{word}=", "".join(sorted(word))


def count(rng: random.Random) -> tuple[str, str]:
    word = "".join(rng.choices("ABCDE", k=rng.randint(3, 10)))
    letter = rng.choice(word)
    return f"count {letter}:{word}=", str(word.count(letter))


FAMILIES: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    f.__name__: f for f in (add, running_sum, word_problem, list_eval, str_eval, brackets, reverse, sort, count)
}
LONG: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    f.__name__: f for f in (*sequential.FAMILIES, *parallel.FAMILIES)
}


def sample(family: str, split: str, rng: random.Random) -> Example:
    """A random example of `family` whose prompt belongs to `split`. The families of scenes have a prefix."""
    if family.startswith(scenes.PREFIX):
        return scenes.sample(family.removeprefix(scenes.PREFIX), split, rng)
    make = FAMILIES.get(family) or LONG[family]
    while True:
        prompt, answer = make(rng)
        if split_of(prompt) == split:
            return Example(family, prompt, answer)


def evaluation_set(split: str, per_family: int, seed: int = 0, families: Iterable[str] | None = None) -> list[Example]:
    """`per_family` distinct examples of each of the `families`, by default those of `FAMILIES`; equal arguments give
    equal examples."""
    examples: dict[str, Example] = {}
    for family in FAMILIES if families is None else families:
        rng, target = random.Random(f"{split}-{family}-{seed}"), len(examples) + per_family
        while len(examples) < target:
            example = sample(family, split, rng)
            examples.setdefault(example.key, example)
    return list(examples.values())
