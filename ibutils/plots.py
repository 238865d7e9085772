"""Figure helpers that draw into a given `ax`: one colour and one line style an optimizer, through the whole book."""

import base64
import io
import re

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML
from matplotlib.animation import FuncAnimation
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image

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
    """Matplotlib settings of every figure: an opaque white ground (it reads in the dark theme too), no top and right frame.

    In a notebook figures are SVG, sharp at every size, and the same text from the same run: no date, no random names.
    """
    set_matplotlib_formats("svg", metadata={"Date": None})
    plt.rcParams.update(
        {
            "svg.hashsalt": "ibutils",
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


# Text for the buttons of matplotlib's player, whose icons would come from a font on another host.
_BUTTONS = {
    "minus": "&minus;",
    "fast-backward": "|&lt;",
    "step-backward": "&lt;",
    "play fa-flip-horizontal": "&#9664;&#xFE0E;",
    "pause": "||",
    "play": "&#9654;&#xFE0E;",
    "step-forward": "&gt;",
    "fast-forward": "&gt;|",
    "plus": "+",
}
_PLAYER = """<style>
.animation, .animation img, .anim-slider {max-width: 100%}
.animation img {background: white}
@media print {.animation {display: none}}
</style>
"""


def player(fig, draw, frames: int, name: str, alt: str, interval: int = 200) -> HTML:
    """draw(0), ..., draw(frames - 1) into `fig`, as matplotlib's HTML player, which then asks no other host for anything.

    Its random ids become `name`, so that two runs give the same page; frames get a palette of 32 colours, which makes
    them a third of their size. `alt` describes the animation. Hidden in print: show a still beside it.
    """
    draw(frames - 1)
    fig.draw_without_rendering()  # lays the panels out
    fig.set_layout_engine("none")  # and there they stay
    page = FuncAnimation(fig, draw, frames, interval=interval).to_jshtml(default_mode="once")
    plt.close(fig)
    page = re.sub(r'<link rel="stylesheet"\s[^>]*>', _PLAYER, page)
    page = re.sub(r"\b(_?anim\w*?_?)[0-9a-f]{32}", rf"\1_{name}", page)
    for icon, text in _BUTTONS.items():
        page = page.replace(f'<i class="fa fa-{icon}"></i>', text)
    page = page.replace("<img ", f'<img alt="{alt}" ')
    return HTML(re.sub(r'base64,([^"]*)"', _with_palette, page))


def _with_palette(match: re.Match) -> str:
    png = base64.b64decode(match[1].replace("\\\n", ""))
    small = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(32, dither=0).save(small, "png", optimize=True)
    return f'base64,{base64.b64encode(small.getvalue()).decode()}"'
