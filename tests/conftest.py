"""Shared by all tests: no network, two threads, the golden checkpoints."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from helpers.paths import GOLDEN
from safetensors.torch import load_file

from wavcube_plugins import load_model


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    torch.set_num_threads(2)


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
