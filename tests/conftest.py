"""Loads what the tests share. The process that only hands them out to workers does without: it would import for six
seconds while nothing else goes on."""

import gc
import signal

collect_ignore = ["gpu"]  # a project of its own: tests/gpu/pytest.ini

# A shell ignores Ctrl-C for what it starts in the background, and so would the runs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not hands_out or config.option.collectonly:  # nobody but this process would collect
        import common_fixtures
        import selection

        gc.set_threshold(100_000, 20, 20)  # a collection visits all that torch imported: of the time, a twelfth
        config.pluginmanager.register(common_fixtures)
        config.pluginmanager.register(selection)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # the modules and the tests stay
