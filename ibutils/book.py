"""Run the stale chapters, then render the book: `python -m ibutils.book [chapter ...] [--all]`.

A chapter is book/NAME.md, its source, and book/NAME.ipynb, the same cells with the outputs of their last run.
The notebook keeps a digest of what was run. The chapter is stale once its code cells, the ibutils modules they use, the
claims or data files they name or the pinned versions are others; a change of prose is copied over and runs nothing.
`python -m ibutils.book NAME -p runs 8 --out out.ipynb` runs one chapter with other parameters, names and types checked.
"""

import argparse
import ast
import difflib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import jupytext
import nbformat
import papermill
import yaml
from nbformat import NotebookNode
from sphinx_external_toc.parsing import parse_toc_yaml
from tqdm import tqdm
from traitlets.config import Config

# They read the notebooks of all other chapters, so they run last.
SUMMARIES = ("intro", "earlier", "verdicts", "limitations", "reproducibility")
UNUSED = "# no output of a page depends on what follows"  # in requirements.txt
KERNEL_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def find_root(folder: Path) -> Path:
    for root in (folder, *folder.parents):
        if (root / "_toc.yml").is_file() and (root / "book").is_dir():
            return root
    raise ValueError(f"no book in {folder} or above: run this in the folder that holds _toc.yml and book/")


def chapters(root: Path) -> list[str]:
    """Names of the pages of _toc.yml whose source is a jupytext notebook, in reading order."""
    sources = [root / f"{page}.md" for page in parse_toc_yaml(root / "_toc.yml")]
    return [source.stem for source in sources if "\njupytext:" in source.read_text().split("\n---")[0]]


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def read_source(root: Path, name: str) -> NotebookNode:
    notebook = jupytext.read(root / "book" / f"{name}.md")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # jupytext draws ids at random
    return notebook


def read_executed(root: Path, name: str) -> NotebookNode | None:
    path = root / "book" / f"{name}.ipynb"
    return nbformat.read(path, as_version=4) if path.is_file() else None


def save(root: Path, name: str, source: NotebookNode, executed: NotebookNode, record: dict) -> None:
    """Write the text of the source with the outputs of `executed`, whose code cells are the same, and the record.

    No other trace of the execution is kept (times, paths). Written under a hidden name, then renamed.
    """
    for cell, ran in zip(code_cells(source), code_cells(executed), strict=True):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    source.metadata |= {"language_info": executed.metadata.language_info, "ibutils": record}
    hidden = root / "book" / f".{name}.part"
    hidden.write_text(nbformat.writes(source) + "\n")
    hidden.replace(root / "book" / f"{name}.ipynb")


def references(code: str) -> set[str]:
    """Names of ibutils in a piece of Python: optim in `ib.optim`, losses in `from .losses import log_logistic`."""
    names, aliases = set(), set()
    nodes = list(ast.walk(ast.parse(code)))
    for node in nodes:
        if isinstance(node, ast.Import):
            imported = [alias for alias in node.names if alias.name.partition(".")[0] == "ibutils"]
            names |= {alias.name.partition(".")[2] for alias in imported} - {""}
            aliases |= {alias.asname or "ibutils" for alias in imported if not (alias.asname and "." in alias.name)}
        elif isinstance(node, ast.ImportFrom):
            path = f"{'ibutils.' if node.level else ''}{node.module or ''}".rstrip(".")
            if path.partition(".")[0] == "ibutils":
                names |= {path.partition(".")[2]} - {""} or {alias.name for alias in node.names}
    used = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return names | {node.attr for node in used if node.value.id in aliases}


def modules_used(package: Path, code: str) -> dict[str, str]:
    """Text of each module of the package that the code uses, directly or through another module."""
    init = ast.parse((package / "__init__.py").read_text())
    imports = [node for node in init.body if isinstance(node, ast.ImportFrom) and node.module]
    home = {alias.name: node.module for node in imports for alias in node.names}  # {"max_margin": "maxmargin"}
    used, queue = {}, [code]
    while queue:
        for name in references(queue.pop()):
            # a name that __init__ takes from no module counts as the whole package
            module = name if (package / f"{name}.py").is_file() else home.get(name, "__init__")
            if module not in used:
                used[module] = (package / f"{module}.py").read_text()
                queue.append(used[module])
    return used


def digest(root: Path, name: str) -> str:
    """sha256 of all that decides a chapter's outputs."""
    cells = code_cells(read_source(root, name))
    code = "\n".join(cell.source for cell in cells)
    claims = yaml.safe_load((root / "book" / "claims.yml").read_text())
    pins = (root / "requirements.txt").read_text()
    parts = {
        "cells": [[cell.source, cell.metadata.get("tags", [])] for cell in cells],
        "modules": modules_used(root / "ibutils", code),
        "claims": [claim for claim in claims if name in SUMMARIES or claim["id"] in code],
        "versions": [line for line in pins.partition(UNUSED)[0].splitlines() if "==" in line],
    }
    if data := {file.name: file.read_text() for file in (root / "book").glob("*.json") if file.name in code}:
        parts["data"] = data
    if name in SUMMARIES:
        read = [read_executed(root, other) for other in chapters(root) if other not in SUMMARIES]
        shown = [(other.cells[0].source.partition("\n")[0], code_cells(other)) for other in read if other]
        parts["read"] = [[title, *[cell.outputs for cell in cells]] for title, cells in shown]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_stale(root: Path, name: str) -> bool:
    executed = read_executed(root, name)
    if executed is None or executed.metadata.get("ibutils", {}).get("digest") != digest(root, name):
        return True
    written = [cell.source for cell in code_cells(read_source(root, name))]
    return written != [cell.source for cell in code_cells(executed)]


def execute(
    source: NotebookNode, folder: Path, parameters: dict | None = None, on_cell=None, out: Path | None = None
) -> NotebookNode:
    """Run a notebook through papermill, in a kernel process of its own whose working folder is `folder`.

    `out` is written also where a cell raises, with its traceback.
    """
    with tempfile.TemporaryDirectory() as sockets:  # a TCP port is free only until another kernel binds it
        return papermill.execute_notebook(
            source,
            out,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            on_cell_executed=on_cell,
            resources={"metadata": {"path": str(folder)}},
            extra_arguments=["--log-level=CRITICAL"],  # or every kernel writes into the progress line
            config=Config(KernelManager={"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}),
        )


def run(root: Path, names: list[str]) -> bool:
    """Execute chapters side by side; keep those that succeed, print the traceback of one that raises."""
    sources = {name: read_source(root, name) for name in names}
    digests = {name: digest(root, name) for name in names}
    total = sum(len(code_cells(source)) for source in sources.values())
    succeeded = True
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(desc=" ".join(names), total=total, unit="cell") as bar:

        def run_one(name):
            start = time.perf_counter()
            executed = execute(sources[name], root / "book", on_cell=lambda **_: bar.update())
            record = {"digest": digests[name], "seconds": round(time.perf_counter() - start, 1)}
            save(root, name, sources[name], executed, record)

        running = {pool.submit(run_one, name): name for name in names}
        try:
            while running:
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                bar.refresh()
                for future in finished:
                    name = running.pop(future)
                    if not future.cancelled() and (error := future.exception()):
                        bar.write(f"{name} raised, no further chapter is started:\n{error}", file=sys.stderr)
                        pool.shutdown(wait=False, cancel_futures=True)
                        succeeded = False
        except KeyboardInterrupt:
            os._exit(130)  # kernels end with their parent; to leave in order is to wait for their cells
    return succeeded


def parse(text: str, kind: str):
    """The value of a parameter given as text; ValueError or KeyError where it is not of its declared type."""
    if kind.startswith("list"):
        items = yaml.safe_load(text)
        if not isinstance(items, list):
            raise ValueError
        return [parse(str(item), kind[5:-1]) for item in items] if kind != "list" else items
    return {"int": int, "float": float, "str": str, "bool": {"True": True, "False": False}.__getitem__}[kind](text)


def declared(chapter: str, source: NotebookNode, names) -> dict[str, str]:
    """{parameter: type} as the chapter declares them; ValueError where one of `names` is not among them."""
    kinds = {name: known["inferred_type_name"] for name, known in papermill.inspect_notebook(source).items()}
    for name in names:
        if name not in kinds:
            nearest = "".join(difflib.get_close_matches(name, kinds, n=1, cutoff=0))
            raise ValueError(f"unknown parameter {name!r}, did you mean {nearest!r}? {chapter} has {', '.join(kinds)}")
    return kinds


def run_once(root: Path, names: list[str], given: list[tuple[str, str]], out: Path | None) -> None:
    """Run one chapter with other parameters into a file of its own; the book stays as it is."""
    if len(names) != 1 or out is None:
        raise ValueError("-p and --out go with exactly one chapter and each other: 01_linear -p runs 8 --out out.ipynb")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.parent}, make it first")
    source = read_source(root, names[0])
    kinds = declared(names[0], source, [name for name, _ in given])
    parameters = {}
    for name, text in given:
        try:
            parameters[name] = parse(text, kinds[name])
        except (ValueError, KeyError, yaml.YAMLError):
            raise ValueError(f"parameter {name!r} must be {kinds[name]}, got {text!r}") from None
    executed = execute(source, root / "book", parameters)
    executed.metadata.papermill.input_path = f"book/{names[0]}.md"
    nbformat.write(executed, out)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ibutils.book", description="Run the stale chapters and build.")
    parser.add_argument("chapters", nargs="*", metavar="chapter", help="run these only, such as 01_linear")
    parser.add_argument("--all", action="store_true", help="run chapters that are not stale too")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="with --out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="run one chapter into FILE, with the values of -p")
    args = parser.parse_args()
    try:
        root = find_root(Path.cwd())
        known = chapters(root)
        if unknown := set(args.chapters) - set(known):
            raise ValueError(f"unknown chapter {min(unknown)!r}: the book has {', '.join(known)}")
        if args.p or args.out:
            run_once(root, args.chapters, args.p, args.out)
            return 0
    except ValueError as error:
        parser.error(str(error))
    except papermill.PapermillExecutionError as error:
        print(error, file=sys.stderr)
        return 1
    wanted = args.chapters or known
    for stage in (set(known) - set(SUMMARIES), set(SUMMARIES)):
        names = [name for name in known if name in stage and name in wanted]
        to_run = [name for name in names if args.all or is_stale(root, name)]
        if to_run and not run(root, to_run):
            return 1
        for name in set(names) - set(to_run):  # their prose may have changed
            executed = read_executed(root, name)
            save(root, name, read_source(root, name), executed, executed.metadata.ibutils)
    build = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "-W", "-n", "--keep-going", "--all"]
    return subprocess.run(build, cwd=root).returncode


if __name__ == "__main__":
    os.environ.update(KERNEL_ENVIRONMENT)
    os.environ.pop("MPLBACKEND", None)  # where it is set, no figure reaches a notebook
    sys.exit(main())
