"""What the artefacts show of hand-made results."""

from functools import cache

from study_tables import whole_study

from analysis.artefacts import artefacts
from analysis.pages.claims import paper_numbers
from analysis.pages.exhibits import Plot, Table

PAPER, MODULES = paper_numbers(), artefacts()


@cache
def whole_results(seeds=(0, 1, 2)):
    """The results of a whole study, which are made once and not changed."""
    return whole_study(seeds).results


def shown(results, name):
    return MODULES[name].exhibits(results, PAPER)


def tables(results, name):
    return [e.frame for e in shown(results, name) if isinstance(e, Table)]


def plots(results, name):
    return {e.name: e for e in shown(results, name) if isinstance(e, Plot)}
