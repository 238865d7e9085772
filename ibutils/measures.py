"""What is measured on a run, as tensors `[runs]`. Norms and margins of every run at once."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .maxmargin import MaxMargin


def norm(params: Iterable[Tensor], p: float) -> Tensor:
    """||theta||_p over all entries of all parameters, [runs];  p in [1, inf]."""
    theta = torch.cat([param.detach().reshape(len(param), -1) for param in params], dim=1)  # [runs, all]
    return torch.linalg.vector_norm(theta, ord=float(p), dim=1)


def normalized_margin(q: Tensor, params: Iterable[Tensor], p: float, degree: int = 1) -> Tensor:
    """gamma_p(theta) = min_i q_i / ||theta||_p^L, with L the model's degree of homogeneity (Lyu & Li 2020).

    q is [runs, n]; returns [runs]; nan at theta = 0, where no direction exists.
    """
    return q.detach().min(dim=-1).values / norm(params, p) ** degree


def margin_ratio(X: Tensor, y: Tensor, w: Tensor, best: MaxMargin) -> Tensor:
    """rho_p(w) = (min_i y_i <w, x_i> / ||w||_p) / gamma_p^*  in (-inf, 1], against the certified `best` of that norm.

    X is [runs, n, d], y [runs, n], w [..., runs, d] (a whole trajectory at once if need be); returns [..., runs].
    1 - rho_p is the *bias gap*. nan at w = 0.
    """
    q = torch.einsum("rnd,...rd->...rn", y.unsqueeze(-1) * X, w)  # [..., runs, n]
    return q.min(dim=-1).values / torch.linalg.vector_norm(w, ord=float(best.norm), dim=-1) / best.gamma
