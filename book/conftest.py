"""What nbval is told about the notebooks: `pytest book/01_linear.ipynb` runs one."""

import os

import pytest

from ibutils.book import KERNEL_ENVIRONMENT

os.environ.update(KERNEL_ENVIRONMENT)
os.environ.pop("MPLBACKEND", None)


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        # the record of a claim has full precision, which differs across machines; its rounded line is compared
        collector.skip_compare += ("application/vnd.ibutils.claim+json",)


def pytest_runtest_setup(item):
    if item.cell.execution_count is None:  # nbval itself would pass it: nothing is stored to compare with
        pytest.fail("this cell has no stored run: execute the notebook with `python -m ibutils.book`", pytrace=False)
