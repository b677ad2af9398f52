"""Pictures of results; they need matplotlib."""

import sys
from pathlib import Path

from minihra.controls import CONDITIONS, Controls

LABELS = {"frozen": "frozen", "own": "own head", "shared": "one task for all", "other": "another's head"}
COLOURS = {"frozen": "#bbbbbb", "own": "#1f4e79", "shared": "#7fa7c9", "other": "#c0392b"}


def draw_controls(controls: Controls, path: Path) -> None:
    """Write a PNG with each speaker's error rates; without matplotlib, say what to install."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{path}: not drawn; pip install 'minihra[plot]' brings matplotlib", file=sys.stderr)
        return
    speakers = [*controls.errors["frozen"], "mean"]
    figure = Figure(figsize=(1.2 * len(speakers) + 1, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for i, condition in enumerate(CONDITIONS):
        rates = [errors.rate for errors in controls.errors[condition].values()] + [controls.mean(condition)]
        places = [place + 0.2 * (i - 1.5) for place in range(len(speakers))]
        axis.bar(places, rates, 0.2, label=LABELS[condition], color=COLOURS[condition])
    axis.set(xticks=range(len(speakers)), xticklabels=speakers, ylabel="error rate")
    axis.legend(ncols=len(CONDITIONS), loc="upper center", bbox_to_anchor=(0.5, 1.15), frameon=False)
    figure.savefig(path, dpi=120)
