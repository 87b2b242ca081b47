"""Shared by all tests: no network, few threads, the golden checkpoints, and how tests are divided among processes."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Read when torch is imported, here and in the subprocesses of tests.
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"

import pytest
import torch
from helpers.lazy_modules import forget_lazy_modules
from helpers.paths import GOLDEN, ROOT
from safetensors.torch import load_file

from wavcube_plugins import load_model


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep the tests of a file in one process, since they share fixtures, unless they have an `xdist_group`.

    Files with long tests come first, so that the short ones fill up the processes at the end.
    """
    forget_lazy_modules()  # before hypothesis's own hook
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(ROOT / "tests").as_posix()))
    long = {item.path for item in items if item.get_closest_marker("integration")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="module")
def one_thread():
    """For modules of thousands of tiny operations, where a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden_io():
    """Inputs and outputs of the reference implementation, for utterances `a` and `b`."""
    return load_file(GOLDEN / "io.safetensors")


@pytest.fixture(scope="session")
def golden_checkpoint():
    """The stage-2 checkpoint those values come from."""
    return GOLDEN / "official_stage2.ckpt"


@pytest.fixture
def golden_model(golden_checkpoint):
    return load_model(golden_checkpoint)
