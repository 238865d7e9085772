"""The exact maximum-margin solution in an l_p norm, with the certificate that proves it."""

import math
import warnings
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class MaxMargin:
    """A certified solution of every run: gamma <= gamma^* <= gamma + gap."""

    norm: float  # p
    w: Tensor  # [runs, d], ||w||_p = 1
    gamma: Tensor  # [runs], the margin that w attains: min_i y_i <w, x_i>
    alpha: Tensor  # [runs, n], dual weights on the simplex
    gap: Tensor  # [runs], ||sum_i alpha_i y_i x_i||_{p*} - gamma


class NotSeparable(ValueError):
    """No w separates the run, up to tolerance. Proof: `alpha [n]` on the simplex with sum_i alpha_i y_i x_i = 0.

    `residual` is the dual norm of that sum over the largest |x_ij|: no margin exceeds it, in those units.
    """

    def __init__(self, run: int, alpha: np.ndarray, residual: float):
        self.run, self.alpha, self.residual = run, alpha, residual
        super().__init__(
            f"run {run} is not linearly separable: the convex weights in .alpha combine its y_i x_i to a vector of "
            f"norm {residual:.1e} times the largest |x_ij|; use other data, or a model that can separate them"
        )


def max_margin(X: Tensor, y: Tensor, norm: float = 2, tol: float = 1e-6) -> MaxMargin:
    """max over ||w||_p <= 1 of min_i y_i <w, x_i>  =  min over alpha in the simplex of ||sum_i alpha_i y_i x_i||_{p*}.

    X is [runs, n, d], y is [runs, n] in {-1, +1}; norm p is 1, 2, inf, or any p >= 1 (power cones, slower). No bias:
    the hyperplane passes through the origin, and a set of one class is an ordinary case. Solved as a convex program by
    Clarabel through cvxpy (Goulart & Chen 2024; Diamond & Boyd 2016); the equality of the two sides, 1/p + 1/p* = 1, is
    convex duality, and `gap` is their measured difference: any w and any alpha bracket the optimum, whatever the solver.

    Raises NotSeparable (a ValueError that carries its own certificate) where a run cannot be separated, RuntimeError
    where the gap exceeds tol * gamma, and ValueError for inputs of the wrong shape or value.
    """
    _check(X, y, norm)
    p, p_dual = float(norm), _conjugate(float(norm))
    Z = (y.unsqueeze(-1) * X).detach().to(torch.float64).cpu().numpy()  # [runs, n, d]
    runs, n, d = Z.shape

    # One parametrised program for all runs: compiled once, solved `runs` times.
    rows, w, t = cp.Parameter((n, d)), cp.Variable(d), cp.Variable()
    margins = rows @ w >= t
    problem = cp.Problem(cp.Maximize(t), [margins, cp.norm(w, "inf" if math.isinf(p) else p) <= 1])

    W, gamma, alpha, gap = np.empty((runs, d)), np.empty(runs), np.empty((runs, n)), np.empty(runs)
    for r in range(runs):
        scale = np.abs(Z[r]).max() or 1.0
        rows.value = z = Z[r] / scale
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "solution may be inaccurate": the gap below decides that
            problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        if w.value is None or margins.dual_value is None:
            raise RuntimeError(f"run {r}: the solver stopped with status {problem.status!r}; rescale the features of X")
        a = np.clip(margins.dual_value, 0, None)
        alpha[r] = a / a.sum()
        upper = np.linalg.norm(alpha[r] @ z, p_dual)
        W[r] = w.value / (np.linalg.norm(w.value, p) or 1.0)
        lower = (z @ W[r]).min()
        if upper <= tol and lower <= 0:
            raise NotSeparable(r, alpha[r], float(upper))
        gamma[r], gap[r] = scale * lower, scale * (upper - lower)
        if not gap[r] <= tol * gamma[r]:
            raise RuntimeError(
                f"run {r}: duality gap {gap[r]:.1e} exceeds tol * gamma = {tol * gamma[r]:.1e} at norm {norm}; "
                "the margin is not certified: raise tol if that is accurate enough, or rescale the features of X"
            )
    W, gamma, alpha, gap = (torch.from_numpy(a) for a in (W, gamma, alpha, gap))
    return MaxMargin(p, W, gamma, alpha, gap)


def _conjugate(p: float) -> float:
    return math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)


def _check(X: Tensor, y: Tensor, norm: float) -> None:
    if not (isinstance(norm, int | float) and norm >= 1):
        raise ValueError(f"norm must be a number p >= 1 or math.inf, got {norm!r}")
    if X.dim() != 3 or y.shape != X.shape[:2]:
        raise ValueError(f"X must be [runs, n, d] and y [runs, n], got {tuple(X.shape)} and {tuple(y.shape)}")
    if 0 in X.shape:
        raise ValueError(f"X must hold at least one run, point and feature, got [runs, n, d] = {list(X.shape)}")
    for r in range(len(X)):
        if not torch.isfinite(X[r]).all():
            raise ValueError(f"X holds nan or infinite values in run {r}")
        if not (y[r].abs() == 1).all():
            raise ValueError(f"y must be -1 or +1, got {sorted(set(y[r].tolist()))[:5]} in run {r}")
