"""Sweeps, `python -m ibutils.sweeps`, on a small book with a small ibutils: real workers, kernels and signals."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from ibutils import book, sweeps

ROOT = Path(__file__).parents[1]
PAGE = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# First

```{code-cell} python
:tags: [parameters]

what: str = "work"  # or how it fails
seed: int = 0
lr: float = 0.5
sizes: list = [1]
seconds: float = 0.0
```

```{code-cell} python
import os
import signal
import time
from pathlib import Path

import ibutils.losses

log = Path(os.environ["LOG"])
with log.open("a") as file:
    print(what, seed, lr, os.getppid(), os.getpid(), file=file)
times = log.read_text().count(f"{what} {seed} {lr} ")
if what == "raise" or (what == "raise-once" and times == 1):
    raise RuntimeError("diverged")
if what == "kill" or (what == "kill-once" and times == 1):
    os.kill(os.getppid(), signal.SIGKILL)
if what == "exit":
    os._exit(1)
time.sleep(seconds)
```

```{code-cell} python
def show(mime, data, **metadata):
    display({mime: data}, raw=True, metadata=metadata)


for name, value in {"loss": ibutils.losses.twice(seed), "seed": -1.0, "name": what}.items():
    prefix = "application/papermill.record/"
    show(f"{prefix}text/plain", repr(value), scrapbook={"name": name, "mime_prefix": prefix})
found = {"quantity": "rho", "setting": "late", "median": lr, "low": lr - 1, "high": lr + 1}
show("application/vnd.ibutils.claim+json", {"id": "first-claim", "verdict": "supported", "results": [found]})
```
"""
MINI = {
    "_toc.yml": "{format: jb-book, root: book/01_first, chapters: [{file: book/02_second}]}",
    "requirements.txt": "papermill==2.7.0\n",
    "book/01_first.md": PAGE,
    "book/02_second.md": PAGE,
    "book/claims.yml": "[]",
    "ibutils/__init__.py": "",
    "ibutils/claims.py": f'MIME = "{sweeps.MIME}"\n',
    "ibutils/losses.py": "def twice(x):\n    return 2.0 * x\n",
}

NO_PORT = ("--dashboard-address", "127.0.0.1:0")  # not the one and only 8787


def make(root):
    for name, text in MINI.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for module in ("book.py", "sweeps.py"):
        shutil.copy(ROOT / "ibutils" / module, root / "ibutils")
    (root / "log").touch()
    return root


@pytest.fixture
def mini(tmp_path):
    """A small book, by whose ibutils the processes run that are started in it."""
    return make(tmp_path / "mini")


def start(root, *command):
    """A process in a group of its own, as a shell starts it."""
    settings = {"PYTHONPATH": str(root), "LOG": str(root / "log"), "TQDM_DISABLE": "1"}
    settings |= {"MPLBACKEND": "agg", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=root,
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if "ibutils.sweeps" in command else subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def command(grid, out="out", *options):
    """-p NAME VALUE ... of 'name value ...; name value ...'"""
    parameters = [word for part in grid.split(";") for word in ("-p", *part.split())]
    return "-m", "ibutils.sweeps", "book/01_first.ipynb", *parameters, "--out", out, *options


def sweep(root, *arguments):
    """(exit status, lines said)"""
    with ended(start(root, *command(*arguments))) as process:
        _, said = process.communicate(timeout=300)
    return process.returncode, said.splitlines()


def finished(root, out="out"):
    """File names of the points that have both of their files."""
    files = {path.name for path in (root / out / "points").glob("*")}
    return {name.removesuffix(".json") for name in files if name.replace(".json", ".ipynb") in files - {name}}


def runs(root):
    """How often each (what, seed, lr) was begun."""
    return Counter(tuple(line.split()[:3]) for line in (root / "log").read_text().splitlines())


def table(root, out="out"):
    return pd.read_parquet(root / out / "table.parquet")


def until(true, seconds=300):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextmanager
def ended(process):
    """The process, killed with its group and waited for at the end."""
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(a small book, address of a scheduler with two workers): real processes, as README.md starts them."""
    root = make(tmp_path_factory.mktemp("cluster") / "mini")
    file = root / "scheduler.json"
    dask = Path(sys.executable).with_name("dask")
    local = (*NO_PORT, "--scheduler-file", file)
    with ended(start(root, dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *local)):
        until(lambda: file.is_file() and file.read_text().endswith("}"))
        worker = (dask, "worker", "--nworkers", "2", "--nthreads", "1", "--host", "127.0.0.1", *local)
        with ended(start(root, *worker)):
            yield root, json.loads(file.read_text())["address"]


def on(cluster, grid, out, *options):
    root, address = cluster
    return sweep(root, grid, out, "--scheduler", address, *options)


def test_a_sweep_killed_at_random_moments_goes_on_and_ends_with_the_same_table(mini, cluster):
    grid, moment = "seed 0:5; lr 0.5 0.25; seconds 0.5", random.Random(0)
    frozen = {}  # finished at a kill -> how often it had been begun
    for number, victim in enumerate((os.kill, os.killpg, os.kill, os.killpg)):  # what knows of all others, or all of it
        goal = len(finished(mini)) + (number > 0)  # the first kill is while it starts
        with ended(start(mini, *command(grid))) as process:
            until(lambda goal=goal: len(finished(mini)) >= goal)
            time.sleep(moment.random() / 2)
            victim(process.pid, signal.SIGKILL)
            process.wait()
            frozen |= {name: runs(mini)[point(name)] for name in finished(mini)}
    assert 3 <= len(frozen) < 10
    status, said = sweep(mini, grid)
    assert status == 0
    assert said == [
        f"01_first: 10 points, {len(frozen)} of them finished before",
        "10 of 10 points finished: out/table.parquet, out/table.csv",
    ]
    assert frozen == {name: runs(mini)[point(name)] for name in frozen}
    assert not list(mini.glob("out/points/.*"))
    assert on(cluster, grid, "whole")[0] == 0  # elsewhere and in one go
    pd.testing.assert_frame_equal(table(mini), table(cluster[0], "whole"))
    assert (mini / "out/table.csv").read_bytes() == (cluster[0] / "whole/table.csv").read_bytes()
    kernels = [int(line.split()[-1]) for line in (mini / "log").read_text().splitlines()]
    until(lambda: not [pid for pid in kernels if Path(f"/proc/{pid}").exists()], seconds=60)


def point(name):
    """The beginning of a point's line in the log, from its file name."""
    return "work", *re.match(r"seed=(\d+)_lr=([\d.]+)_", name).groups()


def test_the_table_has_a_row_a_point_in_the_order_of_the_grid(cluster):
    root, _ = cluster
    assert on(cluster, "seed 2 1 2; sizes [1,2] []", "rows")[0] == 0
    found = table(root, "rows")
    assert found.seed.tolist() == [2, 2, 1, 1]  # 2, given twice, is one
    assert found.sizes.tolist() == ["[1, 2]", "[]"] * 2
    assert found.loss.tolist() == [4, 4, 2, 2]  # and the glued seed, -1, is left out
    assert found["first-claim"].tolist() == ["supported"] * 4
    assert found["first-claim rho late low"].tolist() == [-0.5] * 4
    assert found.error.isna().all() and found.digest.nunique() == 1
    assert list(found)[:2] == ["seed", "sizes"] and list(found)[-2:] == ["digest", "error"] and "name" not in found
    pd.testing.assert_frame_equal(
        pd.read_csv(root / "rows/table.csv").drop(columns="error"), found.drop(columns="error")
    )
    for name in finished(root, "rows"):
        row = json.loads((root / f"rows/points/{name}.json").read_text())
        notebook = nbformat.read(root / f"rows/points/{name}.ipynb", 4)
        assert notebook.metadata.papermill.parameters == row["parameters"]
        assert row["seconds"] > 0 and row["values"]["loss"] == 2 * row["parameters"]["seed"]


def test_the_same_command_twice_runs_nothing_twice_and_an_extended_grid_only_what_is_new(cluster):
    root, _ = cluster
    grid = "what work; lr 8 8.0; seed"
    assert on(cluster, f"{grid} 0:2", "twice")[0] == 0
    files = {path: path.read_bytes() for path in (root / "twice").rglob("*.*")}
    status, said = sweep(root, f"{grid} 0:2", "twice", "--scheduler", "tcp://127.0.0.1:9")  # needs none
    assert (status, said[0]) == (0, "01_first: 2 points, 2 of them finished before")
    assert {path: path.read_bytes() for path in (root / "twice").rglob("*.*")} == files
    assert on(cluster, f"{grid} 1:4", "twice")[0] == 0
    assert [runs(root)["work", str(seed), "8.0"] for seed in range(4)] == [1, 1, 1, 1]
    assert table(root, "twice").seed.tolist() == [1, 2, 3]  # of the present grid only
    damaged = sorted((root / "twice/points").glob("*.*"))[2:6]  # a notebook and a row are missing, a row is cut
    damaged[0].unlink(), damaged[3].write_text(damaged[3].read_text()[:40])
    assert on(cluster, f"{grid} 1:4", "twice")[0] == 0
    assert [runs(root)["work", str(seed), "8.0"] for seed in range(4)] == [1, 2, 2, 1]


def test_a_change_of_chapter_or_ibutils_runs_again_what_depends_on_it_and_says_so(cluster):
    root, _ = cluster
    again = "2 points are run again: the chapter, ibutils or a version changed"
    page, losses, claims = (root / name for name in ("book/01_first.md", "ibutils/losses.py", "ibutils/claims.py"))
    before = {path: path.read_text() for path in (page, losses, claims)}
    try:
        assert on(cluster, "lr 3; seed 1 2", "stale")[0] == 0
        losses.write_text("def twice(x):\n    return x + x + 0.5\n")
        status, said = on(cluster, "lr 3; seed 1 2", "stale")
        assert status == 0 and said[1] == again
        assert table(root, "stale").loss.tolist() == [2.5, 4.5]
        page.write_text(before[page].replace("twice(seed)", "twice(seed) + 1"))
        assert on(cluster, "lr 3; seed 1 2", "stale")[1][1] == again
        assert table(root, "stale").loss.tolist() == [3.5, 5.5]
        page.write_text(page.read_text().replace("# First", "# First page"))  # prose
        claims.write_text(before[claims] + "# used by no chapter\n")
        assert on(cluster, "lr 3; seed 1 2", "stale")[1][0].endswith("2 of them finished before")
    finally:
        for path, text in before.items():
            path.write_text(text)


def test_failures_keep_their_notebooks_and_stop_no_other_point(mini, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT", "1ms")  # Dask gives up on any that dies
    status, said = sweep(mini, "what raise kill work kill-once exit; seed 1")
    assert status == 1
    found = table(mini).set_index("what")
    assert found.error.dropna().to_dict() == {
        "raise": "RuntimeError: diverged",
        "kill": f"{sweeps.DEATHS + 1} workers died while running it",
        "exit": "DeadKernelError: Kernel died",
    }
    assert found.loss["work"] == found.loss["kill-once"] == 2 and found.loss[["raise", "kill", "exit"]].isna().all()
    assert 1 <= runs(mini)["kill", "1", "0.5"] <= sweeps.DEATHS + 1  # a worker may die before it begins
    assert runs(mini)["kill-once", "1", "0.5"] >= 2
    (report,) = mini.glob("out/points/what=raise*.failed.ipynb")
    (error,) = [
        o for cell in nbformat.read(report, 4).cells for o in cell.get("outputs", []) if o.output_type == "error"
    ]
    assert error.evalue == "diverged" and "Traceback" in "".join(error.traceback)
    shown = report.relative_to(mini)
    assert f'failed: {{"seed": 1, "what": "raise"}}: RuntimeError: diverged ({shown})' in said
    assert said[-1].startswith("2 of 5 points finished") and len(said) == 5
    assert len(finished(mini)) == 2


def test_what_failed_is_tried_again(cluster):
    root, _ = cluster
    assert on(cluster, "what raise-once work", "once")[0] == 1
    assert len(list(root.glob("once/points/*.failed.ipynb"))) == 1
    assert on(cluster, "what raise-once work", "once")[0] == 0
    assert not list(root.glob("once/points/*.failed.ipynb"))
    assert table(root, "once").error.isna().all()
    assert runs(root)["raise-once", "0", "0.5"] == 2


def test_points_of_a_worker_that_dies_mid_run_finish_elsewhere(cluster):
    root, address = cluster
    pids = lambda: [int(line.split()[3]) for line in (root / "log").read_text().splitlines() if " 0.125 " in line]
    third = start(root, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1", *NO_PORT)
    with ended(third):
        joined = f"from distributed import Client; Client('{address}').wait_for_workers(3)"
        subprocess.run([sys.executable, "-c", joined], check=True, timeout=300)
        with ended(start(root, *command("lr 0.125; seed 0:5; seconds 1", "died", "--scheduler", address))) as run:
            until(lambda: third.pid in pids())
            os.kill(third.pid, signal.SIGKILL)
            _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert table(root, "died").loss.tolist() == [0, 2, 4, 6, 8]
    assert pids().count(third.pid) == 1
    assert sum(runs(root)["work", str(seed), "0.125"] for seed in range(5)) == 6


def test_ctrl_c_says_one_line_and_leaves_what_goes_on(mini, cluster):
    grid = "seed 0:6; seconds 0.4"
    with ended(start(mini, *command(grid))) as process:
        until(lambda: finished(mini))
        os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to the workers as well
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert said.splitlines()[1:] == ["interrupted; the same command goes on from here"]
    before = finished(mini)
    assert 0 < len(before) < 6 and not (mini / "out/table.csv").exists()
    status, said = sweep(mini, grid, "out", "--scheduler", cluster[1])
    assert status == 0 and said[0] == f"01_first: 6 points, {len(before)} of them finished before"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line_and_what_is_finished_stays(cluster):
    root, _ = cluster
    assert on(cluster, "seed 0", "full")[0] == 0
    before = finished(root, "full")
    (name,) = sweeps.product({"seed": [1]}, {"seed": "int"})
    (root / f"full/points/.{name}.json.part").symlink_to("/dev/full")
    status, said = on(cluster, "seed 0:3", "full")
    assert status == 1
    assert said[1:] == ["error: cannot write into full: No space left on device; the same command goes on from here"]
    assert before <= finished(root, "full") and name not in finished(root, "full")
    (root / f"full/points/.{name}.json.part").unlink()
    assert on(cluster, "seed 0:3", "full")[0] == 0
    assert table(root, "full").loss.tolist() == [0, 2, 4]


def test_a_scheduler_that_is_lost_is_one_line(mini):
    dask, file = Path(sys.executable).with_name("dask"), mini / "scheduler.json"
    scheduler = start(mini, dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *NO_PORT, "--scheduler-file", file)
    with ended(scheduler):
        until(lambda: file.is_file() and file.read_text().endswith("}"))
        address = json.loads(file.read_text())["address"]
        with ended(start(mini, *command("seed 0:6; seconds 2", "out", "--scheduler", address))) as process:
            assert process.stderr.readline() == f"waiting for a worker of {address}\n"
            worker = start(mini, dask, "worker", "--nthreads", "1", "--no-nanny", *NO_PORT, "--scheduler-file", file)
            with ended(worker):
                until(lambda: runs(mini))
                os.killpg(scheduler.pid, signal.SIGKILL)
                _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert said.splitlines()[1:] == [f"error: the scheduler at {address} is gone; the same command goes on from here"]


def test_a_worker_with_another_ibutils_or_version_is_named_before_anything_runs(mini, cluster):
    _, address = cluster
    (mini / "ibutils/losses.py").write_text("def twice(x):\n    return 3.0 * x\n")
    status, said = sweep(mini, "seed 0:2", "out", "--scheduler", address)
    assert status == 2 and re.fullmatch(r"error: worker tcp://\S+: ibutils \w+ and not \w+", said[-1])
    assert sweeps.difference({"Python": "3.2"}) == f"Python {sys.version_info[0]}.{sys.version_info[1]} and not 3.2"
    assert sweeps.difference({"papermill": "2.7.0", "no-such": "1.0"}) == "no-such not installed and not 1.0"
    assert sweeps.difference({"ibutils": sweeps.present("ibutils", ROOT / "ibutils"), "papermill": "2.7.0"}) == ""
    assert not runs(mini) and not finished(mini) and not list(mini.glob("out/points/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("01_first -p sead 1 --out out", "unknown parameter 'sead', did you mean 'seed'? 01_first has what, seed, lr"),
        ("01_first -p seed 1 2.5 --out out", "parameter 'seed' must be int, got '2.5'"),
        ("01_first -p seed 0:x --out out", "parameter 'seed' must be int, got '0:x'"),
        ("01_first -p lr 0:3 --out out", "parameter 'lr' must be float, got '0:3'"),
        ("01_first -p sizes 3 --out out", "parameter 'sizes' must be list, got '3'"),
        ("01_first -p sizes [2020-01-01] --out out", "parameter 'sizes' must be list, got '[2020-01-01]'"),
        ("01_first --out out", "the grid is empty: give a parameter at least one value"),
        ("01_first -p seed --out out", "the grid is empty: give seed at least one value"),
        ("01_first -p lr 1 -p seed 5:5 --out out", "the grid is empty: give seed at least one value"),
        ("03_third -p seed 1 --out out", "unknown chapter '03_third': the book has 01_first, 02_second"),
        ("/nowhere/01_first.ipynb -p seed 1 --out out", "no book in /nowhere or above: run this in the folder that"),
        ("book/01_first.md -p seed 1 --out log", "--out: cannot write into log: Not a directory"),
        ("book/01_first.md -p seed 1 --out log/out", "--out: cannot write into log/out: Not a directory"),
        ("01_first -p seed 1 --out second", "--out: second holds a sweep of 02_second, choose another folder"),
        ("01_first -p seed 1 --out busy", "--out: another sweep is writing into busy"),
        ("01_first -p seed 1 --out out --scheduler tcp://127.0.0.1:9", "no scheduler answers at tcp://127.0.0.1:9"),
        ("01_first -p seed 1 --out out --scheduler nonsense", "no scheduler answers at nonsense"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(mini, monkeypatch, capsys, arguments, message):
    (mini / "second/points").mkdir(parents=True)
    (mini / "second/points/a.json").write_text('{"chapter": "02_second", "digest": "0"}')
    (mini / "second/points/a.ipynb").touch()
    (mini / "busy").mkdir()
    monkeypatch.chdir(mini)
    monkeypatch.setattr(sys, "argv", ["sweeps", *arguments.split()])
    monkeypatch.setattr(sweeps, "PATIENCE", 0.5)
    monkeypatch.setattr(sweeps.logging, "disable", lambda: None)  # it would outlive the test
    before = [path for path in mini.rglob("*") if path.is_file()]
    with (mini / "busy/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweeps.main() == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {message}")
    made = {path for path in mini.rglob("*") if path.is_file()} - set(before)
    assert {path.name for path in made} <= {".lock"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(mini):
    (mini / "out").mkdir(mode=0o555)
    assert sweep(mini, "seed 1") == (2, ["error: --out: cannot write into out: Permission denied"])


@pytest.mark.parametrize(
    ("given", "kind", "values"),
    [
        (["1", "4:6", "6:0:-3"], "int", [1, 4, 5, 6, 3]),
        (range(2), "int", [0, 1]),
        ([1, 0.5, "1e-3"], "float", [1.0, 0.5, 1e-3]),
        (["gd", "0:2"], "str", ["gd", "0:2"]),
        ("adam", "str", ["adam"]),
        ([True, "False"], "bool", [True, False]),
        (["[1, a]", [2, 1e-7], ()], "list", [[1, "a"], [2, 1e-7], []]),
        (["[1, 2]", [3]], "list[float]", [[1.0, 2.0], [3.0]]),
    ],
)
def test_values_are_taken_as_texts_and_as_python_values(given, kind, values):
    read = sweeps.read_values("name", given, kind)
    assert read == values and [type(value) for value in read] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("value", "kind"), [(True, "int"), (1.0, "int"), (True, "float"), (3, "str"), (1, "bool"), (3, "list")]
)
def test_a_python_value_of_another_type_is_refused(value, kind):
    with pytest.raises(ValueError, match=f"parameter 'name' must be {kind}, got {value!r}"):
        sweeps.read_values("name", [value], kind)


def test_points_have_names_that_any_file_system_takes_and_no_two_the_same():
    grid = {"seed": [1, 2], "optimizers": [["GD", "/../Adam: ö"], ["x" * 300]], "depths": [[1, 2], [1, 2, 3]]}
    points = sweeps.product(grid, {"seed": "int", "optimizers": "list", "depths": "list[int]"})
    assert len(points) == len({name.lower() for name in points}) == 8
    for name in points:
        assert re.fullmatch(r"seed=[12]_optimizers=[\w=.+-]{,70}-[0-9a-f]{12}", name, flags=re.ASCII)


def test_a_real_chapters_numbers_and_verdicts_are_found():
    values = sweeps.values_of(book.read_executed(ROOT, "02_depth"))
    assert values["runs"] == 32.0 and 0 < values["gd-torch"] < 1
    assert values["depth-adam"] in ("supported", "refuted", "inconclusive")
    low, median, high = (values[f"depth-adam difference log-loss -10 {end}"] for end in ("low", "median", "high"))
    assert -1 <= low <= median <= high <= 1
