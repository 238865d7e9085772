"""The exact maximum-margin solution in an l_p norm, with the certificate that proves it."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class MaxMargin:
    """A certified solution of every run: gamma <= gamma^* <= gamma + gap."""

    norm: float | str  #: p, or the name of a matrix norm
    w: Tensor  #: [runs, d] or [runs, k, d], of norm 1
    gamma: Tensor  #: [runs], the margin that w attains: min_i y_i <w, x_i>
    alpha: Tensor  #: [runs, n] or [runs, n (k - 1)], dual weights on the simplex
    gap: Tensor  #: [runs], ||sum_i alpha_i y_i x_i||_* - gamma, in the dual norm


@dataclass(frozen=True)
class _MatrixNorm:
    """A norm of W [..., k, d], its dual norm, and its expression for cvxpy."""

    size: Callable[[Tensor], Tensor]
    dual: Callable[[Tensor], Tensor]
    program: Callable[[cp.Expression], cp.Expression]


def _largest(W: Tensor) -> Tensor:
    return W.abs().amax((-2, -1))


def _sum(W: Tensor) -> Tensor:
    return W.abs().sum((-2, -1))


_fro, _spectral, _nuclear = (partial(torch.linalg.matrix_norm, ord=order) for order in ("fro", 2, "nuc"))
MATRIX_NORMS = {
    "fro": _MatrixNorm(_fro, _fro, lambda W: cp.norm(W, "fro")),
    "spectral": _MatrixNorm(_spectral, _nuclear, cp.sigma_max),
    "nuclear": _MatrixNorm(_nuclear, _spectral, cp.normNuc),
    "max": _MatrixNorm(_largest, _sum, lambda W: cp.max(cp.abs(W))),
}


class NotSeparable(ValueError):
    """No w separates the run, up to tolerance. Proof: `alpha` on the simplex with sum_i alpha_i y_i x_i = 0 (for classes,
    with (e_{y_i} - e_c) x_i^T for y_i x_i, example by example and c = y_i + 1, y_i + 2, ... modulo k).

    `residual` is the dual norm of that sum over the largest absolute entry of X: no margin exceeds it, in those units.
    """

    def __init__(self, run: int, alpha: np.ndarray, residual: float):
        self.run, self.alpha, self.residual = run, alpha, residual
        super().__init__(
            f"run {run} is not linearly separable: the convex weights in .alpha combine its y_i x_i (for classes the "
            f"(e_y - e_c) x_i^T) to a vector of norm {residual:.1e} times the largest |x_ij|; use other data, or a model that can separate them"
        )


def max_margin(X: Tensor, y: Tensor, norm: float | str = 2, tol: float = 1e-6) -> MaxMargin:
    """max over ||w||_p <= 1 of min_i y_i <w, x_i>  =  min over alpha in the simplex of ||sum_i alpha_i y_i x_i||_{p*}.

    X is [runs, n, d], y is [runs, n] in {-1, +1}; norm p is 1, 2, inf, or any p >= 1 (power cones, slower). No bias:
    the hyperplane passes through the origin, and a set of one class is an ordinary case. Solved as a convex program by
    Clarabel through cvxpy (Goulart & Chen 2024; Diamond & Boyd 2016); the equality of the two sides, 1/p + 1/p* = 1, is
    convex duality, and `gap` is their measured difference: any w and any alpha bracket the optimum, whatever the solver.

    With norm "fro", "spectral", "nuclear" or "max" (of the entries) the problem is the multiclass one of Crammer & Singer
    (2001): y in {0, ..., k - 1}, W [k, d], and max over ||W|| <= 1 of min_{i, c != y_i} <W, (e_{y_i} - e_c) x_i^T>, with k
    the largest class plus 1. The spectral and max solutions need not be unique: compare margins, not directions.

    Raises NotSeparable (a ValueError that carries its own certificate) where a run cannot be separated, RuntimeError
    where the gap exceeds tol * gamma, and ValueError for inputs of the wrong shape or value.
    """
    _check(X, y, norm)
    if isinstance(norm, str):
        kind, k = MATRIX_NORMS[norm], int(y.max()) + 1
        size, dual, shape = kind.size, kind.dual, (k, X.shape[2])
        Z = _pairs(X, y, k)
        w = cp.Variable(shape)
        flat, program = cp.vec(w, order="C"), kind.program(w)
    else:
        p = float(norm)
        size, dual = (partial(torch.linalg.vector_norm, ord=q) for q in (p, _conjugate(p)))
        Z, shape = y.unsqueeze(-1) * X, X.shape[2:]
        flat = w = cp.Variable(shape)
        program = cp.norm(w, "inf" if math.isinf(p) else p)
    Z = Z.detach().to("cpu", torch.float64)  # [runs, pairs, features]

    # One parametrised program for all runs: compiled once, solved `runs` times, unless that takes longer than to compile
    # each with its data as constants (500 x 500: thirty times).
    rows, t = cp.Parameter(Z.shape[1:]), cp.Variable()
    margins = rows @ flat >= t
    problem = cp.Problem(cp.Maximize(t), [margins, program <= 1])
    options = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11, "ignore_dpp": rows.size > 5_000}

    W, alpha = Z.new_empty(len(Z), *shape), Z.new_empty(Z.shape[:2])
    gamma, gap = Z.new_empty(len(Z)), Z.new_empty(len(Z))
    for r, z in enumerate(Z):
        scale = float(z.abs().max()) or 1.0
        z = z / scale
        rows.value = z.numpy()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # "solution may be inaccurate": the gap below decides that
                problem.solve(solver=cp.CLARABEL, **options)
        except cp.error.SolverError as error:
            raise RuntimeError(f"run {r}: the solver failed ({error}); rescale the features of X") from error
        if w.value is None or margins.dual_value is None:
            raise RuntimeError(f"run {r}: the solver stopped with status {problem.status!r}; rescale the features of X")
        a = torch.from_numpy(margins.dual_value).clamp_min(0)
        alpha[r] = a / a.sum()
        upper = float(dual((alpha[r] @ z).reshape(shape)))
        found = torch.from_numpy(w.value)
        W[r] = found / (float(size(found)) or 1.0)
        lower = float((z @ W[r].flatten()).min())
        if upper <= tol and lower <= 0:
            raise NotSeparable(r, alpha[r].numpy(), upper)
        gamma[r], gap[r] = scale * lower, scale * (upper - lower)
        if not gap[r] <= tol * gamma[r]:
            raise RuntimeError(
                f"run {r}: duality gap {gap[r]:.1e} exceeds tol * gamma = {tol * gamma[r]:.1e} at norm {norm}; "
                "the margin is not certified: raise tol if that is accurate enough, or rescale the features of X"
            )
    return MaxMargin(norm if isinstance(norm, str) else p, W, gamma, alpha, gap)


def _pairs(X: Tensor, y: Tensor, k: int) -> Tensor:
    """(e_{y_i} - e_c) x_i^T for every i and every c != y_i, [runs, n (k - 1), k d]   (Kesler's construction)."""
    eye, y = torch.eye(k, dtype=X.dtype), y.long()
    others = (y.unsqueeze(2) + torch.arange(1, k)) % k
    return torch.einsum("rnck,rnd->rnckd", eye[y].unsqueeze(2) - eye[others], X).flatten(3).flatten(1, 2)


def _conjugate(p: float) -> float:
    return math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)


def _check(X: Tensor, y: Tensor, norm: float) -> None:
    if not (norm in MATRIX_NORMS if isinstance(norm, str) else isinstance(norm, int | float) and norm >= 1):
        raise ValueError(f"norm must be a number p >= 1, math.inf, or one of {', '.join(MATRIX_NORMS)}, got {norm!r}")
    if X.dim() != 3 or y.shape != X.shape[:2]:
        raise ValueError(f"X must be [runs, n, d] and y [runs, n], got {tuple(X.shape)} and {tuple(y.shape)}")
    if 0 in X.shape:
        raise ValueError(f"X must hold at least one run, point and feature, got [runs, n, d] = {list(X.shape)}")
    for r in range(len(X)):
        if not torch.isfinite(X[r]).all():
            raise ValueError(f"X holds nan or infinite values in run {r}")
        if not isinstance(norm, str) and not (y[r].abs() == 1).all():
            raise ValueError(f"y must be -1 or +1, got {sorted(set(y[r].tolist()))[:5]} in run {r}")
    if isinstance(norm, str) and (y.is_floating_point() or y.min() < 0 or y.max() < 1):
        raise ValueError(f"y must hold whole numbers from 0, at least two classes, got {y.unique().tolist()[:5]}")
