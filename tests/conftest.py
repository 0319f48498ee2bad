"""Loads what the tests share. The process that only hands them out to workers does without: it would import for six
seconds while nothing else goes on."""

import signal

collect_ignore = ["gpu"]  # a project of its own: tests/gpu/pytest.ini

# A shell ignores Ctrl-C for what it starts in the background, and so would the runs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not hands_out:
        import common_fixtures
        import selection

        config.pluginmanager.register(common_fixtures)
        config.pluginmanager.register(selection)
