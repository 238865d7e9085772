"""Stacked models: run r of the stack is the model of run r alone."""

import pytest
import torch

import ibutils as ib

X, _ = ib.data.gaussian_separable(11, 5, range(3))


def test_a_linear_model_starts_at_zero_in_float64():
    net = ib.models.Linear(3, 5)
    assert net.weight.shape == (3, 5) and net.weight.dtype == torch.float64
    assert not net.weight.any() and not net(X).any()


def test_run_r_of_a_linear_model_is_torchs_linear_layer_on_set_r():
    net = ib.models.Linear(3, 5, scale=0.5, seeds=[2, 3, 5])
    assert net(X).shape == (3, 11)
    for r in range(3):
        alone = torch.nn.functional.linear(X[r], net.weight[r : r + 1]).squeeze(-1)
        assert torch.allclose(net(X)[r], alone, rtol=1e-13, atol=1e-13)


def test_a_linear_model_is_homogeneous_of_degree_one_in_its_weight():
    net = ib.models.Linear(3, 5, scale=1.0, seeds=range(3))
    before = net(X)
    with torch.no_grad():
        net.weight.mul_(7)
    assert torch.allclose(net(X), 7 * before, rtol=1e-13)


def test_the_start_of_a_run_depends_on_its_seed_alone_and_scales():
    net = ib.models.Linear(3, 5, scale=0.5, seeds=[2, 3, 5])
    alone = ib.models.Linear(1, 5, scale=1.0, seeds=iter([5]))
    assert torch.equal(2 * net.weight[2:], alone.weight)
    assert not torch.equal(net.weight[0], net.weight[1])


def test_no_run_sees_the_gradient_of_another():
    net = ib.models.Linear(3, 5, scale=0.5, seeds=range(3))
    net(X)[1].sum().backward()
    assert not net.weight.grad[::2].any()
    assert torch.allclose(net.weight.grad[1], X[1].sum(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": 0, "d": 5}, "runs and d must be at least 1, got runs=0, d=5"),
        ({"runs": 3, "d": -1}, "runs and d must be at least 1, got runs=3, d=-1"),
        ({"runs": 3, "d": 5, "scale": 0.5, "seeds": [1, 2]}, "one seed a run: 3 runs, 2 seeds"),
        ({"runs": 3, "d": 5, "scale": 0.5}, "scale and seeds go together"),
        ({"runs": 3, "d": 5, "seeds": [1, 2, 3]}, "scale and seeds go together"),
    ],
)
def test_an_impossible_linear_model_is_an_error_that_says_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        ib.models.Linear(**arguments)
