"""B4: max_margin, p = 2, against LIBSVM and LIBLINEAR through scikit-learn, each at the loosest tolerance that suffices.

Accuracy is the relative gap 1 - margin / bound, where no margin exceeds the bound: the norm of a convex combination of the
y_i x_i, from the solvers' dual weights. SVC has an intercept, so its problem is another, with a bound of its own.
"""

import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
from results import core, in_turn, ratios
from sklearn.svm import SVC, LinearSVC, OneClassSVM

import ibutils as ib

WANTED = 1e-6  # the relative gap
HARD = 1e10  # C: no slack
SIZES = [(200, 50), (2000, 50), (50, 2000), (500, 500), (2000, 500), (2000, 2000)]
LIMIT = 60  # seconds that ours may take, the start of a process included
ALONE = """
import resource, sys, ibutils as ib
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
n, d = map(int, sys.argv[1:])
ib.max_margin(*ib.data.gaussian_separable(n, d, [0], margin=0.5))
"""


def finishes(n, d):
    """Whether ours ends within LIMIT and 8 GiB."""
    command = [sys.executable, "-c", ALONE, str(n), str(d)]
    try:
        return subprocess.run(command, check=False, timeout=LIMIT, capture_output=True).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def ours(X, y, tol):
    """(margin, bound); tol is the certificate's own."""
    found = ib.max_margin(X, y)
    return float(found.gamma), float(found.gamma + found.gap)


def svc(x, y, tol):
    """min |w|^2 / 2 with an intercept b: y_i (<w, x_i> + b) >= 1."""
    fit = SVC(kernel="linear", C=HARD, tol=tol, cache_size=500).fit(x, y)
    w, size = fit.coef_[0], np.linalg.norm(fit.coef_)
    return (y * (x @ w + fit.intercept_)).min() / size, size / np.abs(fit.dual_coef_).sum()


def one_class(x, y, tol):
    """LIBSVM without an intercept: its one-class problem of the points y_i x_i, with nu = 1/n, is max_margin's."""
    z = y[:, None] * x
    fit = OneClassSVM(kernel="linear", nu=1 / len(y), tol=tol, cache_size=500).fit(z)
    return margin(fit.coef_[0], z), np.linalg.norm(fit.coef_) / fit.dual_coef_.sum()


def liblinear(x, y, tol):
    """The same without an intercept; it returns no dual weights, so no bound."""
    fit = LinearSVC(loss="hinge", C=HARD, fit_intercept=False, tol=tol, max_iter=1_000_000, random_state=0).fit(x, y)
    return margin(fit.coef_[0], y[:, None] * x), np.inf


def margin(w, z):
    return (z @ w).min() / np.linalg.norm(w)


def sufficient(solve, known):
    """(tol, gap): the loosest power of ten that reaches WANTED, or the one of the smallest gap; `known` bounds all margins."""
    tried = {}
    for tol in 10.0 ** -np.arange(4, 11):
        reached, bound = solve(tol)
        tried[tol] = max(0.0, 1 - reached / min(bound, known))
        if tried[tol] <= WANTED:
            return tol, tried[tol]
    return min(tried.items(), key=lambda item: item[1])


@pytest.mark.parametrize(("n", "d"), SIZES)
def bench_max_margin(benchmark, table, n, d):
    case, (X, y) = f"n = {n}, d = {d}", ib.data.gaussian_separable(n, d, [0], margin=0.5)
    x, t = X[0].numpy(), y[0].numpy()
    solvers = {
        "SVC": partial(svc, x, t),
        "LIBSVM, one class": partial(one_class, x, t),
        "LIBLINEAR": partial(liblinear, x, t),
    }
    if finishes(n, d):
        solvers = {"ours": partial(ours, X, y)} | solvers
    else:
        table.add("max_margin", case, "ours", limit_seconds=[LIMIT])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # iterations may end early: the gap says what was reached
        bound = one_class(x, t, 1e-10)[1]
        chosen = {name: sufficient(f, np.inf if name == "SVC" else bound) for name, f in solvers.items()}
        works = {name: partial(f, chosen[name][0]) for name, f in solvers.items()}
        rounds = 5 if max(core(work) for work in works.values()) < 1 else 1
        times = in_turn(benchmark, works, rounds, warmup=0)
    for name, found in times.items():
        table.add("max_margin", case, name, seconds=found, relative_gap=[chosen[name][1]])
        if "ours" in times:
            table.add("max_margin", case, name, times_ours=ratios(found, times["ours"]))
