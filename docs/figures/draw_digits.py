"""Draw docs/figures/digits.svg: the means over seeds in docs/results.md, own heads beside their controls.

python docs/figures/draw_digits.py            (needs matplotlib)
"""

import re
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from minihra.controls import CONDITIONS
from minihra.report import COLOURS, LABELS

PAGE = Path(__file__).resolve().parents[1] / "results.md"
ROW = re.compile(r"^\| (\w+, \w+, \w+) \| (\d+) \|" + r" (\d\.\d{3}) \|" * len(CONDITIONS) + "$", re.MULTILINE)


def means() -> list[tuple[str, list[float]]]:
    """Return the name and the four word error rates of each row of the page's table of means."""
    return [
        (f"{limit} recordings a speaker\npre-trained on\n{known}", [float(rate) for rate in rates])
        for known, limit, *rates in ROW.findall(PAGE.read_text(encoding="utf-8"))
    ]


def main(path: str) -> None:
    """Draw the figure into the file `path`."""
    matplotlib.rcParams.update({"svg.hashsalt": "minihra", "font.size": 9})
    figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
    rows = means()
    for i, condition in enumerate(CONDITIONS):
        places = [place + 0.21 * (i - 1.5) for place in range(len(rows))]
        bars = axis.bar(places, [rates[i] for _, rates in rows], 0.2, label=LABELS[condition], color=COLOURS[condition])
        axis.bar_label(bars, fmt="%.2f", padding=1, fontsize=8)
    axis.set(xticks=range(len(rows)), xticklabels=[name for name, _ in rows], ylabel="word error rate, new speakers")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(ncols=len(CONDITIONS), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).with_name("digits.svg")))
