"""What several test files share."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """HTML of the real book, built from a copy with `jupyter-book build`."""
    copy = tmp_path_factory.mktemp("site") / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("_build", ".*", "*.egg-info"))
    build = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "-W", "-n", "--keep-going"]
    result = subprocess.run(build, check=False, cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    return copy / "_build" / "html"
