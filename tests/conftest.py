"""What every test stands on: few threads, fixed seeds, a cache of its own, no downloads."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator

# Read by the thread pools and by matplotlib when they are first imported, which is after this file. Two workers of
# pytest-xdist share two cores: more threads than cores would wait for each other by spinning.
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ["MKL_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["MPLBACKEND"] = "Agg"
# A test that would download fails instead, everywhere alike.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

THREADS = int(os.environ["OMP_NUM_THREADS"])
torch.set_num_threads(THREADS)

# The same examples on every machine and run, and no limit on time: machines that run tests are busy machines.
hypothesis.settings.register_profile("ssole", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("ssole")


def pytest_collection_finish() -> None:
    """Modules and tests live as long as the process: Python's collector need not look at them again and again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`SSOLE_CACHE` in a temporary folder, so that tests neither find nor leave anything in the user's own cache.

    One for the session: digits-m takes seconds to build and is the same for everyone.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSOLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_is_flushed_to_the_disk() -> Iterator[None]:
    """`os.fsync` does nothing: it takes milliseconds, and files of tests need not survive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """Fixed seeds before each test; torch's global switches back to their defaults after it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may draw from the global state
    torch.manual_seed(0)
    yield
    if torch.are_deterministic_algorithms_enabled():  # looked at first: the call imports the compiler, seconds of work
        torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def fake_cuda_tensors() -> None:
    """Skip where torch is built for CUDA, finds no driver and asks it for a stream even for a fake tensor (2.8)."""
    try:
        with FakeTensorMode():
            _ = torch.empty(1, device="cuda")[None]
    except RuntimeError as error:
        pytest.skip(f"this torch has no fake CUDA tensors here: {str(error).splitlines()[0]}")
