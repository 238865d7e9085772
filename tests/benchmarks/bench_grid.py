"""B6: the depth experiment of Cheema (2026), 5 depths x 4 optimizers, as 16 seeds at once and as one seed in a plain loop.

Its 3,000 epochs are 3,000 equal steps, of which some tens are timed.
"""

from functools import partial

import pytest
import torch
from bench_deep import Peak, flop
from contenders import Loop, Stack
from lion_pytorch import Lion
from results import ratios, steps_in_turn

import ibutils as ib

EPOCHS, SEEDS = 3000, 16
DEPTHS = [1, 2, 4, 6, 8]  # hidden layers
OPTIMIZERS = {  # ours, plain
    "GD": (torch.optim.SGD, torch.optim.SGD),
    "SGD": (partial(torch.optim.SGD, momentum=0.9),) * 2,
    "Adam": (partial(torch.optim.Adam, fused=True), torch.optim.Adam),
    "Lion": (ib.optim.Lion, Lion),
}
spent = {}  # (depth, optimizer) -> contender -> seconds a run of the whole training, by round


class WatchedLoop(Loop):
    """The loop with the gradient's norm read at every step, as in that experiment."""

    def advance(self, steps):
        for net, opt, X, y in zip(self.nets, self.opts, self.X, self.y, strict=True):
            for _ in range(steps):
                opt.zero_grad()
                torch.nn.functional.softplus(-y * net(X)).mean().backward()
                sum(p.grad.norm().item() ** 2 for p in net.parameters()) ** 0.5
                opt.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("depth", DEPTHS)
def bench_depth_experiment(benchmark, table, depth, optimizer):
    X, y = (a.float() for a in ib.data.two_gaussians(200, 10, range(SEEDS), separation=0.7))
    sizes = [10] + [64] * depth + [1]
    net = ib.models.MLP(SEEDS, sizes, range(SEEDS), torch.relu, 2**0.5, torch.float32)
    first = [W[:1] for W in net.weights]
    ours, plain = OPTIMIZERS[optimizer]
    peak = Peak(torch.float32, "cpu")
    contenders = {
        "ours": Stack(net, X, y, ours),
        "loop": Loop(first, X[:1], y[:1], plain),
        "loop with gradient norms": WatchedLoop(first, X[:1], y[:1], plain),
        "products at the peak": peak,
    }
    times = steps_in_turn(benchmark, contenders, rounds=5, least=0.1)
    times["ours"] = [s / SEEDS for s in times["ours"]]
    times["products at the peak"] = [s * flop(sizes, 200) / peak.flop for s in times["products at the peak"]]
    case = f"{depth} hidden, {optimizer}"
    spent[case] = {name: [EPOCHS * s for s in found] for name, found in times.items()}
    for name, found in times.items():
        table.add("grid", case, name, times_ours=ratios(found, times["ours"]))


def bench_whole_grid(table):
    """The sum over the grid; needs all of the above."""
    if len(spent) < len(DEPTHS) * len(OPTIMIZERS):
        pytest.skip("only a part of the grid was timed")
    ours = [sum(each) for each in zip(*(found["ours"] for found in spent.values()), strict=True)]
    for name in next(iter(spent.values())):
        total = [sum(each) for each in zip(*(found[name] for found in spent.values()), strict=True)]
        table.add("grid", "whole grid", name, seconds_per_run=total, times_ours=ratios(total, ours))
