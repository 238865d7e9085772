"""Update rules that torch.optim lacks, each a few lines. Parameters are `[runs, ...]`; runs never mix."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

NORMS = ("l1", "l2", "linf", "spectral", "nuclear")
_NEEDS_LOG_LOSS = "step needs log L: call step(lambda: log_loss) or use ibutils.train, with a log_ loss"


class SteepestDescent(torch.optim.Optimizer):
    """w <- w - lr (D + weight_decay w),  D = argmax over ||D|| <= 1 of <grad, D>   (normalised steepest descent; Boyd & Vandenberghe 9.4).

    norm "l2": grad / ||grad||_2, normalised GD;  "linf": sign(grad), SignGD;  "l1": the one coordinate where
    `|grad|` is largest, greedy coordinate descent, that is boosting;  "spectral": U V^T of grad = U S V^T, matrix by
    matrix;  "nuclear": u_1 v_1^T, its top singular pair.
    The vector norms are over all parameters of the group together. The step does not depend on the gradient's
    scale, so a descent on log L and one on L take the same steps. With decoupled weight decay a step is one of Frank &
    Wolfe's (1956) over the ball ||w|| <= 1 / weight_decay, for "l2", "linf" and "l1". lr is a number or a tensor [runs].
    """

    def __init__(self, params, lr: float | Tensor, norm: str, weight_decay: float = 0.0):
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        super().__init__(params, {"lr": _positive(lr=lr), "norm": norm, "weight_decay": _decay(weight_decay)})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            directions = unit_steps([p.grad for p in params], group["norm"])
            for p, direction in zip(params, directions, strict=True):
                _descend(p, direction, group)


def unit_steps(grads: list[Tensor], norm: str) -> list[Tensor]:
    """The direction D of `SteepestDescent` for gradients [runs, ...]; zero where a run's gradient is zero."""
    if norm == "linf":
        return [g.sign() for g in grads]
    if norm == "spectral":
        return [polar(g) for g in grads]
    if norm == "nuclear":
        return [polar(g, rank=1) for g in grads]
    flat = torch.cat([g.reshape(len(g), -1) for g in grads], dim=1)  # [runs, all]
    if norm == "l2":
        tiny = torch.finfo(flat.dtype).tiny
        flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)  # first to size 1, so that no square underflows
        flat = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp_min(tiny)
    elif norm == "l1":
        largest = flat.abs().argmax(dim=1, keepdim=True)
        flat = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign())
    else:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    parts = flat.split([g[0].numel() for g in grads], dim=1)
    return [part.reshape(g.shape) for part, g in zip(parts, grads, strict=True)]


def polar(G: Tensor, rank: int | None = None) -> Tensor:
    """U V^T of G = U S V^T for matrices [runs, a, b], with zero singular values left at zero; exact, by SVD.

    `rank` keeps the largest singular values only.
    """
    if G.dim() != 3:
        raise ValueError(f'norms "spectral" and "nuclear" need matrices [runs, a, b], got shape {tuple(G.shape)}')
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    kept = S > S[:, :1] * max(G.shape[1:]) * torch.finfo(G.dtype).eps
    return (U[:, :, :rank] * kept[:, None, :rank]) @ Vh[:, :rank]


def newton_schulz(G: Tensor, coefficients=((3.4445, -4.7750, 2.0315),) * 5, eps: float = 0.0) -> Tensor:
    """Muon's approximation of `polar`: X <- a X + (b A + c A^2) X, A = X X^T, once for each (a, b, c)   (Jordan et al. 2024).

    From X = G / max(||G||_F, eps). Each singular value s goes to a s + b s^3 + c s^5, without a limit for these
    coefficients; (15/8, -10/8, 3/8) are those of the iteration that converges to 1. torch.optim.Muon has eps = 1e-7.
    """
    wide = G.shape[-2] <= G.shape[-1]
    X = G if wide else G.mT
    tiny = torch.finfo(X.dtype).tiny
    unit = X.abs().amax((-2, -1), keepdim=True).clamp_min(tiny)  # first to size 1, so that no square underflows
    X = X / unit
    X = X / torch.maximum(torch.linalg.matrix_norm(X, keepdim=True), eps / unit).clamp_min(tiny)
    for a, b, c in coefficients:
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X if wide else X.mT


class Muon(torch.optim.Optimizer):
    """B <- mu B + (1 - mu) g,  W <- W - lr (factor(g + mu (B - g)) + weight_decay W)   (Jordan et al. 2024).

    For matrices [runs, a, b], where torch.optim.Muon takes one. Without `nesterov`, factor(B). `factor` orthogonalises:
    `polar` exactly, `newton_schulz` as torch does (there in bfloat16, and with lr scaled by a factor of the shape). lr is
    a number or a tensor [runs].
    """

    def __init__(
        self,
        params,
        lr: float | Tensor,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        factor: Callable[[Tensor], Tensor] = polar,
    ):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        settings = {"lr": _positive(lr=lr), "momentum": momentum, "nesterov": nesterov, "factor": factor}
        super().__init__(params, settings | {"weight_decay": _decay(weight_decay)})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                B = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                _descend(p, group["factor"](B), group)


class MirrorDescent(torch.optim.Optimizer):
    """`u <- u - lr grad,  w = sign(u) |u|^(1/(p-1)),  u_0 = sign(w_0) |w_0|^(p-1)`   (p-GD; Sun et al. 2022).

    Mirror descent for the potential ||w||_p^p / p, p > 1; p = 2 is gradient descent. u is kept as its sign and `log |u|`,
    so that no power overflows: at p = 100 a weight of 2000 has u = 1e327. u is the state: w is what follows from it. lr
    is a number or a tensor [runs].
    """

    def __init__(self, params, lr: float | Tensor, p: float):
        if not 1 < p < math.inf:
            raise ValueError(f"p must be a finite number above 1, got {p}")
        super().__init__(params, {"lr": _positive(lr=lr), "p": p})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            power = group["p"] - 1
            for w in group["params"]:
                if w.grad is None:
                    continue
                state = self.state[w]
                if not state:
                    state.update(sign=w.sign(), log=power * w.abs().log())  # of u
                log_lr = torch.as_tensor(group["lr"], dtype=w.dtype, device=w.device).log()
                change = _like(log_lr, w) + w.grad.abs().log()  # log |lr grad|
                unit = torch.maximum(state["log"], change).clamp_min(torch.finfo(w.dtype).min)
                u = state["sign"] * (state["log"] - unit).exp() - w.grad.sign() * (change - unit).exp()
                state["sign"], state["log"] = u.sign(), unit + u.abs().log()
                w.copy_(state["sign"] * (state["log"] / power).exp())


class Lion(torch.optim.Optimizer):
    """w <- w - lr (sign(b1 m + (1 - b1) g) + weight_decay w),  m <- b2 m + (1 - b2) g   (Chen et al. 2023).

    With log_domain=True the gradient handed over is that of log L, and the step is *exactly* Lion's on L itself: m is
    stored over a unit of its own, whose logarithm follows L and m down, so that nothing under- or overflows.
    With b1 = b2 this is sign descent with momentum, Signum. lr is a number or a tensor [runs].
    """

    def __init__(
        self,
        params,
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.99),
        log_domain: bool = False,
        weight_decay: float = 0.0,
    ):
        settings = {"lr": _positive(lr=lr), "betas": _betas(betas), "weight_decay": _decay(weight_decay)}
        super().__init__(params, settings | {"log_domain": log_domain})

    @torch.no_grad()
    def step(self, closure=None):
        log_loss = None if closure is None else closure()
        for group in self.param_groups:
            if group["log_domain"] and log_loss is None:
                raise ValueError(_NEEDS_LOG_LOSS)
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, g = self.state[p], p.grad
                if not state:
                    state.update(exp_avg=torch.zeros_like(p), log_unit=log_loss)
                m = state["exp_avg"]
                if group["log_domain"]:  # bring m and g to one unit, the larger of the two
                    unit = torch.maximum(state["log_unit"], log_loss)
                    m.mul_(_like((state["log_unit"] - unit).exp(), p))
                    g = g * _like((log_loss - unit).exp(), p)
                _descend(p, torch.lerp(g, m, b1).sign_(), group)
                m.lerp_(g, 1 - b2)
                if group["log_domain"]:
                    size = m.abs().reshape(len(m), -1).amax(1).clamp_min(torch.finfo(m.dtype).tiny)
                    m.div_(_like(size, p))
                    state["log_unit"] = unit + size.log()
        return log_loss


class Adam(torch.optim.Optimizer):
    """Adam on L, driven by the gradient of log L, exact at any loss   (Kingma & Ba 2015, Algorithm 1).

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   w <- w - lr m^ / (sqrt v^ + eps),   g = grad L.

    Plain Adam ends in 0/0 when g^2 underflows (log L < -354 in float64). With c = -log L, what is stored is
    m e^c and v e^2c, what arrives is grad log L = g e^c, and eps stands as eps e^c: numerator and denominator carry
    the same factor, so the step is the same. As log L falls by D the stored moments are multiplied by e^D and e^2D.

    `leap` > 0 shortens the wait once eps rules. Late, when the gradient is far below eps, plain Adam is gradient
    descent of step lr / eps and needs exponentially many steps; Dt of them, with the gradient held constant, are

        m <- b1^Dt m + (1 - b1^Dt) g,   v <- b2^Dt v + (1 - b2^Dt) g^2,   w <- w - Dt lr m^ / (sqrt v^ + eps),

    with Dt = max(1, leap eps / (lr L)): single exact steps while eps < lr L / leap, and a step of `leap` on log L at the
    end. With leap = 0 (the default) every step is plain Adam's. `log_t [runs]` is the log of the plain steps made.

    lr is a number or a tensor [runs], a step size of its own for each run. Use with `train` and a `log_` loss, which pass log L through `step(closure)`; one parameter group.
    """

    def __init__(self, params, lr: float | Tensor, betas=(0.9, 0.999), eps: float = 1e-8, leap: float = 0.0):
        if eps < 0 or leap < 0:
            raise ValueError(f"eps and leap must be at least 0, got eps={eps}, leap={leap}")
        super().__init__(params, {"lr": _positive(lr=lr), "betas": _betas(betas), "eps": eps, "leap": leap})
        self.log_t = torch.tensor(-math.inf, dtype=torch.float64)

    @torch.no_grad()
    def step(self, closure=None):
        if closure is None:
            raise ValueError(_NEEDS_LOG_LOSS)
        log_loss = closure()  # [runs]
        if len(self.param_groups) != 1:
            raise ValueError(f"params must form one group, as log_t is one clock; got {len(self.param_groups)} groups")
        (group,) = self.param_groups
        lr, (b1, b2), eps, leap = group["lr"], group["betas"], group["eps"], group["leap"]
        leap = leap if eps else 0.0
        log_b1, log_b2 = (math.log(b) if b else -math.inf for b in (b1, b2))
        log_dt = torch.zeros((), dtype=log_loss.dtype)
        if eps:
            log_eps = math.log(eps) - log_loss  # log(eps e^c), [runs]
            shift = log_eps.clamp_min(0)  # numerator and denominator are divided by max(1, eps e^c), beyond floats late
        if leap:
            log_dt = (log_eps + (leap / torch.as_tensor(lr, dtype=log_loss.dtype)).log()).clamp_min(0)  # [runs]
        self.log_t = torch.logaddexp(self.log_t, log_dt)
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state.update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p), log_loss=log_loss)
                state.update(forget1=1.0, forget2=1.0)  # b1^t, b2^t of the bias correction
            m, v = state["exp_avg"], state["exp_avg_sq"]
            dt = _like(log_dt.exp(), p) if leap else 1.0  # inf beyond floats, where b^dt = 0 is right
            k1, k2 = b1**dt, b2**dt
            state["forget1"] = left1 = state["forget1"] * k1
            state["forget2"] = left2 = state["forget2"] * k2
            growth = _like(state["log_loss"] - log_loss, p)  # c_t - c_{t-1}, and 0 at the first step
            state["log_loss"] = log_loss
            m.mul_((dt * log_b1 + growth).exp()).add_((1 - k1) * p.grad)
            v.mul_((dt * log_b2 + 2 * growth).exp()).add_((1 - k2) * p.grad.square())
            denominator = (v / (1 - left2)).sqrt_()
            numerator = m * ((_like(lr, p) if torch.is_tensor(lr) else lr) / (1 - left1))
            if eps:
                denominator.mul_(_like((-shift).exp(), p)).add_(_like((log_eps - shift).exp(), p))
                numerator.mul_(_like((log_dt - shift).exp(), p))
            p.sub_(numerator / denominator.clamp_min_(torch.finfo(p.dtype).tiny))  # never a gradient: 0 / tiny, no move
        return log_loss


def _descend(p: Tensor, direction: Tensor, group: dict) -> None:
    lr = _like(group["lr"], p) if torch.is_tensor(group["lr"]) else group["lr"]
    if group["weight_decay"]:
        p.mul_(1 - lr * group["weight_decay"])
    p.sub_(lr * direction)


def _like(per_run: Tensor, p: Tensor) -> Tensor:
    return per_run.reshape(-1, *[1] * (p.dim() - 1))


def _positive(lr: float | Tensor) -> float | Tensor:
    if not (torch.as_tensor(lr) > 0).all():
        raise ValueError(f"lr must be positive, got {lr}")
    return lr


def _decay(weight_decay: float) -> float:
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
    return weight_decay


def _betas(betas: tuple[float, float]) -> tuple[float, float]:
    if not all(0 <= b < 1 for b in betas):
        raise ValueError(f"betas must lie in [0, 1), got {betas}")
    return tuple(betas)
