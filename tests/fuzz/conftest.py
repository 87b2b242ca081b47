"""Sizes of the fuzz tests: `short` in the suite, always the same cases; `long` for `make fuzz`, new cases every time.

`--hypothesis-seed N` repeats a run, and a failure prints how to repeat its case.
"""

import os

import pytest
from helpers.lazy_modules import forget_lazy_modules
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True, "database": None}
settings.register_profile("short", max_examples=12, derandomize=True, **COMMON)
settings.register_profile("long", max_examples=int(os.environ.get("FUZZ_CASES", "150")), **COMMON)


def pytest_configure(config):
    if not config.getoption("hypothesis_profile", None):
        settings.load_profile("short")


@pytest.fixture(autouse=True)
def importable_modules():
    forget_lazy_modules()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all cases of a module: each writes over what the one before has left."""
    return tmp_path_factory.mktemp("fuzz")
