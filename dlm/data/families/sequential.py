"""Tasks with long answers in which a step needs the result of the step before: their steps cannot be made at once.

Every step is a look-up in a table of a few hundred cases at most, and the steps are joined by `;`. Terms carry letters
as labels, so that the next term is found by its label and not by counting.
"""

from __future__ import annotations

import random

from dlm.data.families.labels import LETTERS, labelled


def totals(rng: random.Random) -> tuple[str, str]:
    """Running totals modulo 100."""
    terms = [rng.randint(1, 9) for _ in range(rng.randint(11, 16))]
    results = [f"{sum(terms[: i + 1]) % 100:02d}" for i in range(len(terms))]
    return f"totals:{''.join(labelled(terms))}=", ";".join(labelled(results))


def columns(rng: random.Random) -> tuple[str, str]:
    """Long addition, column by column from the right: each step is the carry and the digit."""
    digits = [(rng.randrange(10), rng.randrange(10)) for _ in range(rng.randint(11, 16))]
    sums, carry = [], 0
    for a, b in digits:
        sums.append(f"{a + b + carry:02d}")
        carry = (a + b + carry) // 10
    return f"columns:{''.join(labelled(f'{a}{b}' for a, b in digits))}=", ";".join(labelled(sums))


def insertion(rng: random.Random) -> tuple[str, str]:
    """Insertion sort: each step is the sorted list of the letters so far."""
    letters = rng.sample(LETTERS, rng.randint(8, 9))
    return f"insert:{''.join(letters)}=", ";".join("".join(sorted(letters[: i + 1])) for i in range(len(letters)))


def recurrence(rng: random.Random) -> tuple[str, str]:
    """x ← a + x modulo 10, with the terms of every step written out."""
    x, terms = rng.randrange(10), [rng.randrange(10) for _ in range(rng.randint(7, 11))]
    prompt, steps = f"x={x}:{''.join(labelled(terms))}=", []
    for a in terms:
        steps.append(f"{a}+{x}={(a + x) % 10}")
        x = (a + x) % 10
    return prompt, ";".join(labelled(steps))


def ledger(rng: random.Random) -> tuple[str, str]:
    """What is left of at most nine after each gain and loss, in words that are certain once their step is."""
    amount = rng.randint(0, 9)
    prompt, changes, steps = f"ledger {amount}:", [], []
    for _ in range(rng.randint(5, 8)):
        gains = amount == 0 or (amount < 9 and rng.random() < 0.5)
        change = rng.randint(1, 9 - amount if gains else amount)
        amount += change if gains else -change
        changes.append(f"{change}{'+' if gains else '-'}")
        steps.append(f"{change} {'more makes' if gains else 'less leaves'} {amount}")
    return f"{prompt}{''.join(labelled(changes))}=", ";".join(labelled(steps))


FAMILIES = (totals, columns, insertion, recurrence, ledger)
