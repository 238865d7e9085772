"""Models lifted to a stack of runs: parameters `[runs, ...]`, inputs `X [runs, n, d]`, outputs `f(X) [runs, n]`."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from .data import generators


class Linear(nn.Module):
    """f(x) = <w, x> without a bias;  `weight [runs, d]`, 1-homogeneous.

    Starts at 0, or from N(0, scale^2) with one generator a run when `seeds` are given. A bias would be one more
    coordinate of x, and its weight would enter the norm: append a constant feature if that is meant.
    """

    def __init__(self, runs: int, d: int, scale: float = 0.0, seeds=None):
        super().__init__()
        if runs < 1 or d < 1:
            raise ValueError(f"runs and d must be at least 1, got runs={runs}, d={d}")
        if (seeds is None) != (scale == 0):
            raise ValueError(f"scale and seeds go together: one seed a run and scale > 0, got {scale} and {seeds}")
        w = torch.zeros(runs, d, dtype=torch.float64)
        if seeds is not None:
            w = scale * torch.stack([torch.randn(d, generator=g, dtype=w.dtype) for g in _generators(runs, seeds)])
        self.weight = nn.Parameter(w)

    def forward(self, X: Tensor) -> Tensor:
        # w as a row of each batch: X @ w as a column takes torch three times as long on a CPU.
        return torch.bmm(self.weight.unsqueeze(1), X.mT).squeeze(1)  # [runs, n]


class DiagonalLinear(nn.Module):
    """f(x) = <u^L - v^L, x> with entrywise powers;  `u, v [runs, d]`, L-homogeneous   (Woodworth et al. 2020).

    Starts at u = v = scale, a number or a tensor [runs], where f = 0.
    """

    def __init__(self, runs: int, d: int, degree: int, scale: float | Tensor):
        super().__init__()
        if runs < 1 or d < 1 or degree < 2:
            raise ValueError(f"runs and d must be at least 1, degree at least 2, got {runs}, {d} and {degree}")
        start = torch.as_tensor(scale, dtype=torch.float64)
        if not (start > 0).all() or start.shape not in ((), (runs,)):
            raise ValueError(f"scale must be positive, a number or one a run, got {scale}")
        self.degree = degree
        self.u = nn.Parameter(start.reshape(-1, 1) * torch.ones(runs, d, dtype=start.dtype))
        self.v = nn.Parameter(self.u.detach().clone())

    def predictor(self) -> Tensor:
        """u^L - v^L, [runs, d]."""
        return self.u**self.degree - self.v**self.degree

    def forward(self, X: Tensor) -> Tensor:
        return torch.bmm(self.predictor().unsqueeze(1), X.mT).squeeze(1)  # [runs, n]


class MLP(nn.Module):
    """f(x) = W_L s(W_{L-1} ... s(W_1 x)) without biases;  `weights[l] [runs, fan_out, fan_in]`, one output.

    `sizes` = [d, width, ..., width, 1] gives L = len(sizes) - 1 layers. `activation` s acts entrywise; None is the deep
    linear network f(x) = <w, x>, w = (W_L ... W_1)^T. With s positively homogeneous (none, relu) f is `degree`-homogeneous,
    degree = L. Entries start from N(0, scale^2 / fan_in), one generator a run, scale a number or a tensor [runs]; sqrt 2 is
    He's initialisation, 1 / sqrt 3 has the variance of torch.nn.Linear's.
    """

    def __init__(
        self,
        runs: int,
        sizes: Iterable[int],
        seeds: Iterable[int],
        activation: Callable[[Tensor], Tensor] | None = None,
        scale: float | Tensor = 1.0,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        sizes = list(sizes)
        if len(sizes) < 2 or min(sizes) < 1 or sizes[-1] != 1:
            raise ValueError(f"sizes must be [d, width, ..., width, 1] with positive entries, got {sizes}")
        scale = torch.as_tensor(scale, dtype=torch.float64)
        if not (scale > 0).all() or scale.shape not in ((), (runs,)):
            raise ValueError(f"scale must be positive (the origin is a saddle), a number or one a run, got {scale}")
        streams, self.activation, self.degree = _generators(runs, seeds), activation, len(sizes) - 1
        self.weights = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            W = [torch.randn(fan_out, fan_in, generator=g, dtype=torch.float64) for g in streams]
            W = scale.reshape(-1, 1, 1) * torch.stack(W) / fan_in**0.5
            self.weights.append(nn.Parameter(W.to(dtype)))

    def predictor(self) -> Tensor:
        """(W_L ... W_1)^T of the deep linear network, [runs, d]."""
        if self.activation is not None:
            raise ValueError("predictor is defined for the linear network only; this one has an activation")
        return _chain(list(self.weights)).squeeze(1)

    def layers(self, X: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(input h [runs, fan_in, n], W h [runs, fan_out, n]) of each layer; the last W h is f(X) [runs, 1, n]."""
        h, found = X.mT, []
        for l, W in enumerate(self.weights, start=1):
            a = torch.bmm(W, h)
            found.append((h, a))
            h = a if self.activation is None or l == self.degree else self.activation(a)
        return found

    def gradients(self, X: Tensor) -> list[tuple[Tensor, Tensor]]:
        """grad f(x_i) with respect to W_l as its two factors, delta_i h_i^T: a list of (delta [runs, fan_out, n], h [runs, fan_in, n]).

        One backward pass for all examples: delta = df/da of the layer's output a = W h, and f(x_i) depends on a's column i only.
        """
        layers = self.layers(X)
        deltas = torch.autograd.grad(layers[-1][1].sum(), [a for _, a in layers])
        return [(delta, h.detach()) for delta, (h, _) in zip(deltas, layers, strict=True)]

    def forward(self, X: Tensor) -> Tensor:
        if self.activation is None:  # from the left, where every product is a row: cheaper than the layers
            return torch.bmm(_chain(list(self.weights)), X.mT).squeeze(1)  # [runs, n]
        return self.layers(X)[-1][1].squeeze(1)


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.tanh()

    @staticmethod
    def backward(ctx, grad):
        decay = (-2 * ctx.saved_tensors[0].abs()).exp()
        return grad * 4 * decay / (1 + decay) ** 2


def tanh(a: Tensor) -> Tensor:
    """tanh with the slope 4 e^(-2|a|) / (1 + e^(-2|a|))^2 to full relative accuracy.

    torch.tanh has the slope 1 - tanh^2, which is exactly 0 beyond a = +-19.1 (9.0 in float32): there a sign step, whose
    size does not depend on the gradient's, would stop dead. Here that happens beyond a = +-350.
    """
    return _Tanh.apply(a)


def _chain(weights: list[Tensor]) -> Tensor:
    """W_L ... W_1 [runs, 1, d]."""
    row = weights[-1]
    for W in reversed(weights[:-1]):
        row = torch.bmm(row, W)
    return row


def _generators(runs: int, seeds: Iterable[int]) -> list[torch.Generator]:
    seeds = list(seeds)
    if runs < 1 or len(seeds) != runs:
        raise ValueError(f"seeds must name one seed a run: {runs} runs, {len(seeds)} seeds")
    return generators(seeds, stream=1)
