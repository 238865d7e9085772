"""What the benchmarks rest on: contenders do the same work, and a table keeps what was not measured again."""

import json

import numpy as np
import torch
from contenders import Closed, Loop, Scan, SharedStack, Stack, jax_on
from results import Table

import ibutils as ib


def bench_contenders_compute_the_same():
    X, y = ib.data.gaussian_separable(13, 5, [0, 0, 1, 1])
    make = lambda: ib.models.MLP(4, [5, 7, 7, 1], range(4), torch.relu)
    weights = list(make().weights)
    rivals = [Stack(make(), X, y), Stack(make(), X, y, fused=True), Closed(make(), X, y), Loop(weights, X, y)]
    if jax_on("cpu"):
        rivals += [Scan(weights, X, y), Scan(weights, X, y, shared=2)]
    for rival in rivals:
        rival.advance(30)
        np.testing.assert_allclose(rival.losses(), rivals[0].losses(), rtol=1e-9)


def bench_runs_on_shared_data_are_those_on_copies():
    X, y = ib.data.gaussian_separable(13, 5, range(2))
    make = lambda: ib.models.Linear(6, 5, 0.1, range(6))
    copies = Stack(make(), *(a.repeat_interleave(3, 0) for a in (X, y)))
    shared = SharedStack(make(), X, y)
    for contender in (copies, shared):
        contender.advance(30)
    np.testing.assert_allclose(shared.losses(), copies.losses(), rtol=1e-9)


def bench_a_row_measured_again_replaces_its_like_only(tmp_path):
    for case, value in (("one", 1.0), ("two", 2.0), ("one", 3.0)):
        table = Table()
        table.add("linear", case, "ours", times_ours=[value])
        table.write(tmp_path / "cost.json")
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert {row["case"]: row["median"] for row in rows} == {"one": 3.0, "two": 2.0}
