"""Which tests `make test` and `make test-fast` leave to `make test-all`, and which of their calls are checked."""

from common import ARCHITECTURES, EVERYDAY
from pairwise import enough
from typechecker import Sampling


def pytest_configure(config):
    """`make test-all`, which leaves nothing out, checks the shapes of every call, too."""
    Sampling.every_call = not config.option.markexpr


def pytest_runtest_setup(item):
    Sampling.test = item.nodeid.partition("[")[0]


def pytest_collection_modifyitems(items):
    """Mark as `grid` the cases that `make test` leaves to `make test-all`: those of architectures that are not everyday
    ones, and those of a product of two parameters or more that are not in its part (`pairwise.enough`). `make
    test-fast` takes the first case of every test, and leaves the others, marked as `more`."""
    products: dict[str, list] = {}
    for item in items:
        if hasattr(item, "callspec"):
            if {v for v in item.callspec.params.values() if isinstance(v, str)} & (ARCHITECTURES.keys() - EVERYDAY):
                item.add_marker("grid")
            elif not item.get_closest_marker("whole"):
                products.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in products.values():
        for item in cases[1:]:
            item.add_marker("more")
        values = [{name: repr(value) for name, value in item.callspec.params.items()} for item in cases]
        if len(values[0]) > 1:
            chosen = enough(values)
            for i, item in enumerate(cases):
                if i not in chosen:
                    item.add_marker("grid")
