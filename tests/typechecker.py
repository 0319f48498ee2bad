"""What checks the shapes and types of annotations under test: beartype, taking an int where a float is annotated.

A check takes longer than most functions that it checks: half of the time of decoding. So `make test` checks of each
function the first call in the cases of each test and then one in `ONE_IN`; `make test-all` checks all.
"""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from functools import partial, wraps

import jaxtyping
import torch
from beartype import BeartypeConf, beartype

ONE_IN = 64

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
always = jaxtyping.jaxtyped


class Sampling:
    """Which test runs, and whether every call is checked."""

    test = ""
    every_call = False


def sampled(function, checked):
    """A function whose calls are checked as `Sampling` says."""
    test, calls = None, 0

    @wraps(function)
    def call(*args, **kwargs):
        nonlocal test, calls
        if Sampling.every_call or torch.compiler.is_compiling():  # a count would be compiled into the graph
            return checked(*args, **kwargs)
        if test != Sampling.test:
            test, calls = Sampling.test, 0
        calls += 1
        return (checked if calls % ONE_IN == 1 else function)(*args, **kwargs)

    return call


def jaxtyped(fn=None, *, typechecker):
    """As jaxtyping's, which its import hook decorates functions and classes with."""
    if fn is None:
        return partial(jaxtyped, typechecker=typechecker)
    if inspect.isfunction(fn):
        return sampled(fn, always(fn, typechecker=typechecker))
    if is_dataclass(fn) and not hasattr(fn.__init__, "__wrapped__"):  # an inherited one is checked already
        fn.__init__ = sampled(fn.__init__, always(fn.__init__, typechecker=typechecker))
        return fn
    return always(fn, typechecker=typechecker)
