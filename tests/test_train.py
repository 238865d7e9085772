"""The training loop, its clock and its history; plain gradient descent is the reference for time."""

import math
import sys

import numpy as np
import pytest
import torch

import ibutils as ib

X, y = ib.data.gaussian_separable(11, 5, range(3))
EXP, LOG_EXP, LOG, PLAIN = (
    ib.losses.exponential,
    ib.losses.log_exponential,
    ib.losses.log_logistic,
    ib.losses.logistic,
)


def linear(make=lambda p: torch.optim.SGD(p, lr=0.1)):
    net = ib.models.Linear(3, 5)
    return net, make(net.parameters()), lambda: y * net(X)


@pytest.mark.parametrize("steps", [1, 2, 7, 59, 60, 61, 1009, 10**6 + 3])
def test_log_spaced_steps_are_distinct_rising_whole_numbers_from_1_to_the_last(steps):
    found = ib.log_spaced(steps)
    assert found == sorted(set(found)) and len(found) <= 60
    assert all(isinstance(t, int) for t in found)
    assert found[0] == 1 and found[-1] == steps


def test_log_spaced_steps_grow_by_a_constant_factor():
    found = np.array(ib.log_spaced(10**6, count=13))
    assert len(found) == 13
    assert found[1:] / found[:-1] == pytest.approx(10**0.5, rel=0.06)


@pytest.mark.parametrize(("steps", "count"), [(0, 60), (-3, 60), (7, 1)])
def test_impossible_log_spaced_steps_are_an_error(steps, count):
    with pytest.raises(ValueError, match=f"got steps={steps}, count={count}"):
        ib.log_spaced(steps, count)


def test_training_without_steps_is_an_error():
    _, opt, forward = linear()
    with pytest.raises(ValueError, match="steps must be at least 1"):
        list(ib.train(opt, forward, PLAIN, steps=0))


def test_training_pauses_at_log_spaced_steps_or_where_it_is_told_and_at_the_end():
    _, opt, forward = linear()
    assert [t for t, _ in ib.train(opt, forward, PLAIN, steps=101)] == ib.log_spaced(101)
    assert [t for t, _ in ib.train(opt, forward, PLAIN, steps=101, pauses=iter([17, 3]))] == [3, 17, 101]
    assert [t for t, _ in ib.train(opt, forward, PLAIN, steps=101, pauses=[])] == [101]


def test_q_at_a_pause_is_that_of_the_parameters_after_t_updates_of_plain_descent():
    net, opt, forward = linear()
    Z = (y[:, :, None] * X).numpy()
    w, expected = np.zeros((3, 5)), []
    for _ in range(13):
        slope = -1 / (1 + np.exp(np.einsum("rnd,rd->rn", Z, w))) / 11
        w = w - 0.1 * np.einsum("rn,rnd->rd", slope, Z)
        expected.append(w)
    for t, q in ib.train(opt, forward, PLAIN, steps=13, pauses=range(1, 13)):
        assert net.weight.detach().numpy() == pytest.approx(expected[t - 1], rel=1e-12)
        assert q.detach().numpy() == pytest.approx(np.einsum("rnd,rd->rn", Z, expected[t - 1]), rel=1e-12)
        assert q.requires_grad


def test_measuring_with_the_graph_of_q_does_not_change_the_training():
    quiet, loud = linear(), linear()
    *_, (_, q) = ib.train(*quiet[1:], PLAIN, steps=53)
    for _, q_loud in ib.train(*loud[1:], PLAIN, steps=53):
        (100 * q_loud).sum().backward()
    assert torch.equal(q, q_loud)


def test_losses_are_summed_over_runs_so_that_eps_means_the_same_in_a_stack():
    together, opt, forward = linear(lambda p: torch.optim.Adam(p, lr=0.1, eps=0.1))
    list(ib.train(opt, forward, PLAIN, steps=7))
    alone = ib.models.Linear(1, 5)
    opt = torch.optim.Adam(alone.parameters(), lr=0.1, eps=0.1)
    list(ib.train(opt, lambda: y[1:2] * alone(X[1:2]), PLAIN, steps=7))
    averaged = ib.models.Linear(1, 5)
    opt = torch.optim.Adam(averaged.parameters(), lr=0.1, eps=0.1)
    list(ib.train(opt, lambda: y[1:2] * averaged(X[1:2]), lambda q: PLAIN(q) / 3, steps=7))
    assert torch.allclose(together.weight[1:2], alone.weight, rtol=0, atol=1e-14)
    assert not torch.allclose(together.weight[1:2], averaged.weight, atol=1e-3)


def test_the_closure_hands_the_loss_of_every_run_to_the_optimizer():
    class Listening(torch.optim.SGD):
        heard = []

        def step(self, closure=None):
            self.heard.append(closure())
            return super().step()

    net, opt, forward = linear(lambda p: Listening(p, lr=0.1))
    expected = PLAIN(forward()).detach()
    list(ib.train(opt, forward, PLAIN, steps=3))
    assert len(opt.heard) == 3 and torch.equal(opt.heard[0], expected) and not opt.heard[0].requires_grad


def groups():
    a, b = (torch.nn.Parameter(torch.zeros(3, 1, dtype=torch.float64)) for _ in range(2))
    opt = torch.optim.SGD([{"params": [a], "lr": 0.5}, {"params": [b], "lr": 2.0}])
    return a, b, opt, lambda: a + b


def test_a_schedule_scales_every_rate_and_the_rates_are_put_back_at_the_end():
    a, b, opt, forward = groups()
    seen = []
    for _ in ib.train(opt, forward, lambda q: q.sum(-1), steps=5, schedule=lambda t: 1 / t, pauses=range(1, 5)):
        seen.append((opt.param_groups[0]["lr"], opt.param_groups[1]["lr"]))
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5
    assert seen == [(0.5 / t, 2 / t) for t in range(1, 6)]
    assert torch.allclose(-a, torch.full_like(a, 0.5 * harmonic)) and torch.allclose(
        -b, torch.full_like(b, 2 * harmonic)
    )
    assert [group["lr"] for group in opt.param_groups] == [0.5, 2.0]


def test_the_rates_are_put_back_when_the_reader_stops_early_or_the_loss_breaks():
    _, _, opt, forward = groups()
    training = ib.train(opt, forward, lambda q: q.sum(-1), steps=5, schedule=lambda t: 1 / (1 + t))
    next(training)
    assert opt.param_groups[0]["lr"] == 0.25
    training.close()
    assert [group["lr"] for group in opt.param_groups] == [0.5, 2.0]
    with pytest.raises(FloatingPointError):
        list(ib.train(opt, forward, lambda q: q.sum(-1) * math.nan, steps=5, schedule=lambda t: 1 / (1 + t)))
    assert [group["lr"] for group in opt.param_groups] == [0.5, 2.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_training_before_the_update(bad):
    net, opt, forward = linear()
    calls = []

    def breaking(q):
        calls.append(net.weight.detach().clone())
        return PLAIN(q) + torch.tensor([0.0, bad, bad] if len(calls) == 5 else [0.0] * 3)

    with pytest.raises(FloatingPointError, match=r"step 5: loss not finite in runs \[1, 2\]"):
        list(ib.train(opt, forward, breaking, steps=13, pauses=[]))
    assert torch.equal(net.weight, calls[-1]) and not torch.equal(calls[-1], calls[-2])


def test_losses_of_opposite_infinities_are_both_named():
    _, opt, forward = linear()
    with pytest.raises(FloatingPointError, match=r"step 1: loss not finite in runs \[0, 2\]"):
        list(ib.train(opt, forward, lambda q: PLAIN(q) + torch.tensor([math.inf, 0.0, -math.inf]), steps=3))


def test_the_clock_adds_lr_over_L():
    net, opt, forward = linear()
    clock, elapsed = ib.Clock(), torch.zeros(3, dtype=torch.float64)
    before = LOG(forward()).detach()
    for t, q in ib.train(opt, forward, LOG, 13, schedule=lambda t: t**-0.5, clock=clock, pauses=range(1, 13)):
        elapsed = elapsed + 0.1 * t**-0.5 / before.exp()
        before = LOG(q).detach()
        assert torch.allclose(clock.log_t, elapsed.log(), rtol=1e-12)


def plain_descent(Z, lr, pauses):
    """w at `pauses` of w <- w + lr/n sum_i exp(-<w, z_i>) z_i, every run in one block-diagonal product."""
    runs, n, d = Z.shape
    blocks = np.zeros((runs * n, runs * d))
    for r in range(runs):
        blocks[r * n : (r + 1) * n, r * d : (r + 1) * d] = Z[r]
    down, up = np.ascontiguousarray(-blocks), np.ascontiguousarray(lr / n * blocks.T)
    w, q, move, found, done = np.zeros(runs * d), np.zeros(runs * n), np.zeros(runs * d), [], 0
    for pause in pauses:
        for _ in range(pause - done):
            np.dot(down, w, out=q)
            np.exp(q, out=q)
            np.dot(up, q, out=move)
            w += move
        done = pause
        found.append(w.reshape(runs, d).copy())
    return np.array(found)


def unit(w):
    return w / np.linalg.norm(w, axis=-1, keepdims=True)


def test_the_clock_of_descent_on_log_L_shows_the_direction_of_plain_descent_up_to_a_million_steps():
    X, y = ib.data.gaussian_separable(4, 2, [0, 1, 3])
    lr, times = 0.02, [10**k for k in range(2, 7)]
    expected = plain_descent((y[:, :, None] * X).numpy(), lr, times)
    net, clock, history = ib.models.Linear(3, 2), ib.Clock(), ib.History()
    opt = torch.optim.SGD(net.parameters(), lr=0.004)
    for t, _ in ib.train(opt, lambda: y * net(X), LOG_EXP, 20011, clock=clock, pauses=range(1, 20011, 5)):
        history.append(t, w=net.weight, log_t=clock.log_t)
    w, log_t = history["w"].numpy(), history["log_t"].numpy() - math.log(lr)
    assert (log_t[0] < math.log(times[0])).all() and (log_t[-1] > math.log(times[-1])).all()
    for t, plain in zip(times, expected, strict=True):
        found = [[np.interp(math.log(t), log_t[:, r], w[:, r, j]) for j in range(2)] for r in range(3)]
        assert np.abs(unit(np.array(found)) - unit(plain)).max() < 1e-3
    turned = np.abs(unit(expected[-1]) - unit(expected[0])).max(axis=1)
    assert turned.max() > 0.1


def late_descent(start, steps, X, y, svm):
    """(w, log t) of gradient descent begun on the exact direction at log L of about -start."""
    net, clock = ib.models.Linear(len(X), X.shape[2]), ib.Clock()
    net.weight.data.copy_(start * svm.w / svm.gamma[:, None])
    opt = torch.optim.SGD(net.parameters(), lr=0.5 / X.square().sum(-1).max().item())
    *_, _ = ib.train(opt, lambda: y * net(X), LOG_EXP, steps, clock=clock)
    return net.weight.detach(), clock.log_t


def test_the_clock_goes_on_where_floats_end():
    svm = ib.max_margin(X, y)
    _, log_t = late_descent(9000.0, 13, X, y, svm)
    assert torch.isfinite(log_t).all() and (log_t > 8900).all()


def test_the_clock_of_one_run_passes_the_largest_float_without_a_stop():
    X, y = ib.data.gaussian_separable(7, 3, range(3), margin=1.0)
    net, clock, history = ib.models.Linear(3, 3), ib.Clock(), ib.History()
    opt = torch.optim.SGD(net.parameters(), lr=1.0)
    for t, q in ib.train(opt, lambda: y * net(X), LOG, 1009, clock=clock):
        history.append(t, log_t=clock.log_t, log_loss=LOG(q))
    assert (history["log_t"].diff(dim=0) > 0).all()
    assert (history["log_t"][-1] > 1000).all()
    assert torch.allclose(history["log_t"][-1], -history["log_loss"][-1], rtol=0.01)


@pytest.mark.parametrize("start", [1000.0, 10000.0])
def test_the_bias_gap_of_gradient_descent_is_its_dual_entropy_over_log_t(start):
    X, y = ib.data.gaussian_separable(7, 3, range(5), margin=1.0)
    svm = ib.max_margin(X, y, norm=2)
    w, log_t = late_descent(start, 3001, X, y, svm)
    log_alpha = svm.alpha.clamp_min(1e-300).log()
    constant = log_alpha.max(1).values - (svm.alpha * log_alpha).sum(1)
    gap = 1 - ib.measures.margin_ratio(X, y, w, svm)
    assert (constant > 0.1).all()
    assert torch.allclose(gap * log_t, constant, rtol=0.01)


def test_a_history_stacks_what_it_is_told_and_keeps_its_own_copy():
    history, w = ib.History(), torch.zeros(3, 5, requires_grad=True)
    for t in (1, 7):
        history.append(t, w=w, number=0.5 * t)
        w.data.add_(1)
    assert len(history) == 2
    assert history["t"].tolist() == [1, 7] and history["number"].tolist() == [0.5, 3.5]
    assert history["w"].shape == (2, 3, 5) and not history["w"].requires_grad
    assert history["w"][:, 0, 0].tolist() == [0, 1]


def test_an_empty_history_has_no_length():
    assert len(ib.History()) == 0


@pytest.mark.parametrize(
    "measured", [{}, {"loss": 1}, {"loss": 1, "gap": 2, "margin": 3}, {"loss": 1, "gap": 2, "q": 3}]
)
def test_a_history_refuses_names_that_differ_from_its_first(measured):
    history = ib.History()
    history.append(1, loss=1.0, margin=2.0)
    with pytest.raises(ValueError, match=r"the history holds \['loss', 'margin'\]"):
        history.append(2, **measured)
    assert len(history) == 1


def test_an_unknown_name_of_a_history_is_an_error_that_lists_the_known():
    history = ib.History()
    history.append(1, loss=1.0)
    with pytest.raises(KeyError, match=r"nothing named 'los' was recorded; there is \['loss', 't'\]"):
        history["los"]


def test_a_part_of_a_history_is_the_history_of_those_runs():
    history = ib.History()
    for t in (1, 2):
        history.append(t, w=torch.arange(15.0).reshape(3, 5) * t, log_loss=torch.tensor([1.0, 2.0, 3.0]) * t)
    part = history.part(slice(1, 3))
    assert part["t"].tolist() == [1, 2] and part["w"].shape == (2, 2, 5)
    assert part["w"].equal(history["w"][:, 1:3]) and part["log_loss"].equal(history["log_loss"][:, 1:3])


def rising_history(values, **more):
    history = ib.History()
    for t, row in enumerate(values):
        history.append(t, Q=torch.tensor(row), **{name: column[t] for name, column in more.items()})
    return history


def test_at_reads_each_run_where_its_own_key_passes_the_level():
    w = torch.tensor(
        [[[0.0, 1.0], [5.0, 5.0]], [[4.0, 3.0], [6.0, 7.0]], [[8.0, 3.0], [7.0, 7.0]]]
    )  # [pauses, runs, 2]
    history = rising_history([[0.0, 10.0], [2.0, 20.0], [4.0, 40.0]], w=w)
    assert torch.equal(history.at("Q", 1.0, "w"), torch.tensor([[2.0, 2.0], [5.0, 5.0]]))
    assert torch.equal(history.at("Q", 30.0, "w"), torch.tensor([[8.0, 3.0], [6.5, 7.0]]))
    falling = rising_history([[0.0, -10.0], [-2.0, -20.0], [-4.0, -40.0]], w=w)
    assert torch.equal(falling.at("Q", -3.0, "w"), torch.tensor([[6.0, 3.0], [5.0, 5.0]]))


def test_at_reads_a_key_of_its_own():
    history = rising_history([[0.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    assert history.at("Q", 3.0, "Q").tolist() == [3.0, 10.0]


P_OF = {"l1": 1, "l2": 2, "linf": math.inf}
DUAL = {1: math.inf, 2: 2.0, math.inf: 1.0}
every_steepest_norm = pytest.mark.parametrize("name", P_OF)


def two_layers(name, lr=1.0):
    net = ib.models.MLP(3, [5, 7, 1], [2, 3, 5], torch.tanh)
    return net, ib.optim.SteepestDescent(net.parameters(), lr=lr, norm=name), lambda: y * net(X)


@every_steepest_norm
@pytest.mark.parametrize("fall", [1e-6, torch.tensor([1e-7, 1e-6, 3e-6], dtype=torch.float64)])
def test_the_steepest_step_of_a_stride_lowers_log_L_by_fall_to_first_order(name, fall):
    for forward_of in (linear, two_layers):
        net, _, forward = forward_of() if forward_of is linear else forward_of(name)
        with torch.no_grad():
            for r, w in enumerate(net.parameters()):
                w.add_(torch.randn(w.shape, generator=torch.Generator().manual_seed(r), dtype=w.dtype) / 3)
        before = LOG_EXP(forward())
        before.sum().backward()
        lr = ib.stride(list(net.parameters()), P_OF[name], fall)
        assert lr.shape == (3,) and not lr.requires_grad
        ib.optim.SteepestDescent(net.parameters(), lr=lr, norm=name).step()
        fallen = (before - LOG_EXP(forward())).detach()
        assert torch.allclose(fallen, torch.as_tensor(fall, dtype=fallen.dtype).expand(3), rtol=1e-3, atol=0)


@every_steepest_norm
def test_a_stride_is_at_most_its_share_of_the_parameters_while_gradients_are_small(name):
    net, _, _ = two_layers(name)
    params, p = list(net.parameters()), P_OF[name]
    longest = 0.02 * ib.measures.norm(params, p)
    assert torch.equal(ib.stride(params, p, 0.1), longest)  # before the first step there is no gradient
    assert torch.allclose(ib.stride(params, p, 0.1, most=0.07), 3.5 * longest, rtol=1e-12)
    for w in params:
        w.grad = torch.zeros_like(w)
    params[0].grad[1] = 1e-9
    params[1].grad[2] = 1e3
    found = ib.stride(params, p, 0.1)
    assert torch.equal(found[:2], longest[:2])
    assert found[2].item() == pytest.approx(1e-4 / 7 ** (1 / DUAL[p]), rel=1e-12) and found[2] < longest[2]


@every_steepest_norm
def test_a_stride_is_the_length_of_the_steps_it_schedules(name):
    net, opt, forward = two_layers(name)
    params, p, fall = list(net.parameters()), P_OF[name], torch.tensor([0.03, 0.02, 0.01], dtype=torch.float64)
    start = [w.detach().clone() for w in params]
    log_loss, strides = [LOG_EXP(forward()).detach()], [0.02 * ib.measures.norm(params, p)]
    for _, q in ib.train(opt, forward, LOG_EXP, 53, schedule=lambda t: ib.stride(params, p, fall), pauses=range(1, 53)):
        moved = ib.measures.norm([w - before for w, before in zip(params, start, strict=True)], p)
        assert torch.allclose(moved, strides[-1], rtol=1e-9, atol=0)
        gradient = ib.measures.norm([w.grad for w in params], DUAL[p])
        strides.append(torch.minimum(fall / gradient, 0.02 * ib.measures.norm(params, p)))
        log_loss.append(LOG_EXP(q).detach())
        start = [w.detach().clone() for w in params]
    assert opt.param_groups[0]["lr"] == 1.0
    fallen = (log_loss[1] - log_loss[-1]) / 52  # a step, but for the first, whose length knows no gradient
    assert torch.allclose(fallen, fall, rtol=0.1, atol=0)


def passages(levels=(1.0, 5.0)):
    """Two parameters of 3 runs that hold the number of the pause, and the passages to be recorded."""
    params = [torch.nn.Parameter(torch.zeros(3, 2, 7)), torch.nn.Parameter(torch.zeros(3, 5))]
    found = ib.Passages(iter(params), iter(levels))

    def pause(t, key):
        for w in params:
            w.data.fill_(t)
        found.record(torch.tensor(key, requires_grad=True))

    return found, pause


def recorded(found, level):
    """The pause whose parameters each run holds, as both of its parameters tell it."""
    first, second = found.params[level]
    assert first.shape == (3, 2, 7) and second.shape == (3, 5) and not first.requires_grad
    assert (first == first[:, :1, :1]).all() and (second == first[:, 0, :1]).all()
    return second[:, 0].tolist()


def test_a_passage_is_the_first_pause_at_which_a_runs_key_has_reached_the_level():
    found, pause = passages()
    assert recorded(found, 1.0) == [0, 0, 0] and not found.passed[1.0].any()
    pause(1, [0.9, 1.0, 0.0])
    pause(2, [7.0, 0.5, 0.0])
    pause(3, [9.0, 6.0, 0.9])
    pause(4, [-1.0, 8.0, math.nan])
    assert recorded(found, 1.0) == [2, 1, 0] and found.passed[1.0].tolist() == [True, True, False]
    assert recorded(found, 5.0) == [2, 3, 0] and found.passed[5.0].tolist() == [True, True, False]


def test_a_run_that_never_passes_keeps_its_first_parameters_and_others_pass_after_it():
    found, pause = passages(levels=[-3.0])
    for t in range(1, 8):
        pause(t, [-7.0, -7.0 + t, -3.0 if t == 7 else -4.0])
    assert recorded(found, -3.0) == [0, 4, 7] and found.passed[-3.0].tolist() == [False, True, True]


def test_the_parameters_of_a_passage_are_copies():
    net, opt, forward = linear()
    found = ib.Passages(net.parameters(), [-0.65, 100.0])
    start, first = net.weight.detach().clone(), {}
    for _, q in ib.train(opt, forward, PLAIN, steps=101, pauses=range(1, 101)):
        key = -PLAIN(q).detach()
        for r in (key >= -0.65).nonzero().flatten().tolist():
            first.setdefault(r, net.weight.detach()[r].clone())
        found.record(key)
    assert found.passed[-0.65].all() and not found.passed[100.0].any()
    assert torch.equal(found.params[-0.65][0], torch.stack([first[r] for r in range(3)]))
    assert torch.equal(found.params[100.0][0], start) and not torch.equal(net.weight, start)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_large_blocks_that_are_freed_are_not_faulted_in_anew():
    resource = pytest.importorskip("resource")

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(8_000_000, dtype=torch.float64)  # 64 MB, 16,000 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 16_000
