"""Losses as functions of the margins q_i = y_i f(x_i):  `q [..., n] -> [...]`, a mean over examples, never over runs.

The `log_` forms keep value and slope where the loss itself has underflowed: minimising log L follows the path of
minimising L on another clock, because grad log L = grad L / L (see `ibutils.Clock`).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def exponential(q: Tensor) -> Tensor:
    """L(q) = 1/n sum_i exp(-q_i)."""
    return torch.exp(-q).mean(dim=-1)


def logistic(q: Tensor) -> Tensor:
    """L(q) = 1/n sum_i log(1 + exp(-q_i))."""
    return -logsigmoid(q).mean(dim=-1)


def log_exponential(q: Tensor) -> Tensor:
    """log L(q) = log 1/n sum_i exp(-q_i), exact for every finite q."""
    return torch.logsumexp(-q, dim=-1) - math.log(q.shape[-1])


def class_margins(scores: Tensor, y: Tensor) -> Tensor:
    """q_ic = f_y(x_i) - f_c(x_i) for the classes c != y_i, [..., n, k-1], from scores [..., n, k] and y [..., n] in 0 ... k-1."""
    k = scores.shape[-1]
    if y.is_floating_point() or not ((y >= 0) & (y < k)).all():
        raise ValueError(f"y must hold whole numbers from 0 to {k - 1}, got {y.unique().tolist()[:5]}")
    own_first = (y.unsqueeze(-1) + torch.arange(k, device=y.device)) % k
    scores = scores.gather(-1, own_first)
    return scores[..., :1] - scores[..., 1:]


def log_cross_entropy(q: Tensor) -> Tensor:
    """log L(q) = log 1/n sum_i log(1 + sum_c exp(-q_ic)) of class margins q [..., n, k-1], exact for every finite q.

    With s_i = -log sum_c exp(-q_ic) this is `log_logistic` of s.
    """
    return log_logistic(-torch.logsumexp(-q, dim=-1))


def log_logistic(q: Tensor) -> Tensor:
    """log L(q) = log 1/n sum_i log(1 + exp(-q_i)), with value and slope correct for every finite q.

    log log(1 + e^-q) = -q - e^-q / 2 + O(e^-2q) is used beyond q = 20, where the rest is below rounding; the direct
    formula gives -inf and a slope of nan once e^-q underflows (q > 745 in float64, q > 103 in float32).
    """
    return _LogLogistic.apply(q) - math.log(q.shape[-1])


class _LogLogistic(torch.autograd.Function):
    """S = log sum_i s_i, s_i = log(1 + e^-q_i), with dS/dq_i = -exp(-s_i - q_i - S): shorter than what autograd would do."""

    @staticmethod
    def forward(ctx, q):
        s = -logsigmoid(q)
        total = torch.logsumexp(torch.where(q > 20, -q - s / 2, s.log()), dim=-1)
        ctx.save_for_backward(s + q, total)
        return total

    @staticmethod
    def backward(ctx, grad):
        excess, total = ctx.saved_tensors
        return -grad.unsqueeze(-1) * torch.exp(-excess - total.unsqueeze(-1))
