"""A chapter over a grid of parameters: `python -m ibutils.sweeps book/02_depth.ipynb -p seed 0:16 --out sweeps/depth`.

Each point of the grid is one papermill run of the chapter, in a kernel of its own, on a worker of a Dask cluster: a
local one with a worker a core, or a running one (`--scheduler tcp://...`). OUT then holds

- `table.parquet`, `table.csv`: one row a point, in the order of the grid;
- `points/POINT.ipynb`: the executed chapter, `POINT.failed.ipynb` with its traceback where it raised;
- `points/POINT.json`: parameters, digest of all that decides the result, seconds, glued numbers and verdicts.

The chapter's cells and data travel with each task and its notebook comes back, so no shared disk is needed. `ibutils`
and the pinned requirements must be on every worker; that they are those of the book is checked before each run.
"""

import argparse
import fcntl
import hashlib
import itertools
import json
import logging
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import dask
import nbformat
import pandas as pd
import yaml
from distributed import CancelledError, Client, KilledWorker, LocalCluster, get_worker, wait
from distributed.comm import CommClosedError
from nbformat import NotebookNode
from tqdm import tqdm

from . import book
from .claims import MIME

DEATHS = 3  # local workers that a point may take with it and still be tried again
PATIENCE = 10  # seconds that a scheduler has to answer
GOES_ON = "the same command goes on from here"


def say(text: str) -> None:
    print(text, file=sys.stderr)


def canonical(value) -> str:
    return json.dumps(value, sort_keys=True)


def read_values(name: str, given, kind: str) -> list:
    """Values as the parameter's declared type. A text is read as on the command line, where 0:16 is a range."""
    values = []
    for value in [given] if isinstance(given, str) or not hasattr(given, "__iter__") else given:
        try:
            if isinstance(value, str) and kind == "int" and ":" in value:
                values += range(*map(int, value.split(":")))
            elif kind == "str" and not isinstance(value, str):
                raise ValueError
            else:
                plain = kind == "list" and not isinstance(value, str)
                values.append(json.loads(json.dumps(list(value) if plain else book.parse(str(value), kind))))
        except (ValueError, KeyError, TypeError, yaml.YAMLError):
            raise ValueError(f"parameter {name!r} must be {kind}, got {value!r}") from None
    return values


def product(grid: dict, kinds: dict[str, str]) -> dict[str, dict]:
    """{file name: point} of the grid's points, the last parameter fastest, each once."""
    lists = {name: read_values(name, given, kinds[name]) for name, given in grid.items()}
    if empty := [name for name, values in lists.items() if not values] or not lists:
        raise ValueError(f"the grid is empty: give {empty[0] if lists else 'a parameter'} at least one value")
    points = {}
    for values in itertools.product(*lists.values()):
        point = dict(zip(lists, values, strict=True))
        readable = re.sub(r"[^\w=.+-]+", "-", "_".join(f"{k}={v}" for k, v in point.items()), flags=re.ASCII)
        points[f"{readable[:80]}-{hashlib.sha256(canonical(point).encode()).hexdigest()[:12]}"] = point
    return points


def present(name: str, package: Path = Path(__file__).parent) -> str:
    """The version of Python or a package in this process; of ibutils, which changes between versions, a hash."""
    if name == "Python":
        return platform.python_version().rpartition(".")[0]
    if name == "ibutils":
        modules = [[path.name, path.read_text()] for path in sorted(package.glob("*.py"))]
        return hashlib.sha256(canonical(modules).encode()).hexdigest()[:12]
    try:
        return version(name).partition("+")[0]  # +cpu, +cu130: builds of one version
    except PackageNotFoundError:
        return "not installed"


def difference(expected: dict[str, str]) -> str:
    """The first thing that is another one on this worker, or ''."""
    wrong = (f"{name} {present(name)} and not {value}" for name, value in expected.items() if present(name) != value)
    return next(wrong, "")


def run_point(name: str, source: NotebookNode, data: dict[str, str], expected: dict[str, str], point: dict) -> dict:
    """On a worker: {"notebook": text of the executed chapter, "error": what it raised or '', "seconds", "values"}."""
    if wrong := difference(expected):
        return {"notebook": "", "error": f"worker {get_worker().address}: {wrong}"}
    os.environ.update(book.KERNEL_ENVIRONMENT, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    os.environ.pop("MPLBACKEND", None)  # where it is set, no figure reaches a notebook
    start, error = time.perf_counter(), ""
    with tempfile.TemporaryDirectory() as folder:
        for file, text in data.items():
            Path(folder, file).write_text(text)
        out = Path(folder, f"{name}.ipynb")
        try:
            book.execute(source, Path(folder), point, out=out)
        except Exception as raised:  # noqa: BLE001  whatever it is, it is this point's failure and no other's
            kind, text = getattr(raised, "ename", type(raised).__name__), getattr(raised, "evalue", raised)
            error = " ".join(f"{kind}: {text}".split())
            if not out.is_file():
                return {"notebook": "", "error": error}
        executed = nbformat.read(out, as_version=4)
    executed.metadata.papermill |= {"input_path": f"book/{name}.md", "output_path": None}
    result = {"notebook": nbformat.writes(executed), "error": error}
    return result | {"seconds": round(time.perf_counter() - start, 2), "values": values_of(executed)}


def values_of(executed: NotebookNode) -> dict[str, float | str]:
    """Glued numbers by name, verdicts by claim, intervals as `claim quantity setting median`, `... low`, `... high`."""
    values = {}
    for output in (output for cell in book.code_cells(executed) for output in cell.outputs):
        data = output.get("data", {})
        if glued := output.get("metadata", {}).get("scrapbook"):
            with suppress(KeyError, ValueError):  # no number: it is in the notebook only
                values[glued["name"]] = float(data[f"{glued['mime_prefix']}text/plain"])
        if claim := data.get(MIME):
            values[claim["id"]] = claim["verdict"]
            for found in claim["results"]:
                label = " ".join(filter(None, (claim["id"], found["quantity"], found["setting"])))
                values |= {f"{label} {end}": found[end] for end in ("median", "low", "high")}
    return values


def write(path: Path, content: bytes) -> None:
    """The whole file or nothing: under a hidden name, then renamed."""
    hidden = path.with_name(f".{path.name}.part")
    with hidden.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(path)


@contextmanager
def points_of(out: Path) -> Iterator[Path]:
    """The folder OUT/points, writable and written to by no other sweep."""
    try:
        (folder := out / "points").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"there is space")
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise ValueError(f"--out: cannot write into {out}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, however that ends
        except BlockingIOError:
            raise ValueError(f"--out: another sweep is writing into {out}") from None
        yield folder


def read_rows(folder: Path) -> dict[str, dict]:
    """{file name of a point: its row}, of the points whose notebook is there too."""
    rows = {}
    for path in folder.glob("*.json"):
        if path.with_suffix(".ipynb").is_file():
            with suppress(ValueError):  # not written by `write`: as good as none
                rows[path.stem] = json.loads(path.read_text())
    return rows


@contextmanager
def connect(scheduler: str | None, workers: int | None) -> Iterator[Client]:
    """A client of a running cluster, or of a local one that ends with the context."""
    if scheduler is None:
        options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
        settings = {
            "distributed.scheduler.allowed-failures": DEATHS,
            "distributed.worker.profile.enabled": False,
            # in a terminal Ctrl-C goes to every process, and what a kernel's death logs goes to the progress line
            "distributed.worker.preload": [
                "import logging, signal\nlogging.disable()\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"
            ],
        }
        with (
            dask.config.set(settings),
            LocalCluster(n_workers=workers, **options) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(scheduler, timeout=PATIENCE)
    except (OSError, ValueError):
        raise ConnectionError(f"no scheduler answers at {scheduler}") from None
    try:
        with client:
            if not client.nthreads():
                say(f"waiting for a worker of {scheduler}")
                client.wait_for_workers(1)
            yield client
    except (CommClosedError, CancelledError):
        raise ConnectionError(f"the scheduler at {scheduler} is gone; {GOES_ON}") from None


def results(client: Client, task: tuple, points: dict[str, dict], bar: tqdm) -> Iterator[tuple[str, dict]]:
    """(file name, result of `run_point`), in the order in which points finish.

    No more points are handed out than the cluster has threads: a worker that dies takes none with it that only waited,
    and one that joins is used at once.
    """
    queue, running = [*points][::-1], {}
    while queue or running:
        if client.cluster:
            client.cluster.scale(len(client.cluster.worker_spec))  # anew the workers that Dask has given up
        threads = max(1, sum(client.nthreads().values()))
        while queue and len(running) < threads:
            name = queue.pop()
            running[client.submit(run_point, *task, points[name], pure=False)] = name
        try:
            finished = wait([*running], timeout=1, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            finished = ()
        bar.refresh()
        for future in finished:
            try:
                result = future.result()
            except KilledWorker as error:
                result = {"notebook": "", "error": f"{error.allowed_failures + 1} workers died while running it"}
            yield running.pop(future), result


def sweep(
    chapter: str | Path, grid: dict, out: str | Path, scheduler: str | None = None, workers: int | None = None
) -> pd.DataFrame:
    """Run a chapter at every point of a grid and return the table, which is also written to `out`.

    `grid` is {parameter: values}. A row holds the point; what `values_of` finds in the executed page, but for what is
    called like a parameter; `digest`, of the chapter's code, its ibutils modules, claims, data and versions; and
    `error`, nan or what the chapter raised. Nothing in it depends on when or where the point ran.

    A point whose notebook and row are on disk with the present digest is not run again; one that failed is. `scheduler`
    is the address of a running cluster; without it `workers` processes are started here, one a core by default (in a
    script, call this under `if __name__ == "__main__":`).

    Raises ValueError for an unknown chapter or parameter, a value of another type, an empty grid, an `out` that cannot
    be written or holds another chapter, and a worker with another ibutils or other versions; ConnectionError where
    the scheduler does not answer or is lost; OSError where a result cannot be written. What is finished stays.
    """
    root, chapter, out = book.find_root(Path(chapter).absolute().parent), Path(chapter).stem, Path(out)
    if not (root / "book" / f"{chapter}.md").is_file():
        raise ValueError(f"unknown chapter {chapter!r}: the book has {', '.join(book.chapters(root))}")
    source = book.read_source(root, chapter)
    points, failed = product(grid, book.declared(chapter, source, grid)), {}
    pins = [line.partition("==")[0] for line in (root / "requirements.txt").read_text().splitlines() if "==" in line]
    expected = {name: present(name, root / "ibutils") for name in ("ibutils", "Python", *pins)}
    parts = [book.digest(root, chapter), [*expected.items()][1:]]
    digest = hashlib.sha256(canonical(parts).encode()).hexdigest()[:16]
    data = {path.name: path.read_text() for path in (*(root / "book").glob("*.json"), root / "book" / "claims.yml")}
    with points_of(out) as folder:
        rows = read_rows(folder)
        if others := {row["chapter"] for row in rows.values()} - {chapter}:
            raise ValueError(f"--out: {out} holds a sweep of {min(others)}, choose another folder for {chapter}")
        stale = [name for name in points if name in rows and rows[name]["digest"] != digest]
        rows = {name: rows[name] for name in points if name in rows and name not in stale}
        missing = {name: point for name, point in points.items() if name not in rows}
        with connect(scheduler, workers) if missing else nullcontext() as client:
            say(f"{chapter}: {len(points)} points, {len(rows)} of them finished before")
            if stale:
                say(f"{len(stale)} points are run again: the chapter, ibutils or a version changed")
            if missing:
                (out / "table.parquet").unlink(missing_ok=True)
                (out / "table.csv").unlink(missing_ok=True)
                for worker, wrong in client.run(difference, expected, on_error="return").items():
                    if wrong:
                        raise ValueError(f"worker {worker}: {wrong}")
            with tqdm(total=len(points), initial=len(rows), unit="point", smoothing=0, postfix="0 failed") as bar:
                for name, result in results(client, (chapter, source, data, expected), missing, bar):
                    notebook, failure = result.pop("notebook").encode(), result.pop("error")
                    (folder / f"{name}.failed.ipynb").unlink(missing_ok=True)  # of an earlier attempt
                    if notebook:
                        write(folder / f"{name}{'.failed' if failure else ''}.ipynb", notebook)
                    if failure:
                        failed[name] = failure
                    else:
                        rows[name] = {"chapter": chapter, "parameters": points[name], "digest": digest} | result
                        write(folder / f"{name}.json", json.dumps(rows[name], indent=1).encode())
                    bar.set_postfix_str(f"{len(failed)} failed", refresh=False)
                    bar.update()
        table = pd.DataFrame(
            {key: canonical(value) if isinstance(value, list) else value for key, value in point.items()}
            | {key: value for key, value in rows.get(name, {"values": {}})["values"].items() if key not in point}
            for name, point in points.items()
        ).assign(digest=digest, error=pd.Series([failed.get(name) for name in points], dtype="str"))
        write(out / "table.parquet", table.to_parquet(index=False))
        write(out / "table.csv", table.to_csv(index=False).encode())
    for name, failure in failed.items():
        report = folder / f"{name}.failed.ipynb"
        say(f"failed: {canonical(points[name])}: {failure}" + (f" ({report})" if report.is_file() else ""))
    say(f"{len(rows)} of {len(points)} points finished: {out / 'table.parquet'}, {out / 'table.csv'}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ibutils.sweeps", description="Run a chapter over a grid.")
    parser.add_argument("chapter", help="such as book/02_depth.ipynb")
    parser.add_argument("-p", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"), help="or start:stop")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the table and the notebooks")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a running Dask cluster, such as tcp://host:8786")
    parser.add_argument("--workers", type=int, metavar="N", help="processes started here, one a core by default")
    args = parser.parse_args()
    grid = {}
    for name, *values in args.p:
        grid.setdefault(name, []).extend(values)
    logging.disable()  # of Dask: what matters of it is said in a line
    try:
        table = sweep(args.chapter, grid, args.out, args.scheduler, args.workers)
    except (ValueError, ConnectionError) as error:
        say(f"error: {error}")
        return 2
    except OSError as error:
        say(f"error: cannot write into {args.out}: {error.strerror or error}; {GOES_ON}")
        return 1
    except KeyboardInterrupt:
        say(f"interrupted; {GOES_ON}")
        return 130
    return int(table["error"].notna().any())


if __name__ == "__main__":
    from ibutils.sweeps import main  # under its own name: tasks name their functions to the workers

    sys.exit(main())
