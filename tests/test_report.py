"""Numbers, tables and intervals as a page shows them."""

import math

import pandas as pd
import pytest
import torch

import ibutils as ib


def test_a_number_is_kept_for_the_text_as_a_plain_float(monkeypatch):
    kept = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: kept.update({name: (value, display)}))
    ib.report.put("gap", torch.tensor(0.25, dtype=torch.float64))
    assert kept == {"gap": (0.25, False)} and type(kept["gap"][0]) is float


def test_a_table_has_a_row_for_each_key_and_names_for_the_parts_of_a_key():
    found = ib.report.table({("GD", 2): {"rho": 0.5}, ("Adam", 3): {"rho": 0.75}}, "optimizer", "L")
    assert list(found.index) == [("GD", 2), ("Adam", 3)] and list(found.index.names) == ["optimizer", "L"]
    assert found["rho"].tolist() == [0.5, 0.75]


def test_a_table_of_nothing_is_empty():
    assert isinstance(ib.report.table({}, "optimizer", "L"), pd.DataFrame) and ib.report.table({}, "optimizer").empty


@pytest.mark.parametrize(
    ("digits", "shown"), [(".3f", "2.000 [2.000,\N{NO-BREAK SPACE}2.000]"), (".2g", "2 [2,\N{NO-BREAK SPACE}2]")]
)
def test_a_spread_is_the_median_with_its_interval(digits, shown):
    assert ib.report.spread(torch.full((7,), 2.0), digits) == shown


def test_a_spread_is_left_out_if_a_run_has_no_value():
    assert ib.report.spread(torch.tensor([1.0, math.nan, 2.0])) == ""
