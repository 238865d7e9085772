"""What is measured on a run, as tensors `[runs]`. Norms and margins of every run at once."""

import copy
import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from scipy.stats import rankdata
from torch import Tensor

from .boundary import disagreement as disagreement
from .boundary import input_margin as input_margin
from .losses import class_margins
from .maxmargin import MATRIX_NORMS, MaxMargin, NotSeparable
from .models import MLP


def median(x, dim: int = 0) -> Tensor:
    """The median over runs: the mean of the two middle values of an even number, where torch.median takes the lower."""
    return torch.as_tensor(x, dtype=torch.float64).quantile(0.5, dim)


def norm(params: Iterable[Tensor], p: float) -> Tensor:
    """||theta||_p over all entries of all parameters, [runs];  p in [1, inf]."""
    return _size(torch.cat([param.detach().reshape(len(param), -1) for param in params], dim=1), p)


def normalized_margin(q: Tensor, params: Iterable[Tensor], p: float, degree: int = 1) -> Tensor:
    """gamma_p(theta) = min_i q_i / ||theta||_p^L, with L the model's degree of homogeneity (Lyu & Li 2020).

    q is [runs, n]; returns [runs]; nan at theta = 0, where no direction exists.
    """
    return q.detach().min(dim=-1).values / norm(params, p) ** degree


def margin_ratio(X: Tensor, y: Tensor, w: Tensor, best: MaxMargin) -> Tensor:
    """rho_p(w) = (min_i y_i <w, x_i> / ||w||_p) / gamma_p^*  in (-inf, 1], against the certified `best` of that norm.

    X is [runs, n, d], y [runs, n], w [..., runs, d] (a whole trajectory at once if need be); returns [..., runs].
    1 - rho_p is the *bias gap*. nan at w = 0. With the matrix norms of `max_margin` w is [..., runs, k, d], y the classes,
    and the margin min_{i, c != y_i} (w x_i)_{y_i} - (w x_i)_c.
    """
    if isinstance(best.norm, str):
        q = class_margins(X @ w.mT, y.expand(*w.shape[:-3], *y.shape)).flatten(-2)
    else:
        q = torch.einsum("rnd,...rd->...rn", y.unsqueeze(-1) * X, w)  # [..., runs, n]
    return q.min(dim=-1).values / _size(w, best.norm) / best.gamma


def fingerprint(X: Tensor, y: Tensor, w: Tensor, best: dict[float | str, MaxMargin]) -> Tensor:
    """rho_p(w) for every norm p of `best`, in its order, [norms, ..., runs]: the peak names the geometry that made w."""
    return torch.stack([margin_ratio(X, y, w, exact) for exact in best.values()])


def _size(w: Tensor, norm: float | str) -> Tensor:
    if isinstance(norm, str):
        return MATRIX_NORMS[norm].size(w)
    largest = w.abs().amax(-1, keepdim=True)
    if math.isinf(norm):
        return largest.squeeze(-1)  # vector_norm takes five times as long for it
    scaled = w / largest.clamp_min(torch.finfo(w.dtype).tiny)  # to size 1: at p = 100 a weight of 2000 overflows
    return torch.linalg.vector_norm(scaled, ord=float(norm), dim=-1) * largest.squeeze(-1)


def spearman(x, y, groups=None) -> Tensor:
    """Spearman's rank correlation along the last axis: x, y [..., n] -> [...]; 0 where x or y is constant.

    With labels `groups` [n] the ranks are those within a group, minus their mean, and correlated over all groups at once: what
    differs only between groups does not count.
    """
    x, y = (np.asarray(values, dtype=float) for values in (x, y))
    labels = np.zeros(x.shape[-1]) if groups is None else np.asarray(groups)
    ranks = np.zeros((2, *x.shape))
    for label in np.unique(labels):
        own = labels == label
        ranks[..., own] = rankdata(np.stack([x[..., own], y[..., own]]), axis=-1) - (own.sum() + 1) / 2
    a, b = ranks
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return torch.as_tensor((a * b).sum(-1) / np.where(scale > 0, scale, 1.0))


def balancedness(weights: Iterable[Tensor]) -> Tensor:
    """D_l = W_{l+1}^T W_{l+1} - W_l W_l^T, l = 1 ... L-1, flattened and joined, [runs, entries].

    Gradient flow on any loss of W_L ... W_1 x conserves every entry (Arora, Cohen & Hazan 2018; Du, Hu & Lee 2018).
    Needs at least two layers.
    """
    weights = [W.detach() for W in weights]
    return torch.cat([(V.mT @ V - W @ W.mT).flatten(1) for W, V in pairwise(weights)], dim=1)


def layer_alignment(weights: Iterable[Tensor]) -> Tensor:
    """`|<v_{l+1}, u_l>|`, the top right singular vector of W_{l+1} against the top left one of W_l, [runs, L-1].

    1 when neighbouring layers agree on the one direction that passes through both (Ji & Telgarsky 2019).
    """
    svd = [torch.linalg.svd(W.detach(), full_matrices=False) for W in weights]
    return torch.stack([(U[:, :, 0] * Vh[:, 0]).sum(1).abs() for (U, _, _), (_, _, Vh) in pairwise(svd)], dim=1)


def effective_rank(W: Tensor) -> Tensor:
    """exp of the entropy of s / sum s, s the singular values of W [..., a, b]; from 1 to min(a, b)   (Roy & Vetterli 2007)."""
    s = torch.linalg.svdvals(W.detach())
    share = s / s.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


def kkt_gap(net: MLP, X: Tensor, y: Tensor, p: float, tol: float = 1e-6) -> Tensor:
    """1 - min_i <g_i, theta> / (||theta||_p gamma^*),  g_i = grad q_i,  gamma^* = max_{||v||_p <= 1} min_i <v, g_i>.

    0 exactly where theta is along a KKT point of the l_p margin problem of the L-homogeneous net (Lyu & Li 2020 for p = 2),
    for there theta solves the problem linearised at itself; <g_i, theta> = L q_i by Euler. In [0, 1] if the net separates
    the set, and the same for every c theta, c > 0. X is [runs, n, d], y [runs, n]; returns [runs], in float64.

    p is 2, where only the n x n matrix <g_i, g_j> is needed, or inf, a linear program with one column a parameter: for
    small nets. gamma^* is bracketed by duality to within tol gamma^*, and the upper end is used. Raises RuntimeError where
    the bracket is wider, and NotSeparable where no v raises every margin.
    """
    if p not in (2, math.inf):
        raise ValueError(f"p must be 2 or inf, got {p}")
    net, X, y = copy.deepcopy(net).double(), X.double(), y.double()
    attained = net.degree * (y * net(X)).detach().min(dim=1).values / norm(net.parameters(), p)
    factors = net.gradients(X)
    if p == 2:
        K = sum((delta.mT @ delta) * (h.mT @ h) for delta, h in factors)  # <grad f_i, grad f_j>, [runs, n, n]
        best = [_least_norm(k.numpy(), tol, run) for run, k in enumerate(y.unsqueeze(2) * K * y.unsqueeze(1))]
    else:
        G = torch.cat([torch.einsum("rin,rjn->rnij", delta, h).flatten(2) for delta, h in factors], dim=2)
        best = [_largest_margin(g.numpy(), tol, run) for run, g in enumerate(y.unsqueeze(2) * G)]  # g is [n, all]
    return 1 - attained / torch.tensor(best, dtype=attained.dtype)


def _least_norm(K: np.ndarray, tol: float, run: int) -> float:
    """min over alpha in the simplex of ||sum_i alpha_i g_i||_2, from K_ij = <g_i, g_j>, with its certificate.

    The minimum of ||sum_i u_i g_i||^2 + (1 - sum_i u_i)^2 over u >= 0 lies along the same alpha = u / sum_i u: a
    non-negative least-squares problem, solved by the active-set method of Lawson & Hanson (1974).
    """
    scale = np.trace(K) / len(K) or 1.0
    values, vectors = np.linalg.eigh(K / scale)
    root = np.sqrt(values.clip(0))[:, None] * vectors.T  # root^T root = K / scale
    u, _ = nnls(np.vstack([root, np.ones(len(K))]), np.append(np.zeros(len(K)), 1.0), maxiter=30 * len(K))
    alpha = u / u.sum()
    upper = np.linalg.norm(root @ alpha)
    lower = (root.T @ (root @ alpha)).min() / (upper or 1.0)  # the margin of v = sum_i alpha_i g_i / upper
    return _certified(lower, upper, alpha, tol, run) * scale**0.5


def _largest_margin(G: np.ndarray, tol: float, run: int) -> float:
    """max of min_i <g_i, v> over ||v||_inf <= 1, and its dual weights, by the simplex method of HiGHS."""
    scale = np.abs(G).max() or 1.0
    rows, (n, size) = G / scale, G.shape
    box = [(-1, 1)] * size + [(None, None)]  # v, and the margin t to be raised
    result = linprog(np.append(np.zeros(size), -1), np.hstack([-rows, np.ones((n, 1))]), np.zeros(n), bounds=box)
    if result.x is None:
        raise RuntimeError(f"run {run}: the linear program stopped: {result.message}")
    alpha = (-result.ineqlin.marginals).clip(0)
    alpha = alpha / alpha.sum()
    return _certified((rows @ result.x[:-1]).min(), np.abs(alpha @ rows).sum(), alpha, tol, run) * scale


def _certified(lower: float, upper: float, alpha: np.ndarray, tol: float, run: int) -> float:
    if upper <= tol and lower <= 0:
        raise NotSeparable(run, alpha, float(upper))
    if not upper - lower <= tol * upper:
        raise RuntimeError(f"run {run}: the linearised optimum is known only up to {1 - lower / upper:.1e}; raise tol")
    return float(upper)
