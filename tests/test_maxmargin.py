"""The exact margins: closed forms, independent solvers, and the certificate of weak duality."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog
from sklearn.svm import SVC

import ibutils as ib

NORMS = [1, 2, math.inf]
SR3 = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1]], dtype=torch.float64)
every_norm = pytest.mark.parametrize("p", NORMS)


def conjugate(p):
    return math.inf if p == 1 else 1 if p == math.inf else p / (p - 1)


def solve(Z, p, y=None):
    """max_margin of one run Z [n, d], by default with every label +1."""
    Z = torch.as_tensor(Z, dtype=torch.float64).unsqueeze(0)
    y = torch.ones(Z.shape[:2], dtype=Z.dtype) if y is None else torch.as_tensor(y, dtype=Z.dtype).unsqueeze(0)
    return ib.max_margin(Z, y, norm=p)


@pytest.mark.parametrize(("p", "gamma"), [(1, 2.0), (2, math.sqrt(5)), (math.inf, 3.0)])
def test_the_margin_of_plus_and_minus_1_2_is_2_sqrt_5_and_3(p, gamma):
    svm = solve([[1.0, 2.0], [-1.0, -2.0]], p, y=[1, -1])
    assert svm.norm == p
    assert svm.gamma.item() == pytest.approx(gamma, rel=1e-9)


@pytest.mark.parametrize("p", [1.5, 2, 3, 4.5, math.inf])
def test_the_margin_of_one_point_is_its_dual_norm_along_its_dual_vector(p):
    x = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    q = conjugate(p)
    direction = x.sign() * x.abs() ** (q - 1)
    svm = solve(x[None], p)
    assert svm.gamma.item() == pytest.approx(torch.linalg.vector_norm(x, ord=q).item(), rel=1e-8)
    assert torch.allclose(svm.w[0], direction / torch.linalg.vector_norm(direction, ord=p), atol=1e-5)


def test_the_l3_margin_of_1_2_is_1_plus_2_to_the_three_halves_to_the_two_thirds():
    svm = solve([[1.0, 2.0]], 3)
    assert svm.gamma.item() == pytest.approx((1 + 2**1.5) ** (2 / 3), rel=1e-9)
    assert (svm.w[0, 1] / svm.w[0, 0]).item() == pytest.approx(math.sqrt(2), rel=1e-5)


@pytest.mark.parametrize(
    ("p", "gamma", "w"),
    [(2, 2 / math.sqrt(3), [3 / math.sqrt(12)] + 3 * [1 / math.sqrt(12)]), (math.inf, 2, 4 * [1])],
)
def test_the_rademacher_set_tells_l2_from_linf(p, gamma, w):
    svm = solve(SR3, p)
    assert svm.gamma.item() == pytest.approx(gamma, rel=1e-9)
    assert torch.allclose(svm.w[0], torch.tensor(w, dtype=torch.float64), atol=1e-6)


def test_the_l2_margin_is_that_of_scikit_learns_hard_margin_svc():
    X, y = ib.data.gaussian_separable(11, 5, range(7))
    svm = ib.max_margin(X, y, norm=2)
    for r in range(7):
        # With -x, -y beside every x, y the optimal intercept is zero.
        svc = SVC(C=1e10, kernel="linear", tol=1e-12).fit(torch.cat([X[r], -X[r]]), torch.cat([y[r], -y[r]]))
        w = torch.tensor(svc.coef_[0])
        assert svm.gamma[r].item() == pytest.approx(1 / w.norm().item(), rel=1e-6)
        assert torch.allclose(svm.w[r], w / w.norm(), atol=1e-6)


def lp_margin(Z, p):
    """max t over (w, t, u) with Z w >= t and ||w||_p <= 1, as a linear program of scipy."""
    n, d = Z.shape
    above = np.hstack([-Z, np.ones((n, 1))])
    if p == math.inf:
        found = linprog(np.r_[np.zeros(d), -1], A_ub=above, b_ub=np.zeros(n), bounds=[(-1, 1)] * d + [(None, None)])
    else:
        eye, zero = np.eye(d), np.zeros((d, 1))
        A = np.block([[above, np.zeros((n, d))], [eye, zero, -eye], [-eye, zero, -eye]])
        A = np.vstack([A, np.r_[np.zeros(d + 1), np.ones(d)]])
        b = np.r_[np.zeros(n + 2 * d), 1]
        found = linprog(np.r_[np.zeros(d), -1, np.zeros(d)], A_ub=A, b_ub=b, bounds=(None, None))
    assert found.status == 0
    return -found.fun


@pytest.mark.parametrize("p", [1, math.inf])
@pytest.mark.parametrize(("n", "d"), [(11, 5), (5, 13)])
def test_the_l1_and_linf_margins_are_those_of_scipys_linear_program(p, n, d):
    X, y = ib.data.gaussian_separable(n, d, range(7))
    svm = ib.max_margin(X, y, norm=p)
    expected = [lp_margin(Z, p) for Z in (y[:, :, None] * X).numpy()]
    assert svm.gamma.numpy() == pytest.approx(np.array(expected), rel=1e-6)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
def test_every_field_is_a_certified_solution_of_its_run(p):
    X, y = ib.data.gaussian_separable(11, 5, range(3))
    svm = ib.max_margin(X, y, norm=p)
    Z = y[:, :, None] * X
    q = torch.einsum("rnd,rd->rn", Z, svm.w)
    combined = torch.einsum("rnd,rn->rd", Z, svm.alpha)
    upper = torch.linalg.vector_norm(combined, ord=conjugate(p), dim=1)
    ones = torch.ones(3, dtype=torch.float64)
    assert [f.shape for f in (svm.w, svm.gamma, svm.alpha, svm.gap)] == [(3, 5), (3,), (3, 11), (3,)]
    assert torch.allclose(torch.linalg.vector_norm(svm.w, ord=p, dim=1), ones, atol=1e-12)
    assert torch.allclose(svm.alpha.sum(1), ones, atol=1e-12) and (svm.alpha >= 0).all()
    assert torch.allclose(q.min(1).values, svm.gamma, rtol=0, atol=1e-12)
    assert torch.allclose(upper - svm.gamma, svm.gap, rtol=0, atol=1e-12)
    assert (svm.gap <= 1e-6 * svm.gamma).all() and (svm.gap >= -1e-12).all()


@every_norm
def test_dual_weights_rest_on_points_at_the_margin_only(p):
    X, y = ib.data.gaussian_separable(11, 5, range(7))
    svm = ib.max_margin(X, y, norm=p)
    q = y * torch.einsum("rnd,rd->rn", X, svm.w)
    carried = svm.alpha > 1e-6
    assert ((q - svm.gamma[:, None])[carried] < 1e-4 * svm.gamma[:, None].expand_as(q)[carried]).all()
    assert carried.any(1).all() and not carried.all()


floats = st.floats(-5, 5, allow_subnormal=False)
SETS = ib.data.gaussian_separable(11, 5, range(3))


@cache
def solved(p):
    return ib.max_margin(*SETS, norm=p)


@every_norm
@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    w=arrays(float, 5, elements=floats).filter(lambda w: np.abs(w).max() > 1e-3),
    alpha=arrays(float, 11, elements=st.floats(0, 1, allow_subnormal=False)).filter(lambda a: a.sum() > 1e-3),
)
def test_any_w_and_any_dual_weights_bracket_the_margin(p, w, alpha):
    X, y = SETS
    for Z, gamma in zip((y[:, :, None] * X).numpy(), solved(p).gamma.tolist(), strict=True):
        assert (Z @ w).min() / np.linalg.norm(w, p) <= gamma * (1 + 1e-6)
        assert gamma <= np.linalg.norm(alpha / alpha.sum() @ Z, conjugate(p)) * (1 + 1e-9)


@every_norm
@settings(deadline=None, max_examples=25, derandomize=True)
@given(Z=arrays(float, (3, 2), elements=floats.map(lambda x: round(x, 3))))
def test_any_set_is_either_solved_or_certified_inseparable(p, Z):
    try:
        svm = solve(Z, p)
    except ib.NotSeparable as found:
        assert np.abs(found.alpha @ Z).max() <= 1e-6 * (np.abs(Z).max() or 1)
        assert found.alpha.min() >= 0 and found.alpha.sum() == pytest.approx(1)
    else:
        assert svm.gamma.item() > 0 and svm.gap.item() <= 1e-6 * svm.gamma.item()


@every_norm
@pytest.mark.parametrize("scale", [3.0, 1e-5, 1e7])
def test_scaling_the_data_scales_the_margin(p, scale):
    X, y = SETS
    scaled = ib.max_margin(scale * X, y, norm=p)
    assert torch.allclose(scaled.gamma, scale * solved(p).gamma, rtol=1e-8, atol=0)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_scale_whose_square_is_no_float_is_no_obstacle(scale):
    X, y = SETS
    scaled = ib.max_margin(scale * X, y, norm=2)
    assert torch.allclose(scaled.gamma, scale * solved(2).gamma, rtol=1e-8, atol=0)


@every_norm
def test_reordering_points_and_coordinates_reorders_the_solution(p):
    X, y = SETS
    points, coordinates = torch.randperm(11), torch.randperm(5)
    moved = ib.max_margin(X[:, points][:, :, coordinates], y[:, points], norm=p)
    assert torch.allclose(moved.gamma, solved(p).gamma, rtol=1e-8)
    assert torch.allclose(moved.w, solved(p).w[:, coordinates], atol=1e-5)
    assert torch.allclose(moved.alpha, solved(p).alpha[:, points], atol=1e-5)


@every_norm
def test_flipping_a_point_with_its_label_changes_nothing_so_one_class_is_an_ordinary_set(p):
    X, y = SETS
    one_class = ib.max_margin(y[:, :, None] * X, torch.ones_like(y), norm=p)
    assert torch.allclose(one_class.gamma, solved(p).gamma, rtol=1e-9)
    assert torch.allclose(one_class.w, solved(p).w, atol=1e-7)


def test_integer_labels_and_float32_inputs_are_solved_in_float64():
    X, y = SETS
    svm = ib.max_margin(X.float().requires_grad_(), y.int(), norm=2)
    assert svm.gamma.dtype == torch.float64 and not svm.gamma.requires_grad
    assert torch.allclose(svm.gamma, solved(2).gamma, rtol=1e-5)


@every_norm
def test_an_inseparable_run_is_named_and_carries_its_proof(p):
    X, y = SETS
    X = X.clone()
    X[1, 7] = -X[1, 3] * y[1, 3] * y[1, 7]
    with pytest.raises(ValueError, match="run 1 is not linearly separable") as raised:
        ib.max_margin(X, y, norm=p)
    found = raised.value
    combined = found.alpha @ (y[1, :, None] * X[1]).numpy()
    assert isinstance(found, ib.NotSeparable) and found.run == 1
    assert found.alpha.shape == (11,) and found.alpha.min() >= 0
    assert found.alpha.sum() == pytest.approx(1, abs=1e-12)
    assert np.abs(combined).max() <= 1e-6 * X[1].abs().max()
    assert np.linalg.norm(combined, conjugate(p)) / X[1].abs().max() == pytest.approx(found.residual)
    with pytest.raises(ValueError, match="run 0 is not linearly separable"):
        ib.max_margin(X[1:], y[1:], norm=p)
    assert torch.allclose(ib.max_margin(X[::2], y[::2], norm=p).gamma, solved(p).gamma[::2])


@every_norm
def test_a_point_at_the_origin_is_separable_from_nothing(p):
    X, y = SETS
    with pytest.raises(ib.NotSeparable, match="run 0"):
        ib.max_margin(torch.cat([X, torch.zeros(3, 1, 5)], dim=1), torch.cat([y, torch.ones(3, 1)], dim=1), norm=p)


@every_norm
def test_a_set_that_some_w_separates_is_never_called_inseparable(p):
    # (1, 0) separates both points with margin 1; only the scale of the second one is unusual.
    try:
        svm = solve([[1.0, 0.0], [1e7, 1.0]], p)
    except RuntimeError:
        return
    assert svm.gamma.item() == pytest.approx(1, rel=1e-6)


def test_a_gap_above_the_tolerance_is_an_error_and_not_an_answer():
    with pytest.raises(RuntimeError, match="run 0: duality gap .* exceeds tol"):
        ib.max_margin(*SETS, norm=2, tol=1e-18)


def replaced(value, index=(2, 3, 1)):
    X = SETS[0].clone()
    X[index] = value
    return X


@pytest.mark.parametrize(
    ("X", "y", "p", "message"),
    [
        (replaced(math.nan), SETS[1], 2, "X holds nan or infinite values in run 2"),
        (replaced(-math.inf), SETS[1], 2, "X holds nan or infinite values in run 2"),
        (SETS[0], (SETS[1] + 1) / 2, 2, r"y must be -1 or \+1, got \[0.0, 1.0\] in run 0"),
        (SETS[0], 2 * SETS[1], 2, r"y must be -1 or \+1, got \[-2.0, 2.0\] in run 0"),
        (SETS[0], SETS[1] * math.nan, 2, r"y must be -1 or \+1, got \[nan"),
        (
            SETS[0],
            SETS[1][:, :7],
            2,
            r"X must be \[runs, n, d\] and y \[runs, n\], got \(3, 11, 5\) and \(3, 7\)",
        ),
        (SETS[0][0], SETS[1][0], 2, r"X must be \[runs, n, d\] and y \[runs, n\], got \(11, 5\) and \(11,\)"),
        (
            SETS[0][:, :0],
            SETS[1][:, :0],
            2,
            r"at least one run, point and feature, got \[runs, n, d\] = \[3, 0, 5\]",
        ),
        (SETS[0][:, :, :0], SETS[1], 2, r"at least one run, point and feature, got .* \[3, 11, 0\]"),
        (SETS[0][:0], SETS[1][:0], 2, r"at least one run, point and feature, got .* \[0, 11, 5\]"),
        (*SETS, 0.5, "norm must be a number p >= 1 or math.inf, got 0.5"),
        (*SETS, math.nan, "norm must be a number p >= 1 or math.inf, got nan"),
        (*SETS, "foo", "norm must be a number p >= 1 or math.inf, got .?foo"),
    ],
)
def test_a_bad_input_is_an_error_that_says_what_and_where(X, y, p, message):
    with pytest.raises(ValueError, match=message):
        ib.max_margin(X, y, norm=p)
