"""Claims: the interval, every branch of a verdict, and the record that the notebook carries."""

import json
import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, wilcoxon

import ibutils as ib
from ibutils.claims import MIME, collect, decide, holm, interval, parse_rule, registered

BOOK = Path(__file__).parents[1] / "book"
ENTRIES = [
    {"id": "above", "rule": ["low(rho) >= 0.5"]},
    {"id": "strictly-above", "rule": ["low(rho) > 0.5"]},
    {"id": "below", "rule": ["high(rho) <= 0.5"]},
    {"id": "strictly-below", "rule": ["high(rho) < 0.5"]},
    {"id": "both", "rule": ["low(rho) >= 0.5", "high(rate) < 1e-1"]},
    {"id": "wrong-low", "rule": ["low(rho) < 0.5"]},
    {"id": "wrong-high", "rule": ["high(rho) >= 0.5"]},
    {"id": "unreadable", "rule": ["rho is large"]},
    {"id": "no-number", "rule": ["low(rho) >= half"]},
]
HIGH, MIDDLE, LOW = (torch.linspace(centre - 0.2, centre + 0.2, 17, dtype=torch.float64) for centre in (0.9, 0.5, 0.1))


@pytest.fixture(autouse=True)
def book(tmp_path, monkeypatch):
    """A working folder with a few claims in its claims.yml."""
    entries = [{"statement": "A < B & C.", "source": "someone", "metric": "rho", **entry} for entry in ENTRIES]
    (tmp_path / "claims.yml").write_text(yaml.safe_dump(entries))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_interval_is_scipys_bca_interval_of_the_median():
    values = np.random.default_rng(3).normal(size=31)
    ends = bootstrap((values,), np.median, confidence_level=0.9, method="BCa", rng=np.random.default_rng(0))
    assert interval(values, confidence=0.9) == (np.median(values), *ends.confidence_interval)


def test_the_interval_narrows_with_runs_and_with_confidence():
    values = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def width(x, **kwargs):
        _, low, high = interval(x, **kwargs)
        return high - low

    assert width(values) < 0.6 * width(values[:50])
    assert width(values, confidence=0.5) < 0.6 * width(values)


def test_the_interval_holds_the_median_of_the_distribution_about_as_often_as_it_says():
    draws = np.random.default_rng(0).exponential(size=(101, 31))
    covered = sum(low <= math.log(2) <= high for _, low, high in map(interval, draws))
    assert 0.87 * 101 <= covered < 101


def test_the_interval_of_a_constant_is_that_constant():
    assert interval(torch.full((7,), 0.25)) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("values", [[0.0] * 6 + [1.0], [1.0] * 30 + [2.0, 3.0], [0.0, 1.0], [0.0] * 5 + [1.0] * 5])
def test_ties_leave_an_interval_of_finite_ends_around_the_median(values):
    middle, low, high = interval(values)
    assert min(values) <= low <= middle <= high <= max(values)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.integers(-1000, 1000).map(lambda k: k / 1000), min_size=2, max_size=17))
def test_any_values_have_an_interval_of_finite_ends_among_them(values):
    middle, low, high = interval(values)
    assert min(values) <= low <= high <= max(values)
    assert middle == np.median(values)


@pytest.mark.parametrize("values", [[0.5, math.nan, 0.5], [0.5, math.inf], [0.5], [], [[0.5, 0.5], [0.5, 0.5]], 0.5])
def test_values_that_are_no_finite_number_a_run_are_an_error(values):
    with pytest.raises(ValueError, match="one finite number for each of at least 2 runs"):
        interval(values)


@pytest.mark.parametrize(
    ("claim", "values", "verdict"),
    [
        ("above", HIGH, "supported"),
        ("above", MIDDLE, "inconclusive"),
        ("above", LOW, "refuted"),
        ("strictly-above", HIGH, "supported"),
        ("strictly-above", MIDDLE, "inconclusive"),
        ("strictly-above", LOW, "refuted"),
        ("below", HIGH, "refuted"),
        ("below", MIDDLE, "inconclusive"),
        ("below", LOW, "supported"),
        ("strictly-below", HIGH, "refuted"),
        ("strictly-below", MIDDLE, "inconclusive"),
        ("strictly-below", LOW, "supported"),
        ("above", torch.full((7,), 0.5), "supported"),
        ("below", torch.full((7,), 0.5), "supported"),
        ("strictly-above", torch.full((7,), 0.5), "inconclusive"),
        ("strictly-below", torch.full((7,), 0.5), "inconclusive"),
    ],
)
def test_a_condition_is_supported_refuted_or_left_open_by_its_interval(claim, values, verdict):
    assert decide(claim, rho=values).verdict == verdict


@pytest.mark.parametrize(
    ("settings", "verdict", "worst"),
    [
        ({"a": HIGH, "b": HIGH + 1}, "supported", "a"),
        ({"a": HIGH + 1, "b": HIGH}, "supported", "b"),
        ({"a": HIGH, "b": MIDDLE}, "inconclusive", "b"),
        ({"a": LOW, "b": HIGH}, "refuted", "a"),
        ({"a": MIDDLE, "b": LOW, "c": HIGH}, "refuted", "b"),
    ],
)
def test_a_claim_holds_only_if_it_holds_in_every_setting(settings, verdict, worst):
    found = decide("above", rho=settings)
    assert found.verdict == verdict
    assert found.record["results"][found.record["conditions"][0]["worst"]]["setting"] == worst
    assert f"worst of {len(settings)} settings: {worst}" in str(found)


def test_a_wide_interval_does_not_hide_a_setting_that_refutes():
    wide = torch.cat([torch.full((9,), -5.0), torch.full((9,), 5.0)])
    assert decide("above", rho={"wide": wide, "low": LOW}).verdict == "refuted"
    assert decide("below", rho={"wide": wide, "high": HIGH}).verdict == "refuted"


@pytest.mark.parametrize(
    ("rho", "rate", "verdict", "each"),
    [
        (HIGH, LOW - 1, "supported", ["supported", "supported"]),
        (MIDDLE, LOW - 1, "inconclusive", ["inconclusive", "supported"]),
        (HIGH, HIGH, "refuted", ["supported", "refuted"]),
        (MIDDLE, HIGH, "refuted", ["inconclusive", "refuted"]),
        (LOW, LOW, "refuted", ["refuted", "inconclusive"]),
    ],
)
def test_a_claim_of_two_conditions_needs_both_and_falls_with_either(rho, rate, verdict, each):
    found = decide("both", rate=rate, rho=rho)
    assert found.verdict == verdict
    assert [c["verdict"] for c in found.record["conditions"]] == each
    assert [found.record["results"][c["worst"]]["quantity"] for c in found.record["conditions"]] == [
        "rho",
        "rate",
    ]


@pytest.mark.parametrize("claim", ["wrong-low", "wrong-high"])
def test_a_rule_on_the_wrong_end_of_the_interval_is_an_error(claim):
    with pytest.raises(ValueError, match="compares the wrong end"):
        decide(claim, rho=HIGH)


@pytest.mark.parametrize("claim", ["unreadable", "no-number"])
def test_a_rule_that_does_not_read_as_one_is_an_error_that_names_the_claim(claim):
    with pytest.raises(ValueError, match=f"of {claim} does not read"):
        decide(claim, rho=HIGH)


def test_a_claim_that_is_not_registered_is_an_error_that_lists_those_that_are():
    with pytest.raises(KeyError, match="'abov' is not registered in claims.yml; there are .*'above'"):
        decide("abov", rho=HIGH)


@pytest.mark.parametrize(
    "quantities", [{}, {"rho": HIGH}, {"rho": HIGH, "rate": LOW, "extra": LOW}, {"rho": HIGH, "rat": LOW}]
)
def test_the_quantities_must_be_those_of_the_rule(quantities):
    with pytest.raises(ValueError, match=re.escape("the rule of both needs ['rate', 'rho'], got")):
        decide("both", **quantities)


def test_a_quantity_without_settings_or_with_a_run_that_is_nan_is_an_error():
    with pytest.raises(ValueError, match="rho"):
        decide("above", rho={})
    with pytest.raises(ValueError, match="one finite number"):
        decide("above", rho=torch.tensor([0.9, math.nan, 0.9]))


def test_the_record_says_what_was_claimed_found_and_decided():
    found = decide("both", rho={"n=11": HIGH, 7: MIDDLE}, rate=LOW)
    record = json.loads(json.dumps(found.record))
    assert record.items() >= {"id": "both", "statement": "A < B & C.", "source": "someone", "metric": "rho"}.items()
    assert record["rule"] == ["low(rho) >= 0.5", "high(rate) < 1e-1"]
    assert [r["runs"] for r in record["results"]] == [17, 17, 17]
    median, low, high = interval(HIGH)
    assert record["results"][0] == {
        "quantity": "rho",
        "setting": "n=11",
        "median": median,
        "low": low,
        "high": high,
        "runs": 17,
    }


def test_the_same_values_give_the_same_record():
    assert decide("above", rho=HIGH).record == decide("above", rho=HIGH.clone()).record


def test_the_page_shows_verdict_claim_and_interval_and_escapes_them():
    found = decide("below", rho=torch.full((17,), 0.25))
    shown = found._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html", MIME} and shown[MIME] == found.record
    assert shown["text/plain"] == str(found) == "supported: below. high(rho) <= 0.5: median 0.25 [0.25, 0.25], 17 runs"
    assert "A &lt; B &amp; C." in shown["text/html"] and "high(rho) &lt;= 0.5" in shown["text/html"]
    assert 'class="claim claim-supported"' in shown["text/html"]


def notebook(path, *verdicts):
    """An executed notebook at `path` whose cells show the verdicts, as Jupyter writes it."""
    code = nbformat.v4.new_code_cell
    cells = [
        nbformat.v4.new_markdown_cell("# A chapter"),
        code("1 + 1", outputs=[nbformat.v4.new_output("stream", text="2")]),
    ]
    for v in verdicts:
        cells.append(
            code(
                "v",
                outputs=[nbformat.v4.new_output("execute_result", v._repr_mimebundle_(), execution_count=1)],
            )
        )
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def test_the_records_are_read_back_from_the_notebooks_of_a_folder(book):
    verdicts = {name: decide(name, rho={"n=11": HIGH, "n=7": LOW}) for name in ("above", "below", "strictly-below")}
    notebook(book / "02_second.ipynb", verdicts["above"])
    notebook(book / "01_first.ipynb", verdicts["below"], verdicts["strictly-below"])
    found = collect(book)
    assert [(r["chapter"], r["id"]) for r in found] == [
        ("01_first", "below"),
        ("01_first", "strictly-below"),
        ("02_second", "above"),
    ]
    assert found[2] == {**verdicts["above"].record, "chapter": "02_second"}
    assert collect() == found


def test_a_folder_without_verdicts_has_no_records(book):
    notebook(book / "intro.ipynb")
    assert collect(book) == []


@pytest.mark.parametrize("second", ["01_first", "02_second"])
def test_a_claim_that_is_decided_twice_is_an_error_that_names_both_places(book, second):
    verdict = decide("above", rho=HIGH)
    notebook(book / "01_first.ipynb", *[verdict] * (2 if second == "01_first" else 1))
    if second != "01_first":
        notebook(book / f"{second}.ipynb", verdict)
    with pytest.raises(ValueError, match=f"claim above is decided in 01_first and {second}"):
        collect(book)


def test_claims_are_found_from_the_working_folder_and_from_below_the_books_parent(book, monkeypatch):
    project = book / "project"
    (project / "book").mkdir(parents=True)
    (project / "deep" / "er").mkdir(parents=True)
    (project / "book" / "claims.yml").write_text("[{id: other}]")
    for folder in (project, project / "book", project / "deep" / "er"):
        monkeypatch.chdir(folder)
        assert registered() == [{"id": "other"}]


def test_no_claims_file_is_an_error_that_says_where_it_was_looked_for(book, monkeypatch):
    (book / "claims.yml").unlink()
    with pytest.raises(FileNotFoundError, match=f"no claims.yml in {re.escape(str(book))}"):
        registered()


def test_the_registered_claims_are_complete_unique_and_readable(monkeypatch):
    monkeypatch.chdir(BOOK)
    entries = registered()
    ids = [entry["id"] for entry in entries]
    assert len(set(ids)) == len(ids) > 0
    for entry in entries:
        assert set(entry) == {"id", "statement", "source", "metric", "rule"}
        assert all(entry[field] for field in entry)
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", entry["id"])
        assert isinstance(entry["rule"], list)


def test_every_registered_rule_can_decide(monkeypatch):
    monkeypatch.chdir(BOOK)
    for entry in registered():
        quantities = {re.match(r"\w+\((\w+)\)", text).group(1): HIGH for text in entry["rule"]}
        assert ib.claims.decide(entry["id"], **quantities).verdict in ib.claims.MARKS


def test_a_rule_is_read_into_its_parts():
    assert parse_rule("high(rate) <= -1e-3", "x") == ("high", "rate", "<=", -1e-3)


def test_holm_adjusts_wilcoxons_p_values_step_by_step():
    rng = np.random.default_rng(0)
    samples = [rng.normal(centre, size=20) for centre in (0.0, 1.0, 0.6)] + [np.zeros(20)]
    null, first, second = (wilcoxon(x).pvalue for x in samples[:3])
    assert first < second < null and 3 * second < 2 * null < 1  # so no step is held back by the one before
    np.testing.assert_allclose(holm(samples), [2 * null, 4 * first, 3 * second, 1.0])
    np.testing.assert_allclose(holm([samples[1]] * 3), [3 * first] * 3)  # here each is: (3 p, 2 p, p)


def test_holm_keeps_the_rate_of_any_false_alarm():
    rng = np.random.default_rng(1)
    alarms = [(holm(list(rng.normal(size=(5, 16)))) < 0.2).any() for _ in range(300)]
    assert 0.12 < np.mean(alarms) < 0.24  # unadjusted tests: 1 - 0.8^5 = 0.67
