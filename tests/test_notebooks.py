"""The committed notebooks, and re-runs of them through the real tools. `pytest` itself runs them under nbval."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook, new_output

from ibutils import book
from ibutils.claims import MIME

ROOT = Path(__file__).parents[1]
QUICK = {  # chapter -> what makes a re-run short, as papermill's -y takes it
    "01_linear": {"runs": 2, "seed": 3, "depth": 100},
    "02_depth": {"runs": 2, "seed": 3, "level": 100, "depths": [1, 3], "width": 4, "optimizers": ["GD", "Adam"]},
    "02_depth_relu": {
        "runs": 2,
        "seed": 3,
        "level": 100,
        "depths": [1, 2],
        "width": 8,
        "n": 20,
        "optimizers": ["GD", "Lion"],
    },
    "03_activations": {
        "runs": 2,
        "seed": 3,
        "n": 10,
        "dims": [2, 3],
        "layers": [2],
        "width": 8,
        "widths": [4, 8],
        "fresh": 100,
        "level": 100,
        "optimizers": ["GD", "Lion"],
    },
    "03_boundaries": {
        "runs": 2,
        "seed": 3,
        "n": 12,
        "layers": 3,
        "width": 12,
        "level": 10,
        "film": 10,
        "frames": 3,
        "optimizers": ["GD", "Lion"],
    },
    "04_counterexamples": {
        "runs": 2,
        "seed": 3,
        "overlapping": 20,
        "decades": 12,
        "widths": [64, 256],
        "n": 20,
        "exponents": [1.0, 3.0],
        "ratios": [1.5, 32.0],
        "height": 0.3,
    },
    "04_optimizers": {
        "runs": 2,
        "seed": 3,
        "horizon": 3000,
        "silence": 6000,
        "circling": 160,
        "fall": 0.06,
        "n": 4,
        "visits": 400,
        "lambdas": [0.1, 1.0],
    },
    "05_smoothness": {
        "runs": 2,
        "seed": 3,
        "n": 7,
        "width": 128,
        "widths": [64, 256],
        "knots": 5,
        "scales": [8.0, 64.0],
        "map_widths": [32, 128],
        "default_widths": [256, 1024],
        "surface_widths": [128, 256],
    },
    "05_variants": {
        "runs": 2,
        "seed": 3,
        "equations": 3,
        "unknowns": 8,
        "n": 5,
        "width": 64,
        "cells": 32,
        "patience": 0.1,
    },
    "06_atlas": {"runs": 2, "seed": 3, "n": 4, "d": 12, "patience": 0.1},
    "06_matrices": {"runs": 2, "seed": 3, "classes": 3, "d": 5, "n": 9, "patience": 0.2},
    "07_rates": {"runs": 2, "seed": 3, "steps": 1000, "momentum_steps": 500, "cycles": 20},
    "08_generalization": {
        "runs": 2,
        "splits": 2,
        "seed": 3,
        "n": 30,
        "d": 12,
        "k": 2,
        "n_few": 6,
        "n_pair": 10,
        "n_real": 20,
        "patience": 0.05,
    },
    "08_networks": {"runs": 2, "seed": 3, "inits": 2, "n": 60, "widths": [24, 48], "late": 20.0},
    "earlier": {"runs": 2, "seed": 3, "steps": 50, "steps_wide": 50, "steps_network": 20, "steps_mirror": 50},
}
NO_PARAMETERS = {*book.SUMMARIES, "cost", "scaling"} - {"earlier"}  # pages that read results and compute none
SECTIONS = {
    "04_counterexamples": ["separability", "width", "rotation", "tails", "kkt"],
    "04_optimizers": ["steps", "betas", "samples", "decay"],
}


def claim_records(notebook):
    outputs = [output for cell in book.code_cells(notebook) for output in cell.outputs]
    return [output.data[MIME] for output in outputs if MIME in output.get("data", {})]


def rerun(chapter, out, parameters):
    """`papermill book/CHAPTER.ipynb out.ipynb --cwd book -y ...`, without a network."""
    papermill = Path(sys.executable).with_name("papermill")
    command = [
        papermill,
        ROOT / "book" / f"{chapter}.ipynb",
        out,
        "--cwd",
        "book",
        "--no-progress-bar",
        "-y",
        yaml.dump(parameters),
    ]
    path = os.pathsep.join([str(ROOT / "tests" / "offline"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": path}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(params=book.chapters(ROOT))
def name(request):
    return request.param


@pytest.fixture
def stored(name):
    notebook = book.read_executed(ROOT, name)
    assert notebook, f"book/{name}.ipynb is missing: python -m ibutils.book"
    return notebook


def test_a_pair_is_in_sync_cell_by_cell(name, stored):
    source = book.read_source(ROOT, name)
    pair = [[(cell.cell_type, cell.source, cell.metadata) for cell in half.cells] for half in (source, stored)]
    for number, (written, shown) in enumerate(zip(*pair, strict=True)):
        assert shown == written, f"cell {number} of book/{name}.ipynb differs: python -m ibutils.book"


def test_every_cell_was_run_in_order_and_none_raised(stored):
    cells = book.code_cells(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


def test_a_notebook_holds_the_outputs_of_the_present_code(name, stored):
    assert stored.metadata.ibutils.digest == book.digest(ROOT, name), f"{name} is stale: python -m ibutils.book"


def test_a_notebook_holds_no_path_of_the_machine_that_ran_it(name, stored):
    text = (ROOT / "book" / f"{name}.ipynb").read_text()
    for path in (ROOT, sys.prefix, sys.base_prefix, Path.home()):
        assert str(path) not in text or str(path) == "/"


def test_claims_are_decided_once_and_registered():
    registered = [claim["id"] for claim in yaml.safe_load((ROOT / "book" / "claims.yml").read_text())]
    assert len(registered) == len(set(registered))
    chapters = [name for name in book.chapters(ROOT) if name not in book.SUMMARIES]
    decided = [record["id"] for name in chapters for record in claim_records(book.read_executed(ROOT, name))]
    assert sorted(decided) == sorted(set(decided))
    assert set(decided) <= set(registered)


def test_every_chapter_has_a_quick_rerun():
    assert QUICK.keys() == set(book.chapters(ROOT)) - NO_PARAMETERS


@pytest.mark.parametrize("chapter", [chapter for chapter in QUICK if chapter not in SECTIONS])
def test_a_rerun_with_other_parameters_decides_the_same_claims(tmp_path, chapter):
    result = rerun(chapter, tmp_path / "out.ipynb", QUICK[chapter])
    assert result.returncode == 0, result.stderr
    again, stored = nbformat.read(tmp_path / "out.ipynb", 4), book.read_executed(ROOT, chapter)
    assert again.metadata.papermill.parameters == QUICK[chapter]
    ids = [record["id"] for record in claim_records(stored)]
    kept = [record["id"] for record in claim_records(again)]
    left_out = {"depth-lion", *(f"activation-relu-{name}" for name in ("sgd", "signgd", "adam"))}  # too few optimizers
    assert bool(ids) == (chapter != "earlier") and kept == [claim for claim in ids if claim not in left_out]
    runs = {result["runs"] for record in claim_records(again) for result in record["results"]}
    assert runs - {45} == ({2} if ids else set())  # 45: in 08_generalization, one correlation for each pair of digits


@pytest.mark.parametrize(
    "source",
    [
        "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/digits.csv', timeout=1)",
        "import socket\nsocket.socket().connect(('192.0.2.1', 80))",
    ],
)
def test_a_page_that_reaches_for_the_network_fails_its_rerun(tmp_path, source):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [new_code_cell("x = 1", metadata={"tags": ["parameters"]}), new_code_cell(source)]
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "page.ipynb")
    result = rerun(tmp_path / "page", tmp_path / "out.ipynb", {})
    assert result.returncode != 0 and "no network here" in result.stderr


def claims_of(chapter, section):
    """The ids that the stored notebook decides in cells of that section."""
    stored = book.read_executed(ROOT, chapter)
    source = "".join(cell.source for cell in book.code_cells(stored) if f'"{section}" in sections' in cell.source)
    return {record["id"] for record in claim_records(stored) if f'"{record["id"]}"' in source}


@pytest.mark.parametrize(("chapter", "section"), [(page, name) for page, names in SECTIONS.items() for name in names])
def test_a_section_runs_alone_and_decides_its_own_claims(tmp_path, chapter, section):
    result = rerun(chapter, tmp_path / "out.ipynb", QUICK[chapter] | {"sections": [section]})
    assert result.returncode == 0, result.stderr
    records = claim_records(nbformat.read(tmp_path / "out.ipynb", 4))
    assert {record["id"] for record in records} == claims_of(chapter, section) != set()
    assert {found["runs"] for record in records for found in record["results"]} == {2}


@pytest.mark.parametrize("chapter", SECTIONS)
def test_every_claim_of_a_page_in_sections_belongs_to_one_of_them(chapter):
    stored = [record["id"] for record in claim_records(book.read_executed(ROOT, chapter))]
    owned = [claim for section in SECTIONS[chapter] for claim in claims_of(chapter, section)]
    assert sorted(owned) == sorted(stored)


@pytest.mark.parametrize(
    ("chapter", "parameter", "value"),
    [
        ("01_linear", "runs", 0),
        ("01_linear", "n", -5),
        ("01_linear", "optimizers", ["gd", "foo"]),
        ("02_depth", "depths", [4]),
        ("02_depth_relu", "depths", [0, 1]),
        ("02_depth_relu", "optimizers", []),
        ("04_counterexamples", "sections", ["separability", "foo"]),
        ("04_counterexamples", "height", 0.6),
        ("04_optimizers", "lambdas", [0.1]),
        ("05_smoothness", "n", 40),
        ("05_smoothness", "widths", [128]),
        ("05_variants", "unknowns", 5),
        ("06_atlas", "d", 10),
        ("06_matrices", "n", 100),
        ("07_rates", "cycles", 101),
        ("08_generalization", "k", 81),
        ("08_networks", "late", 5.0),
        ("earlier", "steps_wide", 5),
    ],
)
def test_a_senseless_value_is_named_by_the_cell_after_the_parameters(tmp_path, chapter, parameter, value):
    result = rerun(chapter, tmp_path / "out.ipynb", {parameter: value})
    assert result.returncode != 0 and "ValueError" in result.stderr
    cells = book.code_cells(nbformat.read(tmp_path / "out.ipynb", 4))
    (injected,) = [i for i, cell in enumerate(cells) if "injected-parameters" in cell.metadata.get("tags", [])]
    (error,) = [output for output in cells[injected + 1].outputs if output.output_type == "error"]
    assert error.ename == "ValueError" and error.evalue.startswith(f"{parameter} ")


def test_the_strict_runner_refuses_an_unknown_name_with_the_nearest_known_one(tmp_path):
    command = [sys.executable, "-m", "ibutils.book", "01_linear", "-p", "runz", "8", "--out", tmp_path / "out.ipynb"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "unknown parameter 'runz', did you mean 'runs'? 01_linear has runs, " in result.stderr
    assert not (tmp_path / "out.ipynb").exists()


def test_every_parameter_is_seen_by_papermill_with_a_type_that_the_strict_runner_checks(name):
    source, basic = book.read_source(ROOT, name), "(int|float|bool|str)"
    seen = papermill.inspect_notebook(source)
    for known in seen.values():
        assert re.fullmatch(rf"{basic}|list(\[{basic}\])?", known["inferred_type_name"]), known["name"]
    tagged = [cell.source for cell in book.code_cells(source) if "parameters" in cell.metadata.get("tags", [])]
    assert list(seen) == re.findall(r"^(\w+):", "\n".join(tagged), flags=re.MULTILINE)  # it skips what it cannot parse


def test_plain_pytest_takes_the_notebooks_for_tests(pytestconfig):
    assert "book" in pytestconfig.getini("testpaths")
    assert pytestconfig.option.nbval_lax and pytestconfig.option.nbval_current_env


def test_nbval_compares_marked_cells_only_and_refuses_cells_without_a_stored_run(tmp_path):
    def cell(source, shown, count=1):
        return new_code_cell(source, execution_count=count, outputs=[new_output("stream", text=shown)])

    (tmp_path / "book").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "book" / "conftest.py", tmp_path / "book")
    marked = "# NBVAL_CHECK_OUTPUT\nprint(1)"
    cells = [cell("print(1)", "2\n"), cell(marked, "1\n"), cell(marked, "2\n"), cell("print(1)", "1\n", count=None)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "book" / "page.ipynb")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-rA", "book"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    for line in ("PASSED book/page.ipynb::Cell 0", "PASSED book/page.ipynb::Cell 1", "FAILED book/page.ipynb::Cell 2"):
        assert line in result.stdout
    assert "ERROR book/page.ipynb::Cell 3 - Failed: this cell has no stored run" in result.stdout
