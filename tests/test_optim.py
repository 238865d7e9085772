"""Update rules: runs never mix, each rule equals an independent one, and none stops where floats end."""

import math
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from lion_pytorch import Lion as OriginalLion

import ibutils as ib
from ibutils.optim import NORMS, Adam, Lion, MirrorDescent, Muon, SteepestDescent, newton_schulz, polar, unit_steps

X, y = ib.data.gaussian_separable(11, 5, range(3))
X_SMALL, Y_SMALL = ib.data.gaussian_separable(7, 3, range(3), margin=1.0)
LOG, PLAIN = ib.losses.log_logistic, ib.losses.logistic

TORCH = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adam with large eps": lambda p: torch.optim.Adam(p, lr=0.02, eps=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.02),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.005),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.02),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
}
OURS = {
    "steepest l1": lambda p: SteepestDescent(p, lr=0.05, norm="l1"),
    "steepest l2": lambda p: SteepestDescent(p, lr=0.05, norm="l2"),
    "steepest linf": lambda p: SteepestDescent(p, lr=0.01, norm="linf"),
    "spectral": lambda p: SteepestDescent(p, lr=0.02, norm="spectral"),
    "nuclear": lambda p: SteepestDescent(p, lr=0.02, norm="nuclear"),
    # The gradient of W has rank one here: what rounding adds to the momentum is kept small by newton_schulz, not by polar.
    "muon": lambda p: Muon(p, lr=0.02, weight_decay=0.1, factor=newton_schulz),
    "muon without nesterov": lambda p: Muon(p, lr=0.02, nesterov=False, factor=newton_schulz),
    "p-GD, p=1.5": lambda p: MirrorDescent(p, lr=0.02, p=1.5),
    "p-GD, p=3": lambda p: MirrorDescent(p, lr=0.1, p=3),
    "lion": lambda p: Lion(p, lr=0.01),
    "lion on log L": lambda p: Lion(p, lr=0.01, log_domain=True),
    "our adam, eps 0": lambda p: Adam(p, lr=0.02, eps=0.0),
    "our adam, eps 1e-8": lambda p: Adam(p, lr=0.02, eps=1e-8),
    "our adam, leap": lambda p: Adam(p, lr=0.02, eps=0.3, leap=0.1),
}


class TwoLayers(torch.nn.Module):
    """f(x) = v W x, with both parameters matrices of their run: W [runs, 7, 5] and v [runs, 1, 7]."""

    def __init__(self, seeds):
        super().__init__()
        draw = [torch.randn(7, 6, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
        start = torch.stack(draw) / 3
        self.W = torch.nn.Parameter(start[:, :, :5].clone())
        self.v = torch.nn.Parameter(start[:, :, 5].unsqueeze(1).clone())

    def forward(self, X):
        return torch.einsum("rnd,rhd,roh->rn", X, self.W, self.v)


def last(net, make, loss, steps, X=X, y=y, **kwargs):
    """(t, q) at the end of a training of `net`, whose parameters hold the result."""
    *_, end = ib.train(make(net.parameters()), lambda: y * net(X), loss, steps, **kwargs)
    return end


def assert_stacked_runs_equal_separate_runs(make, make_alone, loss):
    """Run r trained in the stack by `make` ends where it does alone, trained by `make_alone(r)`, and has moved."""
    stacked, start = TwoLayers(range(3)), TwoLayers(range(3))
    last(stacked, make, loss, steps=53)
    for r in range(3):
        alone = TwoLayers([r])
        last(alone, make_alone(r), loss, steps=53, X=X[r : r + 1], y=y[r : r + 1])
        for together, single, before in zip(stacked.parameters(), alone.parameters(), start.parameters(), strict=True):
            assert torch.allclose(together[r], single[0], rtol=0, atol=1e-12)
            assert not torch.allclose(together[r], before[r], atol=1e-3)


@pytest.mark.parametrize("name", [*TORCH, *OURS])
def test_stacked_runs_equal_separate_runs(name):
    make, loss = (TORCH[name], PLAIN) if name in TORCH else (OURS[name], LOG)
    assert_stacked_runs_equal_separate_runs(make, lambda r: make, loss)


A_STEP_SIZE_A_RUN = {
    "adam, leap": lambda p, lr: Adam(p, lr=lr, eps=0.3, leap=0.1),
    "lion": Lion,
    "muon": lambda p, lr: Muon(p, lr=lr, weight_decay=0.1, factor=newton_schulz),
    "p-GD, p=3": lambda p, lr: MirrorDescent(p, lr=lr, p=3),
    **{norm: lambda p, lr, norm=norm: SteepestDescent(p, lr=lr, norm=norm) for norm in NORMS},
}


@pytest.mark.parametrize("name", A_STEP_SIZE_A_RUN)
@pytest.mark.parametrize("kind", ["a tensor", "a number"])
def test_a_tensor_of_step_sizes_moves_each_run_as_its_own_entry_does(name, kind):
    make, lr = A_STEP_SIZE_A_RUN[name], torch.tensor([0.07, 0.05, 0.02], dtype=torch.float64)
    alone = [part if kind == "a tensor" else part.item() for part in lr.split(1)]
    assert_stacked_runs_equal_separate_runs(lambda p: make(p, lr), lambda r: lambda p: make(p, alone[r]), LOG)


@pytest.mark.parametrize("name", [*TORCH, *OURS])
def test_two_steps_stay_on_the_device_of_the_parameters(name):
    net, inputs, labels = TwoLayers(range(3)).to("meta"), X.to("meta"), y.to("meta")  # meta: mixing devices raises
    opt = (TORCH | OURS)[name](net.parameters())
    for _ in range(2):
        opt.zero_grad()
        values = LOG(labels * net(inputs))
        values.sum().backward()
        opt.step(lambda values=values: values.detach())
    held = [value for state in opt.state.values() for value in state.values() if torch.is_tensor(value) and value.dim()]
    assert {tensor.device.type for tensor in [*net.parameters(), *held]} == {"meta"}


def test_the_battery_notices_a_rule_that_mixes_runs():
    def mean_over_runs(q):
        return PLAIN(q) / len(q)

    stacked, alone = TwoLayers(range(3)), TwoLayers([0])
    last(stacked, TORCH["adam"], mean_over_runs, steps=53)
    last(alone, TORCH["adam"], mean_over_runs, steps=53, X=X[:1], y=y[:1])
    assert not torch.allclose(stacked.W[0], alone.W[0], rtol=0, atol=1e-10)


GRADS = [
    torch.randn(3, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64) for shape in [(7, 5), (2,)]
]


@pytest.mark.parametrize(("norm", "p", "dual"), [("l1", 1, math.inf), ("l2", 2, 2), ("linf", math.inf, 1)])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_a_steepest_direction_has_unit_norm_and_attains_the_dual_norm(norm, p, dual, scale):
    directions = unit_steps([scale * g for g in GRADS], norm)
    g, D = (torch.cat([part.flatten(1) for part in parts], dim=1) for parts in (GRADS, directions))
    assert torch.allclose(torch.linalg.vector_norm(D, ord=p, dim=1), torch.ones(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose((g * D).sum(1), torch.linalg.vector_norm(g, ord=dual, dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 7), (3, 3)])
def test_a_spectral_direction_has_unit_norm_and_attains_the_nuclear_norm(shape):
    G = torch.randn(3, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    (D,) = unit_steps([G], "spectral")
    assert torch.allclose(torch.linalg.matrix_norm(D, ord=2), torch.ones(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose((G * D).sum((1, 2)), torch.linalg.matrix_norm(G, ord="nuc"), rtol=1e-12)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 7), (3, 3)])
def test_a_nuclear_direction_is_the_top_singular_pair_and_attains_the_spectral_norm(shape):
    G = torch.randn(3, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    (D,) = unit_steps([G], "nuclear")
    values, vectors = torch.linalg.eigh(G.mT @ G)
    v = vectors[:, :, -1:]
    assert torch.allclose(D, G @ v @ v.mT / values[:, -1, None, None].sqrt(), atol=1e-12)
    assert torch.allclose(torch.linalg.matrix_norm(D, ord="nuc"), torch.ones(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose((G * D).sum((1, 2)), torch.linalg.matrix_norm(G, ord=2), rtol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 5, 7])
def test_the_polar_factor_of_a_rank_attains_the_sum_of_that_many_singular_values(rank):
    G = GRADS[0]
    D = polar(G, rank=rank)
    ones = (torch.linalg.svdvals(G) * torch.arange(5).lt(rank)).sum(1)
    kept = torch.arange(5).lt(rank).double().expand(3, 5)
    assert torch.allclose((G * D).sum((1, 2)), ones, rtol=1e-12)
    assert torch.allclose(torch.linalg.svdvals(D), kept, atol=1e-12)


def power_of(A, exponent, rank):
    """A^exponent of a positive semidefinite A of that rank, on its range."""
    values, vectors = torch.linalg.eigh(A)
    values, vectors = values[:, -rank:], vectors[:, :, -rank:]
    return (vectors * values.pow(exponent).unsqueeze(1)) @ vectors.mT


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (3, 3)])
def test_the_polar_factor_is_a_step_of_shampoo_without_memory(shape):
    G = torch.randn(3, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    left, right = (power_of(A, -1 / 4, min(shape)) for A in (G @ G.mT, G.mT @ G))
    assert torch.allclose(left @ G @ right, polar(G), atol=1e-10)  # (G G^T)^(-1/4) G (G^T G)^(-1/4)


CLASSIC = ((15 / 8, -10 / 8, 3 / 8),)
any_shape = pytest.mark.parametrize("shape", [(5, 7), (7, 5), (3, 3), (1, 5)])


def with_singular_values(s, shape):
    """U diag(s) V^T and its factors U and V^T, for random U and V and s [runs, rank]."""
    draw = torch.randn(len(s), *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(draw, full_matrices=False)
    return (U * s.unsqueeze(1)) @ Vh, U, Vh


@any_shape
@pytest.mark.parametrize(
    ("coefficients", "eps"),
    [(((3.4445, -4.7750, 2.0315),) * 5, 0.0), (((3, -2, 0.5), (1, -0.7, 0.2), (2, 0.1, -0.4)), 0.0), (CLASSIC, 11.0)],
)
def test_newton_schulz_acts_on_each_singular_value_as_its_polynomials_one_after_the_other(shape, coefficients, eps):
    generator = torch.Generator().manual_seed(5)
    s = 0.1 + 3 * torch.rand(3, min(shape), generator=generator, dtype=torch.float64)
    G, U, Vh = with_singular_values(s, shape)
    s = s / s.square().sum(1, keepdim=True).sqrt().clamp_min(eps)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    assert torch.allclose(newton_schulz(G, coefficients, eps), (U * s.unsqueeze(1)) @ Vh, rtol=0, atol=1e-12)


@any_shape
def test_newton_schulz_converges_to_the_polar_factor_with_the_classic_coefficients(shape):
    s = torch.linspace(0.2, 3, min(shape), dtype=torch.float64).expand(3, -1)
    G, U, Vh = with_singular_values(s, shape)
    assert torch.allclose(newton_schulz(G, 23 * CLASSIC), U @ Vh, rtol=0, atol=1e-12)


def test_newton_schulz_with_muons_coefficients_stays_about_one_without_reaching_it():
    for steps in (5, 6, 23):
        s = torch.linalg.svdvals(newton_schulz(GRADS[0], ((3.4445, -4.7750, 2.0315),) * steps))
        assert ((0.65 < s) & (s < 1.25)).all() and (s - 1).abs().max() > 0.05


@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_newton_schulz_of_a_matrix_and_of_its_transpose_agree_at_any_scale_and_zero_stays_zero(eps):
    G = torch.cat([GRADS[0], torch.zeros(1, 7, 5, dtype=torch.float64)])
    found = newton_schulz(G, eps=eps)
    assert torch.equal(newton_schulz(G.mT, eps=eps).mT, found) and not found[3].any()
    assert torch.allclose(newton_schulz(1e100 * G, eps=eps), found, rtol=0, atol=1e-12)
    assert torch.allclose(newton_schulz(1e-100 * G), found, rtol=0, atol=1e-12)


def test_the_polar_factor_leaves_zero_singular_values_at_zero():
    u, v = GRADS[0][:, :, :1], GRADS[0][:, :1, :]
    rank_one = u @ v
    expected = rank_one / (u.norm(dim=(1, 2)) * v.norm(dim=(1, 2)))[:, None, None]
    assert torch.allclose(polar(rank_one), expected, atol=1e-12)


def test_the_l1_step_moves_one_coordinate_over_all_parameters_of_a_run():
    D = unit_steps([torch.tensor([[1.0, -2.0], [0.5, 0.1]]), torch.tensor([[[3.0]], [[-0.4]]])], "l1")
    assert [part.tolist() for part in D] == [[[0, 0], [1, 0]], [[[1]], [[0]]]]


@pytest.mark.parametrize("norm", NORMS)
def test_a_run_without_gradient_does_not_move(norm):
    grads = [torch.cat([GRADS[0][:2], torch.zeros(1, 7, 5, dtype=torch.float64)])]
    (D,) = unit_steps(grads, norm)
    assert D[:2].flatten(1).any(1).all() and not D[2].any()


def test_steepest_descent_takes_the_same_path_on_L_and_on_log_L():
    on_plain, on_log = ib.models.Linear(3, 5), ib.models.Linear(3, 5)
    for net, loss in ((on_plain, PLAIN), (on_log, LOG)):
        last(net, OURS["steepest l2"], loss, steps=101)
    assert torch.allclose(on_plain.weight, on_log.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("norm", "p", "dual"), [("l1", 1, math.inf), ("l2", 2, 2), ("linf", math.inf, 1)])
def test_steepest_descent_with_decay_is_a_step_of_frank_and_wolfe_over_the_ball(norm, p, dual):
    decay, lr = 0.5, torch.tensor([0.1, 0.3, 2.0], dtype=torch.float64)
    before = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    w = torch.nn.Parameter(before.clone())
    w.grad = GRADS[0].clone()
    SteepestDescent([w], lr=lr, norm=norm, weight_decay=decay).step()
    share = (lr * decay).reshape(3, 1, 1)
    corner = ((w.detach() - (1 - share) * before) / share).flatten(1)  # w = (1 - share) before + share corner
    assert torch.allclose(torch.linalg.vector_norm(corner, ord=p, dim=1), torch.full((3,), 1 / decay).double())
    least = -torch.linalg.vector_norm(GRADS[0].flatten(1), ord=dual, dim=1) / decay
    assert torch.allclose((GRADS[0].flatten(1) * corner).sum(1), least)  # the least <grad, s> over the ball


class Exact(torch.Tensor):
    """A gradient that answers .bfloat16() with a copy of itself, and so takes torch's Muon through float64."""

    def bfloat16(self):
        return self.clone()  # torch divides the result in place


def muons(ours, shape, scale=1.0, steps=53, **settings):
    """Weights [runs, a, b] after `steps` of `ours` and of torch's Muon, in float64, and the start they share.

    Three classifiers of softmax, with a step size small enough for the rounding of Newton-Schulz not to grow.
    """
    generator = torch.Generator().manual_seed(11)
    A = torch.randn(3, 13, shape[1], generator=generator, dtype=torch.float64)
    classes = torch.randint(shape[0], (3, 13), generator=generator)
    start = 0.1 * torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    W, V = torch.nn.Parameter(start.clone()), [torch.nn.Parameter(part.clone()) for part in start]

    def gradient(weight, run):
        weight = weight.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(A[run] @ weight.mT, classes[run])
        return scale * torch.autograd.grad(loss, weight)[0]

    stacked, single = ours([W]), torch.optim.Muon(V, **settings)
    for _ in range(steps):
        W.grad = torch.stack([gradient(W[r], r) for r in range(3)])
        for r in range(3):
            V[r].grad = gradient(V[r], r).as_subclass(Exact)
        stacked.step()
        single.step()
    return W.detach(), torch.stack([v.detach() for v in V]), start


ADJUSTED = {
    "original": lambda a, b: math.sqrt(max(1, a / b)),
    "match_rms_adamw": lambda a, b: 0.2 * math.sqrt(max(a, b)),
}


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (3, 3)])
@pytest.mark.parametrize(("nesterov", "momentum"), [(True, 0.95), (False, 0.9)])
@pytest.mark.parametrize(("decay", "adjust"), [(0.0, "original"), (0.3, "original"), (0.3, "match_rms_adamw")])
def test_muon_is_torchs_muon_in_float64(shape, nesterov, momentum, decay, adjust):
    ratio = ADJUSTED[adjust](*shape)  # torch scales the step by it, and not the decay
    W, V, start = muons(
        lambda p: Muon(p, 0.01 * ratio, momentum, nesterov, decay / ratio, newton_schulz),
        shape,
        lr=0.01,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=decay,
        adjust_lr_fn=adjust,
    )
    assert torch.allclose(W, V, rtol=0, atol=1e-10)
    assert (W - start).abs().amax((1, 2)).min() > 0.1


def test_muon_is_torchs_muon_where_the_gradient_is_below_eps():
    kwargs = {"scale": 1e-8, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    W, V, start = muons(lambda p: Muon(p, 0.1, 0.9, factor=partial(newton_schulz, eps=1e-7)), (3, 5), **kwargs)
    without, _, _ = muons(lambda p: Muon(p, 0.1, 0.9, factor=newton_schulz), (3, 5), **kwargs)
    assert torch.allclose(W, V, rtol=0, atol=1e-10) and (W - start).abs().max() > 0.1
    assert not torch.allclose(without, V, rtol=0, atol=1e-2)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_that_leaves_its_momentum_as_it_is_is_sgd_with_momentum(nesterov):
    ours, sgd = TwoLayers(range(3)), TwoLayers(range(3))
    last(ours, lambda p: Muon(p, lr=0.1, momentum=0.9, nesterov=nesterov, factor=torch.clone), PLAIN, steps=211)
    # torch sums B <- mu B + g, so that its step size is 1 - mu times ours
    last(sgd, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=nesterov), PLAIN, steps=211)
    assert torch.allclose(ours.W, sgd.W, rtol=0, atol=1e-12)
    assert torch.allclose(ours.v, sgd.v, rtol=0, atol=1e-12)


def test_muon_with_the_exact_factor_steps_along_the_polar_factor_of_each_runs_own_average():
    lr, decay, mu = torch.tensor([0.3, 0.1, 0.02], dtype=torch.float64), 0.5, 0.9
    gradients = torch.randn(7, 3, 5, 3, generator=torch.Generator().manual_seed(17), dtype=torch.float64)
    start = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(19), dtype=torch.float64)
    for nesterov in (True, False):
        W, expected = torch.nn.Parameter(start.clone()), start.clone()
        opt = Muon([W], lr=lr, momentum=mu, nesterov=nesterov, weight_decay=decay)
        for t, g in enumerate(gradients):
            W.grad = g.clone()
            opt.step()
            B = sum((1 - mu) * mu ** (t - s) * gradients[s] for s in range(t + 1))
            B = (1 - mu) * g + mu * B if nesterov else B
            for r in range(3):
                factor = B[r] @ power_of((B[r].mT @ B[r])[None], -1 / 2, 3)[0]
                expected[r] -= lr[r] * (factor + decay * expected[r])
        assert torch.allclose(W, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_without_momentum_is_spectral_descent(nesterov):
    ours, spectral = TwoLayers(range(3)), TwoLayers(range(3))
    last(ours, lambda p: Muon(p, lr=0.02, momentum=0.0, nesterov=nesterov, weight_decay=0.1), LOG, steps=53)
    last(spectral, lambda p: SteepestDescent(p, lr=0.02, norm="spectral", weight_decay=0.1), LOG, steps=53)
    assert torch.allclose(ours.W, spectral.W, rtol=0, atol=1e-12)


def test_mirror_descent_with_p_2_is_torchs_sgd_for_1009_steps():
    ours, sgd = TwoLayers(range(3)), TwoLayers(range(3))
    start = ours.W.detach().clone()
    last(ours, lambda p: MirrorDescent(p, lr=0.1, p=2), PLAIN, steps=1009)
    last(sgd, TORCH["sgd"], PLAIN, steps=1009)
    assert torch.allclose(ours.W, sgd.W, rtol=0, atol=1e-12)
    assert torch.allclose(ours.v, sgd.v, rtol=0, atol=1e-12)
    assert (ours.W.sign() != start.sign()).any()


def p_gd_in_mpmath(start, gradients, lr, p):
    """w after u <- u - lr g for each gradient, in numbers whose exponents have no end."""
    mp = mpmath.mp.clone()
    mp.prec = 200
    power, ends = mp.mpf(p) - 1, []
    for w, path in zip(start, gradients, strict=True):
        u = mp.sign(w) * abs(mp.mpf(w)) ** power
        for g in path:
            u -= mp.mpf(lr) * mp.mpf(g)
        ends.append(float(mp.sign(u) * abs(u) ** (1 / power)))
    return ends


# At p = 100 the u = 2000^99 is no float, nor is a change of it that matters.
@pytest.mark.parametrize(
    ("p", "length", "lr", "slope"), [(1.1, 1, 0.3, 1), (1.5, 1, 0.3, 1), (3, 1, 0.3, 1), (100, 2000, 1e20, 1e306)]
)
def test_mirror_descent_is_its_definition_in_unbounded_precision(p, length, lr, slope):
    generator = torch.Generator().manual_seed(13)
    start = torch.randn(3, 5, generator=generator, dtype=torch.float64).sign()
    start *= length * (0.95 + 0.05 * torch.rand(3, 5, generator=generator, dtype=torch.float64))
    gradients = slope * torch.randn(17, 3, 5, generator=generator, dtype=torch.float64)
    w = torch.nn.Parameter(start.clone())
    opt = MirrorDescent([w], lr=lr, p=p)
    for g in gradients:
        w.grad = g
        opt.step()
    expected = p_gd_in_mpmath(start.flatten().tolist(), gradients.flatten(1).T.tolist(), lr, p)
    assert w.flatten().tolist() == pytest.approx(expected, rel=1e-9)
    changed = (w.sign() != start.sign()).sum()
    assert 2 < changed < 13


@pytest.mark.parametrize("p", [1.1, 2, 3, 100])
def test_mirror_descent_starts_from_zero_and_stays_where_there_is_no_gradient(p):
    w = torch.nn.Parameter(torch.tensor([[0.0, 0.0, 2000.0, -0.3]], dtype=torch.float64))
    w.grad = torch.tensor([[0.0, -0.7, 0.0, 0.0]], dtype=torch.float64)
    opt = MirrorDescent([w], lr=0.5, p=p)
    for t in range(1, 8):
        opt.step()
        assert w[0, 0].item() == 0
        assert w[0, 1:].tolist() == pytest.approx([(t * 0.35) ** (1 / (p - 1)), 2000, -0.3], rel=1e-12)


def test_mirror_descent_passes_through_zero_itself():
    w = torch.nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    opt, path = MirrorDescent([w], lr=1.0, p=3), []
    for g in (1.0, 0.0, -4.0, 0.0, 13.0):
        w.grad = torch.tensor([[g]], dtype=torch.float64)
        opt.step()
        path.append(w.item())
    assert path == pytest.approx([0, 0, 2, 2, -3], rel=1e-12)


@pytest.mark.parametrize("p", [1.5, 3])
def test_mirror_descent_on_log_L_nears_the_largest_l_p_margin_and_no_other(p):
    net, norms = ib.models.Linear(3, 3), [1.5, 3, 10]
    last(net, lambda w: MirrorDescent(w, lr=0.3, p=p), LOG, 2003, X_SMALL, Y_SMALL)
    best = {norm: ib.max_margin(X_SMALL, Y_SMALL, norm=norm) for norm in norms}
    ratios = ib.measures.fingerprint(X_SMALL, Y_SMALL, net.weight.detach(), best)
    assert (ratios.argmax(0) == norms.index(p)).all() and (ratios.amax(0) > 0.99).all()


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.98), (0.0, 0.5)])
@pytest.mark.parametrize("decay", [0.0, 2.0])
def test_lion_is_the_lion_of_its_authors_package(betas, decay):
    ours, original = TwoLayers(range(3)), TwoLayers(range(3))
    last(ours, lambda p: Lion(p, lr=0.01, betas=betas, weight_decay=decay), PLAIN, steps=53)
    last(original, lambda p: OriginalLion(p, lr=0.01, betas=betas, weight_decay=decay), PLAIN, steps=53)
    assert torch.allclose(ours.W, original.W, rtol=0, atol=1e-12)
    assert torch.allclose(ours.v, original.v, rtol=0, atol=1e-12)


def test_lion_driven_by_log_L_is_lion_on_L():
    on_log, on_plain = ib.models.Linear(3, 3), ib.models.Linear(3, 3)
    last(on_log, lambda p: Lion(p, lr=0.03, log_domain=True), LOG, 2003, X_SMALL, Y_SMALL)
    _, q = last(on_plain, lambda p: Lion(p, lr=0.03), PLAIN, 2003, X_SMALL, Y_SMALL)
    assert (1e-120 < PLAIN(q)).all() and (PLAIN(q) < 1e-20).all()
    assert torch.allclose(on_log.weight, on_plain.weight, rtol=0, atol=1e-10)


def adams(X, y, steps, lr, betas, eps):
    """Weights and log L after `steps` of torch's Adam on L and of ours on log L."""
    ours, plain = (ib.models.Linear(*X.shape[::2]) for _ in range(2))
    _, q = last(ours, lambda p: Adam(p, lr=lr, betas=betas, eps=eps), LOG, steps, X, y)
    last(plain, lambda p: torch.optim.Adam(p, lr=lr, betas=betas, eps=eps), PLAIN, steps, X, y)
    return ours.weight, plain.weight, LOG(q)


# Full-batch Adam turns chaotic once its steps are too large for the memory of v: two plain Adams on data that differ
# by rounding then separate too. Hence a long memory on the general set, and a single point for the deep stretch.
@pytest.mark.parametrize(
    ("betas", "eps", "reached"), [((0.9, 0.999), 1e-8, -9), ((0.9, 0.99), 1e-8, -20), ((0.9, 0.99), 0.0, -28)]
)
def test_adam_driven_by_log_L_is_torchs_adam_on_L_for_5000_steps(betas, eps, reached):
    X, y = ib.data.gaussian_separable(11, 5, range(3), margin=0.5)
    ours, plain, log_loss = adams(X, y, 5000, 0.05, betas, eps)
    assert (log_loss < reached).all()
    assert torch.allclose(ours, plain, rtol=0, atol=1e-10)


def test_adam_driven_by_log_L_is_torchs_adam_on_L_down_to_1e_minus_100():
    point = torch.tensor([[[1.0, 2.0, 0.3, -0.7, 0.1]]], dtype=torch.float64)
    ours, plain, log_loss = adams(point, torch.ones(1, 1), 1201, 0.1, (0.5, 0.6), 0.0)
    assert -120 * math.log(10) < log_loss.item() < -100 * math.log(10)
    assert torch.allclose(ours, plain, rtol=0, atol=1e-10)


Z_PLANE = [[1.0, 2.0], [3.0, 1.0]]


def in_mpmath(rule, steps, start):
    """A rule on the exponential loss of Z_PLANE itself, in numbers whose exponents have no end."""
    mp = mpmath.mp.clone()
    mp.prec = 80
    Z = [[mp.mpf(z) for z in row] for row in Z_PLANE]
    w, state = [mp.mpf(start), mp.mpf(0)], {}
    for t in range(1, steps + 1):
        e = [mp.exp(-row[0] * w[0] - row[1] * w[1]) / 2 for row in Z]
        for j in range(2):
            w[j] -= rule(
                mp,
                state.setdefault(j, [mp.mpf(0), mp.mpf(0)]),
                -sum(a * row[j] for a, row in zip(e, Z, strict=True)),
                t,
            )
    return [float(x) for x in w], float(mp.log(sum(mp.exp(-row[0] * w[0] - row[1] * w[1]) for row in Z) / 2))


def in_floats(make, steps, start):
    net = ib.models.Linear(1, 2)
    net.weight.data[0, 0] = start
    Z = torch.tensor([Z_PLANE], dtype=torch.float64)
    _, q = last(net, make, ib.losses.log_exponential, steps, Z, torch.ones(1, 2))
    return net.weight[0].tolist(), ib.losses.log_exponential(q).item()


@pytest.mark.parametrize("eps", [0.0, 1e-200])
def test_adam_beyond_underflow_is_adam_in_unbounded_precision(eps):
    b1, b2 = 0.5, 0.6

    def adam(mp, state, g, t):
        state[:] = (
            mp.mpf(b1) * state[0] + (1 - mp.mpf(b1)) * g,
            mp.mpf(b2) * state[1] + (1 - mp.mpf(b2)) * g * g,
        )
        m, v = state[0] / (1 - mp.mpf(b1) ** t), state[1] / (1 - mp.mpf(b2) ** t)
        return mp.mpf(0.3) * m / (mp.sqrt(v) + eps)

    steps = 2503 if eps == 0 else 1801
    w, log_loss = in_mpmath(adam, steps, start=0.25)
    ours, our_log_loss = in_floats(lambda p: Adam(p, lr=0.3, betas=(b1, b2), eps=eps), steps, start=0.25)
    assert log_loss < -354
    assert our_log_loss == pytest.approx(log_loss, rel=1e-9)
    assert ours == pytest.approx(w, rel=1e-9)


@pytest.mark.parametrize("lr", [0.002, 0.1])
def test_lion_on_log_L_beyond_underflow_is_lion_in_unbounded_precision(lr):
    def lion(mp, state, g, t):
        step = mp.mpf(lr) * mp.sign(mp.mpf(0.9) * state[0] + (1 - mp.mpf(0.9)) * g)
        state[0] = mp.mpf(0.99) * state[0] + (1 - mp.mpf(0.99)) * g
        return step

    w, log_loss = in_mpmath(lion, 4001, start=0.25)
    ours, our_log_loss = in_floats(lambda p: Lion(p, lr=lr, log_domain=True), 4001, start=0.25)
    assert log_loss < -16
    assert our_log_loss == pytest.approx(log_loss, rel=1e-9)
    assert ours == pytest.approx(w, rel=1e-9)


def directions(w):
    return w / np.linalg.norm(w, axis=-1, keepdims=True)


def test_leaps_pass_through_the_directions_of_single_steps_at_the_same_time():
    plain, leaping = ib.models.Linear(3, 5), ib.models.Linear(3, 5)
    singles, leaps = ib.History(), ib.History()
    opt = torch.optim.Adam(plain.parameters(), lr=0.1, betas=(0.9, 0.99), eps=0.3)
    for t, _ in ib.train(opt, lambda: y * plain(X), PLAIN, 8009, pauses=[97, 499, 2003]):
        singles.append(t, w=plain.weight)
    opt = Adam(leaping.parameters(), lr=0.1, betas=(0.9, 0.99), eps=0.3, leap=0.1)
    for t, _ in ib.train(opt, lambda: y * leaping(X), LOG, 997, pauses=range(1, 997)):
        leaps.append(t, w=leaping.weight, log_t=opt.log_t)
    w, log_t = leaps["w"].numpy(), leaps["log_t"].numpy()
    assert (log_t[-1] > math.log(8009)).all()
    for t, expected in zip(singles["t"].tolist(), singles["w"].numpy(), strict=True):
        found = [[np.interp(math.log(t), log_t[:, r], w[:, r, j]) for j in range(5)] for r in range(3)]
        assert np.abs(directions(np.array(found)) - directions(expected)).max() < 1e-3


def test_without_leap_log_t_counts_the_steps():
    net = ib.models.Linear(3, 5)
    opt = Adam(net.parameters(), lr=0.02)
    for _ in ib.train(opt, lambda: y * net(X), LOG, steps=13):
        pass
    assert torch.allclose(opt.log_t.exp().expand(3), torch.full((3,), 13.0, dtype=torch.float64))


def test_a_leap_is_a_single_step_until_eps_rules():
    single, leaping = ib.models.Linear(3, 5), ib.models.Linear(3, 5)
    last(single, lambda p: Adam(p, lr=0.02, eps=1e-8), LOG, 101)
    last(leaping, lambda p: Adam(p, lr=0.02, eps=1e-8, leap=1.0), LOG, 101)
    assert torch.allclose(single.weight, leaping.weight, rtol=0, atol=1e-12)


def batches_of(size, seeds, n):
    """Loss with the value of log L and the gradient of the minibatch loss over the full L, as in the chapter."""
    batches = ib.data.minibatches(n, size, seeds)

    def loss(q):
        log_full = LOG(q).detach()
        ratio = (LOG(q.gather(1, next(batches))) - log_full).exp()
        return log_full + ratio - ratio.detach()

    return loss


DEEP = {
    "GD": (lambda p: torch.optim.SGD(p, lr=3.0), 3001, LOG),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9), 2003, LOG),
    "SGD, batch 2": (lambda p: torch.optim.SGD(p, lr=1.0), 8009, batches_of(2, range(3), 7)),
    "normalised GD": (lambda p: SteepestDescent(p, lr=5.0, norm="l2"), 2003, LOG),
    "SignGD": (lambda p: SteepestDescent(p, lr=3.0, norm="linf"), 3001, LOG),
    "coordinate descent": (lambda p: SteepestDescent(p, lr=5.0, norm="l1"), 3001, LOG),
    "p-GD, p=3": (lambda p: MirrorDescent(p, lr=1e5, p=3), 2003, LOG),
    "Lion": (lambda p: Lion(p, lr=3.0), 3001, LOG),
    "Adam, eps 0": (lambda p: Adam(p, lr=1.0, betas=(0.05, 0.05), eps=0.0), 9001, LOG),
    "Adam, eps 1e-8": (lambda p: Adam(p, lr=0.1, betas=(0.9, 0.9), eps=1e-8, leap=3.0), 3001, LOG),
}


@pytest.mark.parametrize("name", DEEP)
def test_every_optimizer_of_the_chapter_goes_past_log_L_minus_10000_without_stagnating(name):
    make, steps, loss = DEEP[name]
    net = ib.models.Linear(3, 3)
    history = ib.History()
    for t, q in ib.train(make(net.parameters()), lambda: Y_SMALL * net(X_SMALL), loss, steps):
        history.append(t, log_loss=LOG(q), length=ib.measures.norm([net.weight], 2))
    assert torch.isfinite(history["log_loss"]).all() and torch.isfinite(history["length"]).all()
    assert (history["log_loss"][-1] < -1e4).all()
    assert (history["length"].diff(dim=0) > 0).all()


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_a_plain_adam_stops_or_breaks_long_before(eps):
    net = ib.models.Linear(3, 3)
    try:
        _, q = last(
            net,
            lambda p: torch.optim.Adam(p, lr=1.0, betas=(0.05, 0.05), eps=eps),
            PLAIN,
            1009,
            X_SMALL,
            Y_SMALL,
        )
    except FloatingPointError:
        assert eps == 0
    else:
        assert eps > 0 and (LOG(q) > -100).all()


def test_the_loss_of_adam_falls_by_less_than_half_the_log_of_beta2_a_step_on_average():
    net = ib.models.Linear(3, 3)
    _, q = last(net, lambda p: Adam(p, lr=1.0, betas=(0.5, 0.5), eps=0.0), LOG, 2003, X_SMALL, Y_SMALL)
    assert (-LOG(q) / 2003 < 1.05 * math.log(2) / 2).all()
    assert (-LOG(q) / 2003 > 0.5 * math.log(2) / 2).all()


@pytest.mark.parametrize("leap", [30.0, 300.0])
def test_a_large_leap_descends_like_gradient_descent_of_that_step_on_log_L(leap):
    net = ib.models.Linear(3, 3)
    _, q = last(net, lambda p: Adam(p, lr=0.1, betas=(0.9, 0.9), eps=1e-8, leap=leap), LOG, 1009, X_SMALL, Y_SMALL)
    assert torch.isfinite(net.weight).all()
    assert (LOG(q) < -100 * leap).all()


@pytest.mark.parametrize("make", [*OURS.values()], ids=OURS)
def test_float32_parameters_stay_float32_and_follow_float64(make):
    fine, coarse = TwoLayers(range(3)), TwoLayers(range(3)).float()
    last(fine, make, LOG, steps=7)
    last(coarse, make, LOG, steps=7, X=X.float(), y=y.float())
    assert coarse.W.dtype == torch.float32
    assert torch.allclose(coarse.W.double(), fine.W, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: SteepestDescent(p, lr=0.1, norm="l3"),
            "norm must be one of l1, l2, linf, spectral, nuclear, got 'l3'",
        ),
        (lambda p: SteepestDescent(p, lr=-0.1, norm="l2"), "lr must be positive, got -0.1"),
        (lambda p: SteepestDescent(p, lr=math.nan, norm="l2"), "lr must be positive, got nan"),
        (lambda p: SteepestDescent(p, lr=torch.tensor([0.1, 0.0, 1.0]), norm="l2"), "lr must be positive, got tensor"),
        (lambda p: Lion(p, lr=0.0), "lr must be positive, got 0.0"),
        (lambda p: Lion(p, lr=0.1, weight_decay=-1.0), "weight_decay must be at least 0, got -1.0"),
        (lambda p: SteepestDescent(p, 0.1, "l2", -1.0), "weight_decay must be at least 0, got -1.0"),
        (lambda p: Lion(p, lr=0.1, betas=(0.9, 1.0)), r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        (lambda p: Adam(p, lr=-1), "lr must be positive, got -1"),
        (lambda p: Adam(p, lr=0.1, betas=(1.0, 0.99)), r"betas must lie in \[0, 1\), got \(1.0, 0.99\)"),
        (lambda p: Adam(p, lr=0.1, eps=-1e-8), "eps and leap must be at least 0, got eps=-1e-08, leap=0.0"),
        (lambda p: Adam(p, lr=0.1, leap=-1.0), "eps and leap must be at least 0, got eps=1e-08, leap=-1.0"),
        (lambda p: Adam(p, lr=0.1).step(), "needs log L: call step"),
        (lambda p: Lion(p, lr=0.1, log_domain=True).step(), "needs log L: call step"),
        (
            lambda p: SteepestDescent(p, lr=0.1, norm="spectral").step(),
            r'"spectral" and "nuclear" need matrices .* shape \(3, 5\)',
        ),
        (lambda p: SteepestDescent(p, lr=0.1, norm="nuclear").step(), r"need matrices .* shape \(3, 5\)"),
        (lambda p: Muon(p, lr=0.1).step(), r"need matrices .* shape \(3, 5\)"),
        (lambda p: Muon(p, lr=0.0), "lr must be positive, got 0.0"),
        (lambda p: Muon(p, lr=0.1, momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda p: Muon(p, lr=0.1, momentum=-0.1), r"momentum must lie in \[0, 1\), got -0.1"),
        (lambda p: Muon(p, lr=0.1, weight_decay=-1.0), "weight_decay must be at least 0, got -1.0"),
        (lambda p: MirrorDescent(p, lr=-0.1, p=3), "lr must be positive, got -0.1"),
        (lambda p: MirrorDescent(p, lr=0.1, p=1), "p must be a finite number above 1, got 1"),
        (lambda p: MirrorDescent(p, lr=0.1, p=math.inf), "p must be a finite number above 1, got inf"),
        (lambda p: MirrorDescent(p, lr=0.1, p=math.nan), "p must be a finite number above 1, got nan"),
        (
            lambda p: unit_steps([q.grad for q in p], "l3"),
            "norm must be one of l1, l2, linf, spectral, nuclear, got 'l3'",
        ),
    ],
)
def test_an_impossible_setting_is_an_error_that_names_it(call, message):
    w = torch.nn.Parameter(torch.ones(3, 5))
    w.grad = torch.ones(3, 5)
    with pytest.raises(ValueError, match=message):
        call([w])


@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_a_parameter_without_gradient_is_left_alone(make):
    used, unused = (torch.nn.Parameter(torch.ones(3, 2, 5)) for _ in range(2))
    used.grad = torch.ones(3, 2, 5)
    make([unused, used]).step(lambda: torch.zeros(3))
    assert torch.equal(unused, torch.ones(3, 2, 5)) and not torch.equal(used, unused)


def test_a_step_of_steepest_descent_has_the_length_of_its_runs_step_size():
    w = torch.nn.Parameter(torch.zeros(3, 7, 5, dtype=torch.float64))
    w.grad = GRADS[0].clone()
    SteepestDescent([w], lr=torch.tensor([0.5, 2.0, 7.0]), norm="l2").step()
    assert w.detach().norm(dim=(1, 2)).tolist() == pytest.approx([0.5, 2, 7], rel=1e-12)
