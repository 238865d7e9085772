"""What is measured: closed forms, and ratios that are one where the theory says one."""

import math
from functools import cache

import pytest
import torch

import ibutils as ib

NORMS = [1, 2, math.inf]
X, y = ib.data.gaussian_separable(11, 5, range(3))
every_norm = pytest.mark.parametrize("p", NORMS)


@cache
def solved(p):
    return ib.max_margin(X, y, norm=p)


@pytest.mark.parametrize(("p", "expected"), [(1, 9), (2, 5), (3, 81 ** (1 / 3)), (math.inf, 4)])
def test_the_norm_runs_over_all_entries_of_all_parameters_of_a_run(p, expected):
    matrix = torch.tensor([[[1.0, -2.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    vector = torch.tensor([[-2.0], [-2.0]])
    found = ib.measures.norm([matrix, vector], p)
    assert found.tolist() == pytest.approx([expected, 2], rel=1e-6)
    assert not found.requires_grad


def test_the_norm_takes_the_parameters_of_a_module():
    net = ib.models.Linear(3, 5, scale=1.0, seeds=range(3))
    assert torch.allclose(ib.measures.norm(net.parameters(), 2), net.weight.detach().norm(dim=1))


@every_norm
def test_the_normalized_margin_of_the_exact_direction_is_gamma_at_any_length(p):
    w = torch.tensor([[1e-3], [1.0], [1e9]]) * solved(p).w
    q = y * (X * w[:, None]).sum(-1)
    margin = ib.measures.normalized_margin(q.requires_grad_(), [w], p)
    assert torch.allclose(margin, solved(p).gamma, rtol=1e-9)
    assert not margin.requires_grad


def test_the_normalized_margin_of_a_product_of_two_layers_has_degree_two():
    w, scale = solved(2).w, torch.tensor([[3.0]] * 3, dtype=torch.float64)
    q = y * (X * w[:, None]).sum(-1) * scale
    one, two = ([k * w, k * scale] for k in (1, 7))
    margins = [ib.measures.normalized_margin(k**2 * q, params, 2, degree=2) for k, params in ((1, one), (7, two))]
    assert torch.allclose(margins[0], 3 * solved(2).gamma / 10)
    assert torch.allclose(*margins)


def test_the_margin_at_the_origin_is_nan_since_it_has_no_direction():
    zero = torch.zeros(3, 5, dtype=torch.float64)
    assert ib.measures.normalized_margin(torch.zeros(3, 11), [zero], 2).isnan().all()
    assert ib.measures.margin_ratio(X, y, zero, solved(2)).isnan().all()


@every_norm
def test_the_margin_ratio_is_one_at_the_exact_solution_and_at_most_minus_one_opposite_to_it(p):
    best = solved(p)
    assert torch.allclose(
        ib.measures.margin_ratio(X, y, 7 * best.w, best), torch.ones(3, dtype=torch.float64), atol=1e-9
    )
    backwards = ib.measures.margin_ratio(X, y, -best.w, best)
    assert (backwards < -1 + 1e-9).all() and torch.isfinite(backwards).all()


@every_norm
def test_no_direction_beats_the_certified_margin(p):
    w = torch.randn(101, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (ib.measures.margin_ratio(X, y, w, solved(p)) <= 1 + 1e-6).all()


def test_the_margin_ratio_of_a_trajectory_is_that_of_each_of_its_points():
    w = torch.randn(7, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ratios = ib.measures.margin_ratio(X, y, w, solved(1))
    q = y * (X * w[2][:, None]).sum(-1)
    assert ratios.shape == (7, 3)
    assert torch.allclose(ratios[2], ib.measures.normalized_margin(q, [w[2]], 1) / solved(1).gamma)


def test_the_l2_direction_is_short_of_the_linf_margin_on_the_rademacher_set():
    Z = torch.tensor([[[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1]]], dtype=torch.float64)
    ones = torch.ones(1, 3, dtype=torch.float64)
    w = torch.tensor([[3, 1, 1, 1]], dtype=torch.float64)
    ratio = ib.measures.margin_ratio(Z, ones, w, ib.max_margin(Z, ones, norm=math.inf))
    assert ratio.item() == pytest.approx(4 / 3 / 2, rel=1e-9)
