"""B5: the whole book, in a copy: cold with default workers, cold with one, with nothing stale, and rendering alone.

Takes tens of minutes, and is collected only when named: pytest -c tests/benchmarks/pytest.ini tests/benchmarks/whole_book.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from results import in_turn, ratios, wall

ROOT = Path(__file__).parents[2]
ONE_WORKER = "import os, runpy; os.cpu_count = lambda: 1; runpy.run_module('ibutils.book', run_name='__main__')"
COMMANDS = {
    "cold, one worker": [sys.executable, "-c", ONE_WORKER, "--all"],
    "cold": [sys.executable, "-m", "ibutils.book", "--all"],
    "nothing stale": [sys.executable, "-m", "ibutils.book"],
    "rendering alone": [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        ".",
        "-W",
        "-n",
        "--keep-going",
        "--all",
    ],
}


def command(copy, line):
    subprocess.run(line, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, check=True, capture_output=True)


@pytest.mark.all_cores
def bench_whole_book(benchmark, table, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("_build", ".*", "*.egg-info"))
    works = {name: lambda line=line: command(copy, line) for name, line in COMMANDS.items()}
    times = in_turn(benchmark, works, rounds=1, warmup=0, seconds=wall)
    for name, found in times.items():
        table.add("book", "all pages", name, seconds=found, times_cold=ratios(found, times["cold"]))
