"""B2: 32 deep ReLU networks, n = 200, d = 10, width 64, Adam: share of the matrix-product peak."""

import shutil
from itertools import pairwise

import pytest
import torch
from contenders import Closed, Compiled, Loop, Products, Scan, Stack, jax_on
from results import DEVICES, ratios, steps_in_turn

import ibutils as ib

N, D, WIDTH = 200, 10, 64


class Peak:
    """Large square matrix products; `advance(10)` is one of them, so that it is timed like ten steps."""

    def __init__(self, dtype, device, size=2048):
        self.flop = 2 * size**3 / 10
        self.a, self.b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
        self.out = torch.empty_like(self.a)

    def advance(self, steps):
        for _ in range(steps // 10):
            torch.mm(self.a, self.b, out=self.out)


def flop(sizes, n):
    """Of one step of one run: 2 m n k for every product; forward, gradient of weights, gradient of inputs but the data."""
    layers = list(pairwise(sizes))
    return sum(2 * n * a * b * (2 if first else 3) for first, (a, b) in zip([True] + [False] * len(layers), layers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("hidden", [1, 4, 8])
@pytest.mark.parametrize(("device", "runs"), [(d, r) for d in DEVICES for r in ((32,) if d == "cpu" else (32, 4096))])
def bench_deep_ensemble(benchmark, table, device, runs, hidden, dtype):
    X, y = (a.to(device, dtype) for a in ib.data.two_gaussians(N, D, range(runs), separation=0.7))
    sizes = [D] + [WIDTH] * hidden + [1]
    net = lambda: ib.models.MLP(runs, sizes, range(runs), torch.relu, 2**0.5, dtype).to(device)
    weights = list(net().weights)
    contenders = {
        "ours": Stack(net(), X, y, fused=True),
        "ours, Adam not fused": Stack(net(), X, y),
        "ours, on log L": Stack(net(), X, y, fused=True, loss=ib.losses.log_logistic),
        "ours, gradient by hand": Closed(net(), X, y, fused=True),
        "products alone": Products(weights, X),
    }
    if hidden == 4 and device == "cpu" and shutil.which("c++"):
        contenders["ours, compiled"] = Compiled(net(), X, y, fused=True)
    if runs <= 32:
        contenders["loop"] = Loop(weights, X, y)
    if jax_on(device):
        contenders["JAX"] = Scan(weights, X, y)
    peak = Peak(dtype, device)
    times = steps_in_turn(benchmark, contenders | {"peak": peak}, rounds=5, device=device)
    best = [peak.flop / s for s in times.pop("peak")]
    case = f"{runs} runs, {hidden} hidden, {str(dtype).removeprefix('torch.')}"
    table.add("deep", case, "matrix product", device, gflop_per_second=[rate / 1e9 for rate in best])
    for name, found in times.items():
        rates = [runs * flop(sizes, N) / s for s in found]
        table.add(
            "deep", case, name, device, gflop_per_second=[rate / 1e9 for rate in rates],
            share_of_peak=ratios(rates, best), times_ours=ratios(found, times["ours"]),
        )  # fmt: skip
