"""B1: 16 data sets x 16 runs of a linear model, Adam, float64."""

import pytest
from contenders import Loop, Scan, SharedStack, Stack, jax_on
from results import DEVICES, ratios, steps_in_turn

import ibutils as ib

SETS, N, D = 16, 50, 50


@pytest.mark.parametrize(("device", "repeats"), [(d, r) for d in DEVICES for r in ((16,) if d == "cpu" else (16, 256))])
def bench_linear_ensemble(benchmark, table, device, repeats):
    runs = SETS * repeats
    sets = [a.to(device) for a in ib.data.gaussian_separable(N, D, range(SETS))]
    X, y = (a.repeat_interleave(repeats, 0) for a in sets)
    net = lambda: ib.models.Linear(runs, D, scale=0.1, seeds=range(runs)).to(device)
    weights = [net().weight]
    contenders = {
        "ours": Stack(net(), X, y, fused=True),
        "ours, data shared": SharedStack(net(), *sets, fused=True),
        "ours, Adam not fused": Stack(net(), X, y),
        "ours, foreach Adam": Stack(net(), X, y, foreach=True),
        "ours, on log L": Stack(net(), X, y, fused=True, loss=ib.losses.log_logistic),
        "ours, our Adam on log L": Stack(net(), X, y, make=ib.optim.Adam, loss=ib.losses.log_logistic),
        "loop": Loop(weights, X, y),
        "loop, fused Adam": Loop(weights, X, y, fused=True),
    }
    if jax_on(device):
        contenders |= {"JAX": Scan(weights, X, y), "JAX, data shared": Scan(weights, X, y, shared=repeats)}
    times = steps_in_turn(benchmark, contenders, device=device)
    for name, found in times.items():
        rates = [runs / s for s in found]
        table.add(
            "linear", f"{runs} runs", name, device, run_steps_per_second=rates, times_ours=ratios(found, times["ours"])
        )
