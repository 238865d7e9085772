"""Benchmarks, run on demand. They assert what is computed, never how long it took; the times go to book/cost.json."""

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TQDM_DISABLE="1")  # read when torch and tqdm are imported

import pytest
import results
import torch


@pytest.fixture(autouse=True)
def one_core(request):
    """Everything here shares one core, JAX's threads too. The whole book is asked what two are worth."""
    torch.set_num_threads(1)
    if not hasattr(os, "sched_setaffinity") or "all_cores" in request.keywords:
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture
def table():
    """`add(...)` rows; at the end of a benchmark they replace their like in book/cost.json, and no others."""
    found = results.Table()
    yield found
    found.write()
