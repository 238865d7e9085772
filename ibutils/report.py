"""What a page shows besides figures: numbers for its text, tables, intervals as text."""

import pandas as pd
import torch

from .claims import interval


def put(name: str, value) -> None:
    """Keep a number for the text, which quotes it by its name: {glue:text}`name:.3f`."""
    from myst_nb import glue  # brings in Sphinx, which only pages need

    glue(name, float(value), display=False)


def table(rows: dict, *names: str) -> pd.DataFrame:
    """{row: {column: value}} as a table, its index called `names`; an empty one where nothing was run."""
    frame = pd.DataFrame(rows).T
    return frame.rename_axis(list(names)) if rows else frame


def spread(values, digits: str = ".3f") -> str:
    """'median [low, high]', the interval of `claims.interval` over runs; '' unless every run has a finite value.

    The space within the brackets does not break: a narrow table has the median above its interval.
    """
    if not torch.as_tensor(values).isfinite().all():
        return ""
    middle, low, high = (format(value, digits) for value in interval(values))
    return f"{middle} [{low},\N{NO-BREAK SPACE}{high}]"
