"""Losses as functions of the margins q_i = y_i f(x_i):  `q [..., n] -> [...]`, a mean over examples, never over runs.

The `log_` forms keep value and slope where the loss itself has underflowed: minimising log L follows the path of
minimising L on another clock, because grad log L = grad L / L (see `ibutils.Clock`).
"""

import math

import torch
from torch import Tensor


def exponential(q: Tensor) -> Tensor:
    """L(q) = 1/n sum_i exp(-q_i)."""
    return torch.exp(-q).mean(dim=-1)


def logistic(q: Tensor) -> Tensor:
    """L(q) = 1/n sum_i log(1 + exp(-q_i))."""
    return torch.logaddexp(torch.zeros_like(q), -q).mean(dim=-1)


def log_exponential(q: Tensor) -> Tensor:
    """log L(q) = log 1/n sum_i exp(-q_i), exact for every finite q."""
    return torch.logsumexp(-q, dim=-1) - math.log(q.shape[-1])


def log_logistic(q: Tensor) -> Tensor:
    """log L(q) = log 1/n sum_i log(1 + exp(-q_i)), with value and slope correct for every finite q.

    log log(1 + e^-q) = -q - e^-q / 2 + O(e^-2q) is used beyond q = 20, where the rest is below rounding; the direct
    formula gives -inf and a slope of nan once e^-q underflows (q > 745 in float64, q > 103 in float32).
    """
    far = q > 20
    near_q = q.masked_fill(far, 0.0)  # keeps the branch not taken finite, so that no nan reaches the gradient
    far_q = q.masked_fill(~far, 0.0)
    near = torch.logaddexp(torch.zeros_like(q), -near_q).log()
    return torch.logsumexp(torch.where(far, -far_q - torch.exp(-far_q) / 2, near), dim=-1) - math.log(q.shape[-1])
