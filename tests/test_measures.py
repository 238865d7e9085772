"""What is measured: closed forms, and ratios that are one where the theory says one."""

import math
from functools import cache
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

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


def test_the_margin_ratio_at_p_100_is_mpmaths_for_weights_of_2000_and_of_a_thousandth():
    # |w|^100 is 1e330 or 1e-300 and less; the ratio knows no length.
    w = 2000 * torch.tensor([[1.0, -0.99, 0.9, 0.1, 0.0]], dtype=torch.float64).expand(3, -1)
    best = ib.MaxMargin(100.0, w, *torch.tensor([[2.0, 3, 5], [1, 1, 1], [0, 0, 0]], dtype=torch.float64))
    size = float(mpmath.root(sum(abs(mpmath.mpf(entry)) ** 100 for entry in w[0].tolist()), 100))
    expected = (y * (X * w[:, None]).sum(-1)).min(1).values / size / best.gamma
    with pytest.raises(OverflowError):
        w[0, 0].item() ** 100
    for scale in (1.0, 1e-7, 1e300):
        assert torch.allclose(ib.measures.margin_ratio(X, y, scale * w, best), expected, rtol=1e-12, atol=0)


MATRIX_NORMS = ["fro", "spectral", "nuclear", "max"]
every_matrix_norm = pytest.mark.parametrize("name", MATRIX_NORMS)
CLASSES = (X @ torch.randn(3, 5, 4, dtype=X.dtype, generator=torch.Generator().manual_seed(1))).argmax(-1)  # of 4
# [..., runs, k, d], of which each point is somewhere the one of least margin
TRAJECTORY = torch.randn(2, 7, 3, 4, 5, dtype=X.dtype, generator=torch.Generator().manual_seed(4))


def matrix_norm(W, name):
    """Of one matrix [k, d], by numpy."""
    W = W.numpy()
    return (
        np.abs(W).max() if name == "max" else np.linalg.norm(W, {"fro": "fro", "spectral": 2, "nuclear": "nuc"}[name])
    )


def class_ratio(r, W, name):
    """The margin ratio of one matrix on the data of run r, one comparison of two classes at a time."""
    leads = []
    for x, own in zip(X[r], CLASSES[r].tolist(), strict=True):
        leads += [((W[own] - W[c]) @ x).item() for c in range(4) if c != own]
    return min(leads) / matrix_norm(W, name) / classes_solved(name).gamma[r].item()


@cache
def classes_solved(name):
    return ib.max_margin(X, CLASSES, norm=name)


@every_matrix_norm
def test_the_margin_ratio_of_a_trajectory_of_matrices_is_that_of_every_pair_of_classes(name):
    found = ib.measures.margin_ratio(X, CLASSES, TRAJECTORY, classes_solved(name))
    assert found.shape == (2, 7, 3)
    for *t, r in np.ndindex(2, 7, 3):
        assert found[*t, r].item() == pytest.approx(class_ratio(r, TRAJECTORY[*t, r], name), rel=1e-12)
    assert (found <= 1 + 1e-6).all()


@every_matrix_norm
def test_the_margin_ratio_is_one_at_the_exact_matrix_and_nan_at_the_origin(name):
    best = classes_solved(name)
    ones = torch.ones(3, dtype=torch.float64)
    assert torch.allclose(ib.measures.margin_ratio(X, CLASSES, 7 * best.w, best), ones, atol=1e-9)
    assert (ib.measures.margin_ratio(X, CLASSES, -best.w, best) < -1 + 1e-9).all()
    assert ib.measures.margin_ratio(X, CLASSES, 0 * best.w, best).isnan().all()


@every_matrix_norm
def test_the_margin_ratio_does_not_see_what_all_classes_share(name):
    shared = TRAJECTORY.mean(-2, keepdim=True)
    before, after = (
        ib.measures.margin_ratio(X, CLASSES, W, classes_solved(name)) for W in (TRAJECTORY, TRAJECTORY - shared)
    )
    sizes = [
        torch.tensor([matrix_norm(W, name) for W in part.flatten(0, 2)]) for part in (TRAJECTORY, TRAJECTORY - shared)
    ]
    assert torch.allclose(before.flatten() * sizes[0], after.flatten() * sizes[1], rtol=1e-10)


def test_the_fingerprint_of_matrices_is_the_margin_ratio_of_every_norm():
    best = {name: classes_solved(name) for name in reversed(MATRIX_NORMS)}
    found = ib.measures.fingerprint(X, CLASSES, TRAJECTORY, best)
    assert found.shape == (4, 2, 7, 3)
    for name, ratios in zip(best, found, strict=True):
        assert ratios[1, 2, 1].item() == pytest.approx(class_ratio(1, TRAJECTORY[1, 2, 1], name), rel=1e-12)


@every_matrix_norm
def test_the_fingerprint_of_an_exact_matrix_is_one_at_its_own_norm_and_less_at_another(name):
    best = {other: classes_solved(other) for other in MATRIX_NORMS}
    ratios = dict(zip(best, ib.measures.fingerprint(X, CLASSES, best[name].w, best), strict=True))
    assert ratios.pop(name).tolist() == pytest.approx([1, 1, 1], abs=1e-9)
    assert (torch.stack(list(ratios.values())) < 0.999).all()


def test_the_fingerprint_of_vectors_is_the_margin_ratio_of_every_norm():
    best = {p: solved(p) for p in (math.inf, 1, 2)}
    w = torch.randn(7, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ib.measures.fingerprint(X, y, w, best)
    assert found.shape == (3, 7, 3)
    q = y * (X * w[2][:, None]).sum(-1)
    for p, ratios in zip(best, found, strict=True):
        assert torch.allclose(ratios[2], ib.measures.normalized_margin(q, [w[2]], p) / solved(p).gamma, rtol=1e-12)
    own = ib.measures.fingerprint(X, y, torch.stack([solved(p).w for p in best]), best)
    assert torch.allclose(own.diagonal().T, torch.ones(3, 3, dtype=torch.float64), atol=1e-9)
    assert (own <= 1 + 1e-6).all() and own.min() < 0.97


def test_the_l2_direction_is_short_of_the_linf_margin_on_the_rademacher_set():
    Z = torch.tensor([[[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1]]], dtype=torch.float64)
    ones = torch.ones(1, 3, dtype=torch.float64)
    w = torch.tensor([[3, 1, 1, 1]], dtype=torch.float64)
    ratio = ib.measures.margin_ratio(Z, ones, w, ib.max_margin(Z, ones, norm=math.inf))
    assert ratio.item() == pytest.approx(4 / 3 / 2, rel=1e-9)


def test_the_median_of_an_even_number_of_runs_is_the_mean_of_the_middle_two():
    assert ib.measures.median([7, 1, 2, 5]).item() == 3.5 and ib.measures.median([7, 1, 2]).item() == 2
    assert ib.measures.median(torch.tensor([[1, 2], [7, 3], [5, 11]]), dim=0).tolist() == [5, 3]


DEPTHS = {1: [5, 1], 2: [5, 7, 1], 3: [5, 7, 7, 1], 5: [5, 7, 7, 7, 7, 1]}
two_norms = pytest.mark.parametrize("p", [2, math.inf])
every_depth = pytest.mark.parametrize("depth", DEPTHS)
one_class = torch.ones_like(y)


def network(weights, activation=None):
    """The MLP that holds `weights`, each [runs, fan_out, fan_in]."""
    sizes = [weights[0].shape[2], *(W.shape[1] for W in weights)]
    net = ib.models.MLP(len(weights[0]), sizes, range(len(weights[0])), activation)
    with torch.no_grad():
        for param, W in zip(net.weights, weights, strict=True):
            param.copy_(W)
    return net


def rank_one(*u):
    """The deep linear network W_l = u_{l+1} u_l^T of the vectors u_1, u_2, ..., each [runs, size], and u_{L+1} = 1."""
    u = [*u, torch.ones(3, 1, dtype=torch.float64)]
    return network([above.unsqueeze(2) * below.unsqueeze(1) for below, above in pairwise(u)])


def separating(depth, activation=torch.relu):
    """A network at random, and the labels it gives: it separates the set, and nothing makes it a KKT point."""
    net = ib.models.MLP(3, DEPTHS[depth], [1, 4, 6], activation)
    return net, net(X).detach().sign()


def units(p, count):
    """`count` tensors [runs, 7] at random whose outer products have l_p norm one: unit vectors for 2, signs for inf."""
    draw = torch.randn(count, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return draw.sign() if p == math.inf else draw / draw.norm(dim=-1, keepdim=True)


@cache
def exactly_solved(p):
    return ib.max_margin(X, y, norm=p, tol=1e-9).w


def of_max_margin(p, depth):
    """Layers of equal norm that multiply to the direction of the largest l_p margin."""
    return rank_one(exactly_solved(p), *units(p, depth - 1))


@two_norms
@every_depth
def test_the_kkt_gap_is_zero_at_the_deep_linear_network_of_the_max_margin_direction(p, depth):
    gap = ib.measures.kkt_gap(of_max_margin(p, depth), X, y, p)
    assert gap.shape == (3,) and gap.dtype == torch.float64 and not gap.requires_grad
    assert (gap.abs() < 1e-6).all()


@two_norms
def test_the_kkt_gap_notices_a_step_of_one_percent_away_from_a_kkt_point(p):
    net = of_max_margin(p, 3)
    with torch.no_grad():
        net.weights[1].mul_(1.01)
        net.weights[0].add_(0.01 * net.weights[0].roll(1, dims=2))
    gap = ib.measures.kkt_gap(net, X, y, p)
    assert (gap > 1e-4).all() and (gap < 0.1).all()


def test_the_kkt_gap_is_zero_at_one_relu_neuron_along_the_max_margin_direction_of_one_class():
    w = exactly_solved(2)
    first, last = torch.zeros(3, 7, 5, dtype=w.dtype), torch.zeros(3, 1, 7, dtype=w.dtype)
    first[:, 3], last[:, 0, 3] = w, 1.0
    for c in (1.0, 2.0):  # the layers c and 1/c leave f as it is and c^2 + 1/c^2 as the squared length
        net = network([c * first, last / c], torch.relu)
        gap = ib.measures.kkt_gap(net, y[:, :, None] * X, one_class, 2)
        assert gap.tolist() == pytest.approx([1 - 2 / (c**2 + c**-2)] * 3, abs=1e-6)


def test_a_kkt_point_need_not_have_the_largest_margin():
    # Vardi, Shamir & Srebro (2022): one neuron between two points, and one neuron for each, in one stack of two runs.
    Z = torch.tensor([[[1.0, 0.25], [-1.0, 0.25]]], dtype=torch.float64).expand(2, -1, -1)
    ones, half = torch.ones(2, 2, dtype=torch.float64), math.sqrt(0.5)
    directions = Z[0] / Z[0].norm(dim=1, keepdim=True)
    first = torch.stack([torch.tensor([[0.0, half], [0.0, 0.0]], dtype=torch.float64), directions / 2])
    last = torch.tensor([[[half, 0.0]], [[0.5, 0.5]]], dtype=torch.float64)
    net = network([first, last], torch.relu)
    margins = ib.measures.normalized_margin(ones * net(Z), net.parameters(), 2, degree=2)
    assert margins.tolist() == pytest.approx([1 / 8, math.sqrt(17) / 16], rel=1e-12)
    assert (ib.measures.kkt_gap(net, Z, ones, 2).abs() < 1e-6).all()


@two_norms
@every_depth
@pytest.mark.parametrize("activation", [None, torch.relu])
def test_the_kkt_gap_is_far_from_zero_at_a_random_network_and_the_same_at_any_length(p, depth, activation):
    net, labels = separating(depth, activation)
    gap = ib.measures.kkt_gap(net, X, labels, p)
    assert (gap > 0.1).all() and (gap <= 1).all()
    longer = network([7 * W for W in net.weights], activation)
    assert torch.allclose(ib.measures.kkt_gap(longer, X, labels, p), gap, rtol=0, atol=2e-6)


@two_norms
def test_the_kkt_gap_is_the_shortfall_from_the_max_margin_on_torchs_own_gradients(p):
    net, labels = separating(3)
    features = []
    for r in range(3):
        output = (labels * net(X))[r]
        rows = [torch.autograd.grad(q, net.weights, retain_graph=True) for q in output]
        features.append(torch.stack([torch.cat([g[r].flatten() for g in row]) for row in rows]))
    best = ib.max_margin(torch.stack(features), one_class, norm=p)
    theta = torch.cat([W.detach().flatten(1) for W in net.weights], dim=1)
    expected = 1 - ib.measures.margin_ratio(torch.stack(features), one_class, theta, best)
    assert torch.allclose(ib.measures.kkt_gap(net, X, labels, p), expected, rtol=0, atol=2e-6)


@two_norms
def test_the_kkt_gap_of_one_layer_is_the_bias_gap(p):
    w = exactly_solved(p) + 0.1 * X[:, 0]
    assert torch.allclose(
        ib.measures.kkt_gap(rank_one(w), X, y, p), 1 - ib.measures.margin_ratio(X, y, w, solved(p)), rtol=0, atol=2e-6
    )


def test_the_kkt_gap_of_a_network_that_errs_is_above_one():
    net, labels = separating(2)
    labels[:, 3] *= -1
    assert (ib.measures.kkt_gap(net, X, labels, 2) > 1).all()


def test_the_kkt_gap_is_found_in_float64_and_leaves_a_float32_network_as_it_was():
    fine, labels = separating(2)
    coarse = ib.models.MLP(3, DEPTHS[2], [1, 4, 6], torch.relu, dtype=torch.float32)
    before = [W.detach().clone() for W in coarse.weights]
    found = ib.measures.kkt_gap(coarse, X.float(), labels.float(), 2)
    assert found.dtype == torch.float64
    assert torch.allclose(found, ib.measures.kkt_gap(fine, X, labels, 2), rtol=0, atol=1e-4)
    for W, start in zip(coarse.weights, before, strict=True):
        assert torch.equal(W, start) and W.dtype == torch.float32 and W.grad is None


@two_norms
@pytest.mark.parametrize("spoil", ["opposite labels", "origin"])
def test_where_no_step_improves_every_margin_the_kkt_gap_names_the_run(p, spoil):
    net, labels = separating(2, None)
    inputs = X.clone()
    if spoil == "opposite labels":
        inputs[1, 7], labels[1, 7] = inputs[1, 3], -labels[1, 3]
    else:
        for W in net.weights:
            W.data[1] = 0
    with pytest.raises(ib.NotSeparable, match="run 1") as raised:
        ib.measures.kkt_gap(net, inputs, labels, p)
    assert raised.value.run == 1 and raised.value.alpha.sum() == pytest.approx(1)


def test_a_bracket_wider_than_the_tolerance_is_an_error_and_not_an_answer(monkeypatch):
    net, labels = separating(2)
    monkeypatch.setattr(ib.measures, "nnls", lambda A, b, maxiter: (np.ones(A.shape[1]), 0.0))
    with pytest.raises(RuntimeError, match="run 0: .* known only .* raise tol"):
        ib.measures.kkt_gap(net, X, labels, 2)


@pytest.mark.parametrize("p", [1, 3, math.nan])
def test_the_kkt_gap_has_no_other_norm_than_l2_and_linf(p):
    with pytest.raises(ValueError, match=f"p must be 2 or inf, got {p}"):
        ib.measures.kkt_gap(separating(2)[0], X, y, p)


def test_balancedness_is_the_difference_of_neighbouring_grams_layer_by_layer():
    scalars = network([torch.full((3, 1, 1), a, dtype=torch.float64) for a in (2.0, 3.0, 7.0)])
    assert ib.measures.balancedness(scalars.weights).tolist() == [[5, 40]] * 3
    found = ib.measures.balancedness(ib.models.MLP(3, [5, 7, 2, 1], range(3)).weights)
    assert found.shape == (3, 7 * 7 + 2 * 2) and not found.requires_grad


@every_depth
def test_a_rank_one_chain_of_unit_layers_is_balanced_aligned_and_of_rank_one(depth):
    net = rank_one(X[:, 0] / X[:, 0].norm(dim=1, keepdim=True), *units(2, depth - 1))
    for W in net.weights:
        assert torch.allclose(ib.measures.effective_rank(W), torch.ones(3, dtype=W.dtype), atol=1e-12)
    if depth > 1:
        aligned = ib.measures.layer_alignment(net.weights)
        assert ib.measures.balancedness(net.weights).abs().max() < 1e-14
        assert torch.allclose(aligned, torch.ones(3, depth - 1, dtype=aligned.dtype), atol=1e-12)


@pytest.mark.parametrize("activation", [None, torch.relu])
def test_gradient_descent_keeps_the_balance_to_first_order_in_its_step(activation):
    def drift(lr, steps):
        net = ib.models.MLP(3, DEPTHS[3], range(3), activation)
        opt = torch.optim.SGD(net.parameters(), lr=lr)
        before = ib.measures.balancedness(net.weights)
        for _ in ib.train(opt, lambda: y * net(X), ib.losses.logistic, steps, pauses=[]):
            after = ib.measures.balancedness(net.weights)
        D = (after - before).view(3, 2, 7, 7)
        # Through a relu only the diagonal is conserved, neuron by neuron (Du, Hu & Lee 2018).
        kept = D if activation is None else D.diagonal(dim1=2, dim2=3)
        return kept.flatten(1).norm(dim=1), D.flatten(1).norm(dim=1)

    (coarse, _), (fine, moved) = drift(0.02, 101), drift(0.01, 202)
    assert ((1.7 < coarse / fine) & (coarse / fine < 2.3)).all()
    assert activation is None or (moved > 10 * fine).all()


def test_layer_alignment_is_the_cosine_of_the_directions_that_meet():
    a, b, c, e = units(2, 4)
    outer = [u.unsqueeze(2) * v.unsqueeze(1) for u, v in ((a, X[:, 0]), (c, b), (-e[:, :1], a))]
    found = ib.measures.layer_alignment(outer)
    expected = torch.stack([torch.cosine_similarity(u, v) for u, v in ((a, b), (c, a))], dim=1)
    assert found.shape == (3, 2)
    assert torch.allclose(found, expected.abs(), atol=1e-12)


def test_layer_alignment_looks_at_the_top_singular_vectors_only():
    angles = torch.tensor([0.0, math.pi / 3, 3 * math.pi / 4], dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    rotation = torch.stack([torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)], dim=1)
    below, above = (torch.diag(torch.tensor([s, 1.0], dtype=torch.float64)) for s in (3.0, 2.0))
    found = ib.measures.layer_alignment(iter([below.expand(3, 2, 2), above @ rotation]))
    assert found.flatten().tolist() == pytest.approx([1, 0.5, math.sqrt(0.5)], rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_effective_rank_of_an_identity_is_its_size_at_any_scale(k):
    W = torch.zeros(3, 2, 7, 5, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        W[..., :k, :k] = 7 * torch.eye(k)
    found = ib.measures.effective_rank(W)
    assert torch.allclose(found, torch.full((3, 2), float(k), dtype=W.dtype), rtol=1e-12)
    assert not found.requires_grad


def test_the_effective_rank_of_singular_values_3_and_1_is_4_over_3_to_the_three_quarters():
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 2, generator=generator, dtype=torch.float64)).Q for n in (7, 5))
    W = U * torch.tensor([3.0, 1.0], dtype=torch.float64) @ V.T
    assert ib.measures.effective_rank(W).item() == pytest.approx(4 / 3**0.75, rel=1e-12)


def test_spearman_is_scipys_for_every_run_ties_included():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, size=(2, 4, 3, 25))
    found = ib.measures.spearman(x, torch.tensor(y))
    expected = [[spearmanr(x[i, j], y[i, j]).statistic for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_spearman_of_a_constant_is_zero():
    assert ib.measures.spearman(torch.ones(2, 5), torch.arange(10.0).view(2, 5)).tolist() == [0, 0]


def test_grouped_ranks_do_not_see_what_differs_between_groups():
    inside = np.array([3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 6.0])
    groups = ["a", "a", "a", "b", "b", "b", "b"]
    shift = np.array([0, 0, 0, 100, 100, 100, 100])
    assert ib.measures.spearman(inside + shift, -inside + shift) > 0.3
    assert ib.measures.spearman(inside + shift, -inside + shift, groups) == pytest.approx(-1)


def test_grouped_ranks_of_groups_of_one_size_average_the_correlations_of_the_groups():
    x, y = np.random.default_rng(1).normal(size=(2, 6, 30))
    alone = [ib.measures.spearman(x[:, part], y[:, part]) for part in (slice(10), slice(10, 20), slice(20, 30))]
    together = ib.measures.spearman(x, y, np.repeat([5, 3, 4], 10))
    assert torch.allclose(together, torch.stack(alone).mean(0))
