"""The one training loop, a generator; the history of what a chapter measures in it; the clock of plain descent."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from .measures import norm


def train(
    opt: torch.optim.Optimizer,
    forward: Callable[[], Tensor],
    loss: Callable[[Tensor], Tensor],
    steps: int,
    schedule: Callable[[int], float | Tensor] | None = None,
    clock: "Clock | None" = None,
    pauses: Iterable[int] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run `steps` updates of every run at once; pause at `pauses` (log-spaced by default) and hand over (t, q).

    forward() gives the margins q [runs, n] and loss(q) one value a run. The values are *summed* over runs, because
    d(sum_r L_r)/d theta_r = dL_r/d theta_r: every element-wise optimizer then steps each run as if it were alone,
    whereas a mean would multiply Adam's eps by `runs`. The optimizer receives the values through the standard
    `opt.step(closure)`, which is how those of ours that work in the log domain learn log L.

    q at a pause belongs to the parameters after t updates and carries its graph. `schedule(t)`, t = 1, 2, ..., scales
    the learning rate that the optimizer came with (by a tensor [runs] where the optimizer takes one); it is put back at the end. At a pause forward() is called once
    more than the steps need: draw minibatches in the loss, not in forward.
    Raises FloatingPointError naming the step and the runs when a loss is not finite, before the update is made.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    stops = {*(log_spaced(steps) if pauses is None else pauses), steps}
    rates = [group["lr"] for group in opt.param_groups]
    try:
        for t in tqdm(range(1, steps + 1), desc=type(opt).__name__, leave=False):
            if schedule is not None:
                for group, rate in zip(opt.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(t)
            opt.zero_grad()
            values = loss(forward())  # [runs]
            if values.dim() != 1:
                raise ValueError(f"loss must return one value a run, [runs], got shape {list(values.shape)}")
            total = values.sum()
            if not math.isfinite(total.item()):
                bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
                raise FloatingPointError(f"step {t}: loss not finite in runs {bad}; a smaller lr may help")
            total.backward()
            values = values.detach()
            if clock is not None:
                clock.advance(values, opt.param_groups[0]["lr"])
            opt.step(lambda values=values: values)
            if t in stops:
                yield t, forward()
    finally:
        for group, rate in zip(opt.param_groups, rates, strict=True):
            group["lr"] = rate


def log_spaced(steps: int, count: int = 60) -> list[int]:
    """At most `count` distinct whole numbers from 1 to `steps`, evenly spaced in their logarithm, both ends included."""
    if steps < 1 or count < 2:
        raise ValueError(f"steps must be at least 1 and count at least 2, got steps={steps}, count={count}")
    return sorted({round(steps ** (k / (count - 1))) for k in range(count)})


def stride(params: Iterable[Tensor], p: float, fall: float | Tensor, most: float = 0.02) -> Tensor:
    """min(fall / ||grad||_p*, most ||theta||_p), [runs]: the length of a step in l_p that lowers the loss by about `fall`.

    For a `schedule`: the gradient is the one at hand, of the step before, and to first order the steepest step in l_p of
    that length lowers the loss by `fall` (a number or a tensor [runs]). The second bound holds while gradients are small,
    and alone before the first step, when there is none. From theta = 0 it allows no step: start elsewhere.
    """
    params, dual = list(params), {1: math.inf, 2: 2.0, math.inf: 1.0}[p]
    size = most * norm(params, p)
    if any(w.grad is None for w in params):
        return size
    return torch.minimum(fall / norm([w.grad for w in params], dual), size)


class Passages:
    """The parameters of every run as they were when it first passed each of `levels`.

    `record(key)` as often as need be, key [runs]; then `passed[level]` [runs] says which runs have had key >= level, and
    `params[level]` holds copies of the parameters from the first such time. Of a run that never passes it holds the first
    parameters, or, after `close()`, the last: where it stopped.
    """

    def __init__(self, params: Iterable[Tensor], levels: Iterable[float]):
        self._live, levels = list(params), list(levels)
        self.params = {level: [p.detach().clone() for p in self._live] for level in levels}
        none = torch.zeros(len(self._live[0]), dtype=torch.bool, device=self._live[0].device)
        self.passed = {level: none.clone() for level in levels}

    def record(self, key: Tensor) -> None:
        most = key.max().item()
        for level, passed in self.passed.items():
            if level <= most and not passed.all():
                new = (key >= level) & ~passed
                self._keep(level, new)
                passed |= new

    def close(self) -> None:
        for level, passed in self.passed.items():
            self._keep(level, ~passed)

    def _keep(self, level: float, which: Tensor) -> None:
        if which.any():
            for kept, live in zip(self.params[level], self._live, strict=True):
                kept[which] = live.detach()[which]


class Clock:
    """The time of plain gradient flow that a descent on log L has covered:  T = sum_k lr_k / L_k, kept as log T.

    A step lr on log L moves w by lr grad L / L, as gradient flow on L does in the time lr / L, to first order in lr.
    T passes the largest float early (L = e^-10000 is an ordinary loss here), so only its logarithm `log_t [runs]` is
    held. Plain gradient descent of learning rate eta has T = eta t after t steps.
    """

    def __init__(self):
        self.log_t = torch.tensor(-math.inf, dtype=torch.float64)

    def advance(self, log_loss: Tensor, lr: float) -> None:
        """Add one step of size lr taken on log L at the value `log_loss` [runs]."""
        self.log_t = torch.logaddexp(self.log_t, math.log(lr) - log_loss)


class History:
    """Named measurements over time: `append(t, name=tensor)`, then `history["name"]` is [pauses, ...].

    Tensors are detached and copied, so a parameter may be recorded while it goes on changing.
    """

    def __init__(self):
        self._rows: dict[str, list[Tensor]] = {}

    def append(self, t: int, **measured: Tensor) -> None:
        """Record one pause. The names must be those of the first call."""
        row = {"t": torch.tensor(t), **measured}
        if self._rows and row.keys() != self._rows.keys():
            raise ValueError(
                f"append got {sorted(measured)}, but the history holds {sorted(self._rows.keys() - {'t'})}"
            )
        for name, value in row.items():
            self._rows.setdefault(name, []).append(torch.as_tensor(value).detach().clone())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._rows:
            raise KeyError(f"nothing named {name!r} was recorded; there is {sorted(self._rows)}")
        return torch.stack(self._rows[name])

    def at(self, key: str, level: float, want: str) -> Tensor:
        """`want` where each run's own `key` [pauses, runs] first passes `level`, interpolated between two pauses; [runs, ...].

        From below if the run's key ends above its start, else from above. A run that never passes the level gives its
        last record, one that starts beyond it the first.
        """
        x, wanted, run = self[key], self[want], torch.arange(self[key].shape[1])
        passed = torch.where(x[-1] > x[0], x >= level, x <= level)  # [pauses, runs]
        after = torch.where(passed.any(dim=0), passed.int().argmax(dim=0), len(x) - 1).clamp_min(1)  # [runs]
        share = ((level - x[after - 1, run]) / (x[after, run] - x[after - 1, run])).clamp(0, 1)
        before, beyond = wanted[after - 1, run], wanted[after, run]
        return torch.lerp(before, beyond, share.reshape(-1, *[1] * (before.dim() - 1)))

    def part(self, runs: slice) -> "History":
        """The history of some of the runs, for variants that were trained as one stack."""
        part = History()
        part._rows = {name: [v[runs] if v.dim() else v for v in values] for name, values in self._rows.items()}
        return part

    def __len__(self) -> int:
        return len(self._rows.get("t", []))
