"""One hidden layer in regression: f(x) = sum_j a_j [<w_j, x> - b_j]_+ + affine part, and its exact gradient flow.

`theta [runs, 2 + k, m]` holds a, b and the k rows of w, for m units; inputs are `X [runs, n, k]`, targets `y [runs, n]`.
The affine part <u, x> + v is either `free`, fitted by least squares at every moment, or absent.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from .data import generators


def start(
    m: int, seeds: Iterable[int], scale: float = 1.0, k: int = 1, extent: float = 1.0, output: float = 0.0
) -> Tensor:
    """theta [runs, 2 + k, m]: w uniform on the sphere of radius s, b uniform on [-s A, s A], a ~ N(0, output^2 / m).

    s is `scale`, A `extent`: for k = 1, w = +-s and the kinks b/w are uniform on [-A, A]. With output = 0, f = 0. One
    generator a seed; the same units for every `output`.
    """
    if m < 1 or k < 1 or not all(0 < size < math.inf for size in (scale, extent)) or not 0 <= output < math.inf:
        found = f"{m}, {k}, {scale}, {extent} and {output}"
        raise ValueError(f"m, k, scale and extent must be positive and output at least 0, got {found}")
    rows = []
    for g in generators(seeds, stream=1):
        w = torch.randn(k, m, generator=g, dtype=torch.float64)
        b = 2 * torch.rand(1, m, generator=g, dtype=torch.float64) - 1
        a = output / m**0.5 * torch.randn(1, m, generator=g, dtype=torch.float64)
        rows.append(torch.cat([a, scale * extent * b, scale * w / w.norm(dim=0)]))
    return torch.stack(rows)


def features(theta: Tensor, X: Tensor) -> Tensor:
    """[<w_j, x_i> - b_j]_+, [runs, n, m]."""
    return torch.baddbmm(-theta[:, 1:2], X, theta[:, 2:]).clamp_min_(0)


def output(theta: Tensor, X: Tensor) -> Tensor:
    """f(X) without its affine part, [runs, n]; one run at a time, as grids are long."""
    return torch.cat([features(t, x) @ t[0, 0] for t, x in zip(theta.unsqueeze(1), X.unsqueeze(1), strict=True)])


def jacobian(theta: Tensor, X: Tensor) -> Tensor:
    """df(x_i)/dtheta [runs, n, 2 + k, m]: [<w, x> - b]_+ for a, and with its indicator 1 -a 1 for b, a x 1 for w."""
    z = features(theta, X)
    on = z.sign() * theta[:, :1]  # sign is 0 or 1 here, and quicker than z > 0
    return torch.cat([z.unsqueeze(2), -on.unsqueeze(2), on.unsqueeze(2) * X.unsqueeze(3)], dim=2)


def complement(X: Tensor, free: bool = True) -> Tensor:
    """Orthonormal columns [runs, n, n - 1 - k] orthogonal to the affine functions on X; without these the identity."""
    if not free:
        return torch.eye(X.shape[1], dtype=X.dtype).expand(len(X), -1, -1)
    if X.shape[1] <= 1 + X.shape[2]:
        raise ValueError(f"X must hold more than {1 + X.shape[2]} points, which an affine part fits, got {X.shape[1]}")
    return torch.linalg.qr(_affine(X), mode="complete").Q[:, :, 1 + X.shape[2] :]


def with_affine(fX: Tensor, fZ: Tensor, X: Tensor, y: Tensor, Z: Tensor) -> Tensor:
    """fZ plus the affine function that brings fX nearest to y, at the points Z; [runs, points]."""
    uv = torch.linalg.lstsq(_affine(X), (y - fX).unsqueeze(2)).solution
    return fZ + (_affine(Z) @ uv).squeeze(2)


def fit(theta: Tensor, X: Tensor, y: Tensor, Z: Tensor, free: bool = True) -> tuple[Tensor, Tensor]:
    """(f(Z) with its affine part, [runs, points]; the training loss, mean (f - y)^2 [runs])."""
    fX, fZ = output(theta, X), output(theta, Z)
    if free:
        fX, fZ = with_affine(fX, fX, X, y, X), with_affine(fX, fZ, X, y, Z)
    return fZ, (fX - y).square().mean(1)


def frozen(theta: Tensor, X: Tensor, y: Tensor, free: bool = True) -> Tensor:
    """theta with the output weights of least norm that fit y, the hidden layer as it is.

    The limit of gradient descent on the linearised network when a = 0 at the start. With a free affine part they fit
    what it leaves.
    """
    V = complement(X, free)
    if theta.shape[2] <= V.shape[2]:
        raise ValueError(f"theta must have more than {V.shape[2]} units for {X.shape[1]} points, got {theta.shape[2]}")
    part = V.mT @ features(theta, X)
    c = torch.linalg.solve(part @ part.mT, V.mT @ y.unsqueeze(2))
    return torch.cat([(part.mT @ c).mT, theta[:, 1:]], dim=1)


def beside(theta: Tensor, X: Tensor, y: Tensor, times: float, seeds: Iterable[int], free: bool = True) -> Tensor:
    """`frozen`, plus a random vector of output weights that no data point sees, `times` as long: as exact a fit."""
    theta, streams = frozen(theta, X, y, free), generators(seeds, stream=3)
    xi = torch.stack([torch.randn(theta.shape[2], generator=g, dtype=theta.dtype) for g in streams])
    for _ in range(2):  # twice, for rounding
        seen = (features(theta, X) @ xi.unsqueeze(2)).squeeze(2)
        xi = xi - frozen(theta, X, seen, free)[:, 0]
    length = times * theta[:, 0].norm(dim=1) / xi.norm(dim=1)
    return torch.cat([theta[:, :1] + (length.unsqueeze(1) * xi).unsqueeze(1), theta[:, 1:]], dim=1)


def kernel_fit(K: Tensor, KZ: Tensor, X: Tensor, y: Tensor, Z: Tensor, free: bool = True) -> Tensor:
    """The interpolant of least norm in the kernel's Hilbert space, at Z: from K = k(X, X) and KZ = k(X, Z).

    With a free affine part the semi-norm that does not see it: f = affine + sum_i c_i k(x_i, .), c orthogonal to the
    affine functions on X (Wahba 1990, chapter 1).
    """
    V = complement(X, free)
    c = V @ torch.linalg.solve(V.mT @ K @ V, V.mT @ y.unsqueeze(2))
    fX, fZ = ((k.mT @ c).squeeze(2) for k in (K, KZ))
    return with_affine(fX, fZ, X, y, Z) if free else fZ


def natural_spline(X: Tensor, y: Tensor, Z: Tensor) -> Tensor:
    """The natural cubic spline, the interpolant of least `int f''^2` (Holladay 1957), at Z between the ends; by SciPy."""
    lines = (part.squeeze(2).numpy() if part.ndim == 3 else part.numpy() for part in (X, y, Z))
    return torch.tensor(np.stack([CubicSpline(a, b, bc_type="natural")(c) for a, b, c in zip(*lines, strict=True)]))


def curvature(F: Tensor, h: float) -> Tensor:
    """sum_x (f(x + h) - 2 f(x) + f(x - h))^2 / h^3 over an even grid F [runs, points]: `int f''^2` at the resolution h.

    Finite for a piecewise linear f, where `int f''^2` is not: a kink that bends f by J counts about 2 J^2 / (3 h).
    """
    return F.diff(n=2, dim=1).square().sum(1) / h**3


def gradient_flow(
    theta: Tensor,
    X: Tensor,
    y: Tensor,
    free: bool = True,
    loss: float = 1e-18,
    change: float = 0.02,
    growth: float = 1.3,
    floor: float = 0.0,
    tries: int = 20_000,
    horizon: float = math.inf,
) -> Tensor:
    """theta after the flow `theta' = -grad 1/2 |f - y|^2` of all parameters, each run until mean (f - y)^2 <= loss.

    Exponential Euler with the tangent kernel K = J J^T (V^T K V with a free affine part): the step
    theta - J^T K^-1 (1 - e^(-K h)) r is exact while K stays, so stiffness costs nothing. A step is redone, shorter, if
    K changed by more than the share `change` or `|r|` rose; h grows by at most `growth`. Where a kink crosses a data point,
    or slides along one, K jumps and in the rich regime no such step may exist: a step as short as `floor` times
    2/lambda_max(K), times `|r(0)|/|r|`, is always taken, even if `|r|` rises. A run that is not through after that many
    `tries`, at the time `horizon`, or at a stationary point (`|J^T r| < 1e-12 |J| |r|`) stays where it is: look at its loss.
    """
    theta, live = theta.clone(), torch.arange(len(theta))
    basis = complement(X, free)
    now, at = theta.clone(), _look(theta, X, y, basis)
    h = 0.01 / at[1][0][:, -1]
    first, t = at[2].norm(dim=1), torch.zeros_like(h)
    for _ in range(tries):
        (lam, U), r = at[1:]
        slope = (lam * (U.mT @ r.unsqueeze(2)).squeeze(2).square()).sum(1)  # |J^T r|^2
        moving = slope > 1e-24 * lam[:, -1] * r.square().sum(1)
        left = (r.square().sum(1) / X.shape[1] > loss) & (t < horizon) & moving
        if not left.all():
            theta[live] = now
            live, now, basis, h, t, first, X, y = (part[left] for part in (live, now, basis, h, t, first, X, y))
            at = tuple(part[left] for part in at[0]), tuple(part[left] for part in at[1]), at[2][left]
        if not len(live):
            break
        parts, (lam, U), r = at
        least = 2 * floor / lam[:, -1] * (first / r.norm(dim=1)).clamp_min(1)
        h = torch.maximum(h, least).minimum(horizon - t)
        gain = -torch.expm1(-lam.clamp_min(0) * h.unsqueeze(1)) / lam.clamp_min(1e-300)
        c = basis @ (U @ (gain * (U.mT @ r.unsqueeze(2)).squeeze(2)).unsqueeze(2))
        moved = now - _pull(parts, X, c)
        new = _look(moved, X, y, basis)
        K, K_new = ((u * l.unsqueeze(1)) @ u.mT for l, u in (at[1], new[1]))
        share = (K_new - K).flatten(1).norm(dim=1) / K.flatten(1).norm(dim=1)
        worse = new[2].norm(dim=1) > r.norm(dim=1) * (1 + 1e-9)
        taken = ((share < change) & ~worse) | (h <= least * 1.001)
        t = t + h * taken
        h = h * torch.where(worse, 0.3, (0.8 * change / share.clamp_min(1e-30)).clamp(0.2, growth))
        if taken.all():
            now, at = moved, new
        else:
            now, at = torch.where(taken.reshape(-1, 1, 1), moved, now), _where(taken, new, at)
    theta[live] = now
    return theta


def _affine(X: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(X[..., :1]), X], dim=2)


def _look(theta: Tensor, X: Tensor, y: Tensor, basis: Tensor):
    """The two parts of the Jacobian, eigenvalues and vectors of the (projected) J J^T, the (projected) residuals."""
    z = features(theta, X)
    on = z.sign() * theta[:, :1]
    K = z @ z.mT + (1 + X @ X.mT) * (on @ on.mT)
    r = (z @ theta[:, 0].unsqueeze(2)).squeeze(2) - y
    return (z, on), torch.linalg.eigh(basis.mT @ K @ basis), (basis.mT @ r.unsqueeze(2)).squeeze(2)


def _pull(parts, X: Tensor, c: Tensor) -> Tensor:
    """J^T c [runs, 2 + k, m] for c [runs, n, 1]."""
    z, on = parts
    return torch.cat([c.mT @ z, -c.mT @ on, (c * X).mT @ on], dim=1)


def _where(taken: Tensor, new, old):
    def choose(a, b):
        return torch.where(taken.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return tuple(map(choose, new[0], old[0])), tuple(map(choose, new[1], old[1])), choose(new[2], old[2])
