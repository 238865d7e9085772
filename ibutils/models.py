"""Models lifted to a stack of runs: parameters `[runs, ...]`, inputs `X [runs, n, d]`, outputs `f(X) [runs, n]`."""

import torch
from torch import Tensor, nn


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
            seeds = list(seeds)
            if len(seeds) != runs:
                raise ValueError(f"seeds must name one seed a run: {runs} runs, {len(seeds)} seeds")
            for r, seed in enumerate(seeds):
                w[r] = scale * torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=w.dtype)
        self.weight = nn.Parameter(w)

    def forward(self, X: Tensor) -> Tensor:
        # w as a row of each batch: X @ w as a column takes torch three times as long on a CPU.
        return torch.bmm(self.weight.unsqueeze(1), X.mT).squeeze(1)  # [runs, n]
