"""Figure helpers that draw into a given `ax`: one colour and one line style an optimizer, through the whole book."""

import matplotlib.pyplot as plt
import torch

# Okabe & Ito's colour-blind safe palette; the line styles tell the curves apart without colour.
STYLES = {
    "GD": ("#0072B2", "-"),
    "momentum": ("#56B4E9", "--"),
    "SGD": ("#009E73", "-."),
    "normalised GD": ("#000000", ":"),
    "SignGD": ("#D55E00", "--"),
    "coordinate descent": ("#7F7F7F", "-"),
    "Adam": ("#CC79A7", "-"),
    "Lion": ("#E69F00", "-."),
}


def use_style() -> None:
    """Matplotlib settings of every figure: an opaque white ground (it reads in the dark theme too), no top and right frame."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 12,
            "legend.frameon": False,
        }
    )


def style(name: str) -> dict:
    """Colour and line style of an optimizer; a variant such as "SGD, batch 8" takes its family's."""
    family = next((known for known in STYLES if name == known or name.startswith(known + ",")), None)
    if family is None:
        raise ValueError(f"no style for {name!r}; give it one in ibutils.plots.STYLES: {list(STYLES)}")
    color, linestyle = STYLES[family]
    return {"color": color, "linestyle": linestyle}


def band(ax, t, values, label: str | None = None, **kwargs):
    """The median over runs as a line, the middle 80 % of runs as a band; t [pauses] or [pauses, runs], values [pauses, runs].

    Where t differs from run to run (a clock), its median over runs is the abscissa.
    """
    t = torch.as_tensor(t, dtype=torch.float64)
    t = t.quantile(0.5, dim=1) if t.dim() == 2 else t
    low, middle, high = torch.quantile(values, torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype), dim=1)
    (line,) = ax.plot(t, middle, label=label, **kwargs)
    ax.fill_between(t, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    return ax


def separator(ax, w, extent: float, **kwargs):
    """The line <w, x> = 0 of w [2] across a square of half-width `extent`."""
    along = torch.tensor([-float(w[1]), float(w[0])], dtype=torch.float64)
    along = 2 * extent * along / along.norm()
    ax.plot([-along[0], along[0]], [-along[1], along[1]], **kwargs)
    return ax
