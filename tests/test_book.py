"""The pipeline, `python -m ibutils.book`, on a small book; and the build of the real one."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
import yaml
from jupyter_book.config import get_validator

from ibutils import book

ROOT = Path(__file__).parents[1]
HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

"""
CELL = "```{code-cell} python\n%s\n```\n"
# Each page prints a fresh id, so its output is another one exactly when it was executed again.
CHAPTER = HEADER + "# %s\n\nA sentence.\n\n" + CELL % ":tags: [parameters]\n\nruns: int = 2  # ensemble size" + CELL
MINI = {
    "_toc.yml": "{format: jb-book, root: book/intro, chapters: "
    "[{file: book/01_first}, {file: book/02_second}, {file: book/verdicts}]}",
    "requirements.txt": "torch==2.13.0\n",
    "book/claims.yml": "[{id: first-claim, rule: above 1}, {id: second-claim, rule: above 2}]",
    "book/references.bib": "",
    "book/01_first.md": CHAPTER
    % ("First", "import uuid\nimport ibutils as ib\nprint(uuid.uuid4(), ib.measures.double(runs), 'first-claim')"),
    "book/02_second.md": CHAPTER
    % ("Second", "import uuid\nfrom ibutils import max_margin\nprint(uuid.uuid4(), max_margin(runs), 'second-claim')"),
    "book/intro.md": HEADER + "# Intro\n\n" + CELL % "import uuid\nprint(uuid.uuid4())",
    "book/verdicts.md": HEADER + "# Verdicts\n\n" + CELL % "import uuid\nprint(uuid.uuid4())",
    "ibutils/__init__.py": "from . import losses, measures\nfrom .maxmargin import max_margin\n",
    "ibutils/losses.py": "def twice(x):\n    return 2 * x\n",
    "ibutils/measures.py": "from .losses import twice\n\n\ndef double(x):\n    return twice(x)\n",
    "ibutils/maxmargin.py": "def max_margin(x):\n    return x\n",
}


def drive(root, *arguments):
    """`python -m ibutils.book` in a small book, on its own small ibutils."""
    environment = os.environ | {"PYTHONPATH": str(root), "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "ibutils.book", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def printed(root):
    """What each page printed when it last ran, by name."""
    return {
        path.stem: [output.text for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
        for path in (root / "book").glob("*.ipynb")
    }


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def rerun_by(root, path, old, new):
    """Names of the pages that an edit makes the pipeline execute."""
    before = printed(root)
    edit(root / path, old, new)
    result = drive(root)
    assert result.returncode == 0, result.stderr
    after = printed(root)
    return {name for name in after if after[name] != before[name]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The small book after its first run."""
    root = tmp_path_factory.mktemp("built")
    for name, text in MINI.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    shutil.copy(ROOT / "ibutils" / "book.py", root / "ibutils")
    shutil.copy(ROOT / "_config.yml", root)
    shutil.copytree(ROOT / "book" / "_static", root / "book" / "_static")
    result = drive(root)
    assert result.returncode == 0, result.stderr
    return root


@pytest.fixture
def mini(built, tmp_path):
    """A copy of the small book with nothing stale."""
    return shutil.copytree(built, tmp_path / "mini", ignore=shutil.ignore_patterns("_build"))


def test_the_first_run_executes_every_page_and_builds_it(built):
    assert printed(built).keys() == {"intro", "01_first", "02_second", "verdicts"}
    for name, text in printed(built).items():
        assert text, name
        assert (built / "_build" / "html" / "book" / f"{name}.html").is_file()


def test_with_nothing_stale_no_page_runs(mini):
    before = {path: path.read_bytes() for path in (mini / "book").glob("*.ipynb")}
    assert drive(mini).returncode == 0
    assert {path: path.read_bytes() for path in (mini / "book").glob("*.ipynb")} == before


def test_an_edited_module_reruns_exactly_the_chapters_that_import_it_also_through_another(mini):
    assert rerun_by(mini, "ibutils/losses.py", "2 * x", "x + x") == {"01_first", "intro", "verdicts"}


def test_an_edited_cell_reruns_its_chapter(mini):
    assert rerun_by(mini, "book/02_second.md", "runs: int = 2", "runs: int = 3") == {"02_second", "intro", "verdicts"}


def test_an_edited_claim_reruns_the_chapter_that_decides_it(mini):
    assert rerun_by(mini, "book/claims.yml", "above 2", "above 3") == {"02_second", "intro", "verdicts"}


def test_an_edited_sentence_reaches_the_notebook_and_reruns_nothing(mini):
    assert rerun_by(mini, "book/01_first.md", "A sentence.", "Another sentence.") == set()
    assert "Another sentence." in (mini / "book" / "01_first.ipynb").read_text()
    assert "Another sentence." in (mini / "_build" / "html" / "book" / "01_first.html").read_text()


def test_other_pinned_versions_make_every_page_stale(mini):
    assert not any(book.is_stale(mini, name) for name in book.chapters(mini))
    edit(mini / "requirements.txt", "2.13.0", "2.14.0")
    assert all(book.is_stale(mini, name) for name in book.chapters(mini))


def test_other_versions_of_what_no_output_depends_on_make_nothing_stale(mini):
    with (mini / "requirements.txt").open("a") as pins:
        pins.write(f"{book.UNUSED}\npytest==9.2.0\n")
    assert not any(book.is_stale(mini, name) for name in book.chapters(mini))
    assert (ROOT / "requirements.txt").read_text().partition(f"\n{book.UNUSED}\n")[2].count("==") > 5


def test_another_title_of_a_chapter_reruns_the_pages_that_show_it(mini):
    assert rerun_by(mini, "book/01_first.md", "# First", "# Erste") == {"intro", "verdicts"}


def test_another_data_file_changes_the_digest_of_the_page_that_names_it(mini):
    edit(mini / "book" / "01_first.md", "'first-claim'", "'first-claim', 'cost.json'")
    before = {name: book.digest(mini, name) for name in book.chapters(mini)}
    (mini / "book" / "cost.json").write_text("{}")
    assert {name for name in before if book.digest(mini, name) != before[name]} == {"01_first"}


def test_an_unused_module_and_the_pipeline_itself_make_nothing_stale(mini):
    (mini / "ibutils" / "plots.py").write_text("def draw():\n    pass\n")
    edit(mini / "ibutils" / "book.py", "import argparse", "import argparse  # parses")
    assert not any(book.is_stale(mini, name) for name in book.chapters(mini))


def test_a_notebook_with_edited_cells_or_without_a_record_is_stale(mini):
    edit(mini / "book" / "01_first.ipynb", "runs: int = 2", "runs: int = 5")
    edit(mini / "book" / "02_second.ipynb", '"digest"', '"checksum"')
    assert book.is_stale(mini, "01_first") and book.is_stale(mini, "02_second")


def test_names_limit_and_all_forces_what_runs(mini):
    before = printed(mini)
    assert drive(mini, "02_second", "--all").returncode == 0
    after = printed(mini)
    assert {name for name in after if after[name] != before[name]} == {"02_second"}


def test_a_chapter_that_raises_stops_the_build_and_leaves_its_last_good_notebook(mini):
    before, files = printed(mini), set((mini / "book").iterdir())
    edit(mini / "book" / "01_first.md", "print(uuid", "raise RuntimeError('diverged')\nprint(uuid")
    edit(mini / "book" / "02_second.md", "runs: int = 2", "runs: int = 3")
    result = drive(mini)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "RuntimeError: diverged" in result.stderr
    after = printed(mini)
    assert {name for name in after if after[name] != before[name]} == {"02_second"}  # succeeded beside it
    assert set((mini / "book").iterdir()) == files
    assert not (mini / "_build").exists()


def test_a_warning_of_the_build_is_an_error(mini):
    edit(mini / "book" / "01_first.md", "A sentence.", "See {ref}`nowhere`.")
    result = drive(mini)
    assert result.returncode != 0 and "nowhere" in result.stderr


def test_figures_reach_the_notebook_although_mplbackend_is_set(mini):
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    edit(mini / "book" / "01_first.md", "import uuid", draw)
    edit(mini / "book" / "01_first.md", "uuid.uuid4(), ", "")
    assert drive(mini, "01_first", "-p", "runs", "1", "--out", str(mini / "out.ipynb")).returncode == 0
    assert "image/png" in (mini / "out.ipynb").read_text()


def test_a_strict_run_leaves_the_book_as_it_is(mini):
    before = {path: path.read_bytes() for path in (mini / "book").iterdir() if path.is_file()}
    result = drive(mini, "01_first", "-p", "runs", "5", "--out", "out.ipynb")
    assert result.returncode == 0, result.stderr
    assert " 10 first-claim" in (mini / "out.ipynb").read_text()  # 2 * runs
    assert {path: path.read_bytes() for path in (mini / "book").iterdir() if path.is_file()} == before
    assert not (mini / "_build").exists()


def test_a_strict_run_that_raises_prints_the_traceback_and_writes_nothing(mini):
    edit(mini / "book" / "01_first.md", "print(uuid", "raise RuntimeError('diverged')\nprint(uuid")
    result = drive(mini, "01_first", "-p", "runs", "5", "--out", "out.ipynb")
    assert result.returncode == 1 and "RuntimeError: diverged" in result.stderr
    assert not (mini / "out.ipynb").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("01_first -p runz 8 --out out.ipynb", "unknown parameter 'runz', did you mean 'runs'? 01_first has runs"),
        ("01_first -p runs 8.0 --out out.ipynb", "parameter 'runs' must be int, got '8.0'"),
        ("01_first -p runs 8", "go with exactly one chapter and each other"),
        ("01_first --out nowhere/out.ipynb", "there is no folder nowhere"),
        ("01_first 02_second -p runs 8 --out out.ipynb", "exactly one chapter"),
        ("-p runs 8 --out out.ipynb", "exactly one chapter"),
        ("03_third", "unknown chapter '03_third': the book has intro, 01_first, 02_second, verdicts"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(built, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(built / "book")  # the book is found from any of its folders
    monkeypatch.setattr(sys, "argv", ["book", *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        book.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_outside_of_a_book_the_command_says_where_to_run(tmp_path):
    with pytest.raises(ValueError, match="run this in the folder that holds _toc.yml and book/"):
        book.find_root(tmp_path)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", "8", 8),
        ("int", "-5", -5),
        ("float", "1e-3", 1e-3),
        ("float", "8", 8.0),
        ("bool", "False", False),
        ("str", "8", "8"),
        ("list", "[gd, adam]", ["gd", "adam"]),
        ("list[float]", "[1e-3, 1]", [1e-3, 1.0]),
    ],
)
def test_a_value_of_the_right_type_is_taken(kind, text, value):
    parsed = book.parse(text, kind)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("int", "8.0"), ("int", "True"), ("float", "True"), ("bool", "1"), ("list", "8"), ("list[int]", "[1, 2.5]")],
)
def test_a_value_of_the_wrong_type_is_refused(kind, text):
    with pytest.raises((ValueError, KeyError)):
        book.parse(text, kind)


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import ibutils as ib\nib.max_margin(1)", {"maxmargin"}),
        ("import ibutils\nibutils.measures.double(1)", {"measures", "losses"}),
        ("import ibutils.losses as log\nlog.twice(1)", {"losses"}),
        ("from ibutils import measures", {"measures", "losses"}),
        ("from ibutils.maxmargin import max_margin", {"maxmargin"}),
        ("from ibutils import *", {"__init__", "losses", "measures", "maxmargin"}),
        ("import numpy as ib\nib.losses", set()),
    ],
)
def test_the_modules_behind_an_import_are_found(built, code, modules):
    assert book.modules_used(built / "ibutils", code).keys() == modules


def test_the_real_book_builds_without_a_warning_and_has_every_page(site):
    pages = re.findall(r"(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text())
    assert len(pages) == (ROOT / "_toc.yml").read_text().count("book/") > 2
    for page in pages:
        assert (site / f"{page}.html").is_file()


def test_every_link_within_the_site_leads_somewhere(site):
    for page in site.glob("book/*.html"):
        for link in re.findall(r'<a [^>]*href="([^"]*)"', page.read_text()):
            if re.match(r"https?:|mailto:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            target = page.parent / path if path else page
            assert target.is_file(), f"{page.name}: {link}"
            assert not anchor or f'id="{anchor}"' in target.read_text(), f"{page.name}: {link}"


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.glob("book/*.html"):
        outside = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', page.read_text())
        assert not outside, page.name
    (script,) = re.findall(r'src="\.\./(_static/mathjax/[^"?]*)', (site / "book" / "01_linear.html").read_text())
    assert (site / script).is_file()


def test_the_configuration_repeats_no_key_and_has_no_unknown_one():
    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            return super().construct_mapping(node, deep)

    config = yaml.load((ROOT / "_config.yml").read_text(), Loader)
    known = {*get_validator().schema["properties"], "only_build_toc_files"}  # which the schema forgets
    assert set(config) <= known


def test_the_readme_holds_exactly_the_two_commands():
    blocks = re.findall(r"^```\n(pip install .*)\n```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert blocks == [
        "pip install -r requirements.txt && python -m ibutils.book",
        "pip install -r requirements.txt && pytest",
    ]


def test_every_requirement_is_pinned_and_installed_at_its_pin():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#") and line != "-e ."]
    assert "-e ." in lines and len(pins) > 10
    for pin in pins:
        package, exact = re.fullmatch(r"([\w-]+)==([\w.]+)", pin).groups()
        assert version(package).split("+")[0] == exact
