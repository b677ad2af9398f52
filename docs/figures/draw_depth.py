"""Draw docs/figures/depth.svg: HRA forward up the depth of the network, and the backward down again.

python docs/figures/draw_depth.py            (needs matplotlib)
"""

import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

STYLE = {"svg.hashsalt": "minihra", "font.size": 11, "mathtext.fontset": "dejavusans"}
FORWARD, BACKWARD, FROZEN, TRAINED = "#1f4e79", "#c0392b", "#e4e4e4", "#d5ebcf"
X, HEAD, CELL = 0.0, 3.6, 7.2  # the columns: backbone, heads, controller
ROW, READ, ADD = 3.7, 1.1, 2.45  # height of a layer; above its block, where the cell reads x and where u is added
APART = 0.11  # from the line between two places to the arrows on its two sides

Point = tuple[float, float]


def arrow(ax: plt.Axes, start: Point, end: Point, colour: str, dashed: bool = False) -> None:
    """Draw an arrow: forward ones above or left of the line from start to end, backward ones on its other side."""
    side = APART if colour == FORWARD else -APART
    dx, dy = (0, side) if start[1] == end[1] else (-side, 0)
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.5, "ls": "--" if dashed else "-", "mutation_scale": 12}
    ends = [(x + dx, y + dy) for x, y in (end, start)]
    ax.annotate("", *ends, arrowprops={**style, "shrinkA": 0, "shrinkB": 0})


def both(ax: plt.Axes, start: Point, end: Point, *, back: bool = True, dashed: bool = False) -> None:
    """Draw the forward arrow from start to end, and the backward one from end to start."""
    arrow(ax, start, end, FORWARD, dashed)
    if back:
        arrow(ax, end, start, BACKWARD, dashed)


def box(ax: plt.Axes, x: float, y: float, text: str, colour: str) -> None:
    """Draw a box with text."""
    style = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": "#444444"}
    ax.text(x, y, text, ha="center", va="center", zorder=3, bbox=style)


def label(ax: plt.Axes, x: float, y: float, text: str, colour: str, ha: str = "center") -> None:
    """Write the name of a value, or of its gradient."""
    ax.text(x, y, text, color=colour, ha=ha, va="center")


def layer(ax: plt.Axes, bottom: float, l: str) -> None:
    """Draw layer l, whose block stands at height `bottom`."""
    read, add, wanted = bottom + READ, bottom + ADD, l != "1"  # dx_1 is wanted by nobody
    both(ax, (X, bottom + 0.3), (X, read), back=wanted)
    both(ax, (X, read), (X, add - 0.22), back=wanted)
    both(ax, (X + 0.1, read), (CELL - 0.95, read), back=wanted)
    both(ax, (CELL, read + 0.45), (CELL, add))
    both(ax, (CELL - 0.1, add), (HEAD + 0.65, add))
    both(ax, (HEAD - 0.65, add), (X + 0.25, add))
    for x, y in ((X, read), (CELL, add)):
        ax.plot(x, y, "o", color="black", markersize=7, zorder=4)
    ax.text(X, add, "+", ha="center", va="center", fontsize=14, zorder=4, bbox={"boxstyle": "circle", "fc": "white"})
    box(ax, X, bottom, f"block {l}, frozen", FROZEN)
    box(ax, HEAD, add, "head $n$", TRAINED)
    box(ax, CELL, read, "controller:\ncell", TRAINED)
    label(ax, X - 0.35, read - 0.05, f"$x_{l}$", FORWARD, "right")
    label(ax, 1.7, add + 0.38, f"$u_{l}$", FORWARD)
    label(ax, 1.7, add - 0.38, f"$du_{l} = dx'_{l}$", BACKWARD)
    label(ax, 5.6, add + 0.38, f"$h_{l}$", FORWARD)
    label(ax, 5.6, add - 0.38, f"$dh_{l}$, part of head", BACKWARD)
    label(ax, HEAD, add + 0.58, "$d$heads[$n$] +=", BACKWARD)
    label(ax, CELL + 1.15, read, "$d$controller +=", BACKWARD, "left")
    label(ax, CELL + 0.3, (read + add) / 2 + 0.3, f"$dh_{l}$ = both parts", BACKWARD, "left")
    if wanted:
        label(ax, HEAD + 1.3, read - 0.38, f"$dx_{l}$, part of cell", BACKWARD)
        label(ax, X - 0.35, (read + add) / 2 + 0.05, f"$dx'_{l}$, residual part", BACKWARD, "right")
        label(ax, X + 0.3, bottom + 0.55, f"$dx_{l}$ = both parts", BACKWARD, "left")


def main(path: str) -> None:
    """Write the figure to `path`."""
    with matplotlib.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(10, 10.4))
        for row, l in enumerate("12L"):
            layer(ax, row * ROW, l)
            top, above = row * ROW + ADD, (row + 1) * ROW
            both(ax, (X, top + 0.22), (X, above - 0.3), dashed=l == "2")
            label(ax, X - 0.35, (top + above) / 2, f"$x'_{l}$", FORWARD, "right")
            label(ax, X + 0.35, (top + above) / 2 + 0.05, f"$dx'_{l}$", BACKWARD, "left")
            if l != "L":
                both(ax, (CELL, top), (CELL, above + READ - 0.45), dashed=l == "2")
                label(ax, CELL + 0.3, (top + above + READ - 0.45) / 2, f"$dh_{l}$, part of cell", BACKWARD, "left")
        box(ax, X, 3 * ROW, "readout, frozen; loss", FROZEN)
        arrow(ax, (X, -0.95), (X, -0.3), FORWARD)
        label(ax, X, -1.15, "features, subsampling (frozen)", FORWARD)
        label(ax, X + 0.3, 0.55, "no gradient: nothing in\nor below block 1 trains", BACKWARD, "left")
        arrow(ax, (CELL, -0.15), (CELL, READ - 0.45), FORWARD)
        label(ax, CELL, -0.35, "$h_0 = 0$", FORWARD)
        label(ax, HEAD + 0.3, 3 * ROW, "forward", FORWARD, "left")
        label(ax, HEAD + 2.0, 3 * ROW, "backward", BACKWARD, "left")
        ax.set(xlim=(-3.4, 10.6), ylim=(-1.4, 3 * ROW + 0.5))
        ax.axis("off")
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).with_name("depth.svg")))
