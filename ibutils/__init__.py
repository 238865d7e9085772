"""Helpers of the report: data, exact margins, losses in the log domain, optimizers, one training loop, claims.

One convention everywhere: dimension 0 of every tensor is the run. `import ibutils as ib`.
Data and weights are drawn on the CPU, the same from the same seed everywhere; `X.to(device)` and `net.to(device)` move
them, and losses, optimizers, `train` and the norms of `measures` compute where they are. `max_margin` solves on the CPU.
"""

import ctypes
import sys

from . import claims, data, losses, measures, models, optim, plots, report, shallow
from .maxmargin import MaxMargin, NotSeparable, max_margin
from .train import Clock, History, Passages, log_spaced, stride, train

__all__ = [
    "Clock",
    "History",
    "MaxMargin",
    "NotSeparable",
    "Passages",
    "claims",
    "data",
    "log_spaced",
    "losses",
    "max_margin",
    "measures",
    "models",
    "optim",
    "plots",
    "report",
    "shallow",
    "stride",
    "train",
]


def _keep_freed_memory() -> None:
    """Have glibc keep large blocks that are freed: every step asks for them again, and each fresh page costs a fault."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD: from heap, not mapped each time, and never handed back
        mallopt(-3, 2**30)
        mallopt(-1, 2**31 - 1)


_keep_freed_memory()
