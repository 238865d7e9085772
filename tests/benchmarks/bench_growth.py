"""B3: time of a step against runs, n, width and depth, around 32 runs of n = 200, d = 10, width 64, four hidden layers."""

import math

import numpy as np
import pytest
import torch
from contenders import Stack
from results import ratios, steps_in_turn

import ibutils as ib

AROUND = {"runs": 32, "n": 200, "width": 64, "depth": 4}
SIZES = {
    "runs": [1, 2, 4, 8, 16, 32, 64, 128, 256],
    "n": [25, 50, 100, 200, 400, 800, 1600],
    "width": [8, 16, 32, 64, 128, 256],
    "depth": [1, 2, 4, 8, 16, 32],
}


def network(runs, n, width, depth):
    X, y = (a.float() for a in ib.data.two_gaussians(n, 10, range(runs), separation=0.7))
    sizes = [10] + [width] * depth + [1]
    return Stack(ib.models.MLP(runs, sizes, range(runs), torch.relu, 2**0.5, torch.float32), X, y, fused=True)


def linear(runs):
    X, y = ib.data.gaussian_separable(50, 50, range(runs))
    return Stack(ib.models.Linear(runs, 50, 0.1, range(runs)), X, y, fused=True)


def slope(sizes, times):
    """Of log time on log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def grow(benchmark, table, case, sizes, make):
    """Times in turn; slopes over all sizes and over the upper half, where work outweighs the overhead of a step."""
    times = steps_in_turn(benchmark, {size: make(size) for size in sizes}, rounds=5, least=0.05)
    for size in sizes:
        relative = ratios(times[size], times[sizes[0]])
        table.add("growth", case, str(size), seconds_per_step=times[size], times_the_smallest=relative)
    rounds, half = list(zip(*times.values(), strict=True)), math.ceil(len(sizes) / 2)
    table.add("growth", case, "slope", all_sizes=[slope(sizes, found) for found in rounds])
    table.add("growth", case, "slope", upper_half=[slope(sizes[-half:], found[-half:]) for found in rounds])


@pytest.mark.parametrize("name", SIZES)
def bench_growth_of_a_deep_network(benchmark, table, name):
    grow(benchmark, table, name, SIZES[name], lambda size: network(**AROUND | {name: size}))


def bench_growth_of_a_linear_model(benchmark, table):
    grow(benchmark, table, "runs, linear model", SIZES["runs"], linear)
