"""Draws benchmarks/results/scaling.json as docs/images/scaling.svg: python plot_scaling.py RESULTS PICTURE.

Runs in an environment with matplotlib, and imports nothing of this repository. A column for each axis; time above with
the line that its FLOPs would take at the base's rate, memory below.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

BASE = {"tokens": 256, "depth": 4, "batch": 1, "steps": 10}
TIME, MEMORY, MODEL = "#0b6e4f", "#c1440e", "#888888"


def main(results: str, picture: str) -> None:
    """Reads the one and writes the other; equal results are equal bytes."""
    document = json.loads(Path(results).read_text(encoding="utf-8"))
    rows = document["rows"]
    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "latentc", "font.size": 9, "font.family": "sans-serif"}
    )
    figure, axes = plt.subplots(2, len(BASE), figsize=(2.7 * len(BASE), 4.8), sharex="col", sharey="row")
    base = next(row for row in rows if all(row[name] == value for name, value in BASE.items()))
    for column, axis in enumerate(BASE):
        line = [row for row in rows if all(row[name] == BASE[name] for name in BASE if name != axis)]
        line.sort(key=lambda row: row[axis])
        x = [row[axis] for row in line]
        time, memory = axes[0][column], axes[1][column]
        model = [base["loop_ms"] * row["flops"] / base["flops"] for row in line]
        time.plot(x, model, "--", color=MODEL, label="its FLOPs at the base's rate")
        time.plot(x, [row["loop_ms"] for row in line], "o-", color=TIME, ms=4, label="loop, measured")
        memory.plot(x, [row["peak_bytes"] / 1e6 for row in line], "o-", color=MEMORY, ms=4, label="peak, measured")
        told = [(row[axis], row["predicted_bytes"] / 1e6) for row in line if row["predicted_bytes"]]
        if len(told) > 1:
            memory.plot(*zip(*told, strict=True), "--", color=MODEL, label="peak, predicted")
        slope = document["exponents"][axis]
        time.set_title(f"{axis}: time^{slope['time_at_the_end']:.2f}, FLOPs^{slope['flops_at_the_end']:.2f} at the end")
        time.title.set_fontsize(8)
        for one in (time, memory):
            one.set_xscale("log", base=2)
            one.set_yscale("log")
            one.set_xticks(x, [str(value) for value in x])
            one.minorticks_off()
            one.grid(alpha=0.3)
            one.spines[["top", "right"]].set_visible(False)
        memory.set_xlabel(axis)
    axes[0][0].set_ylabel("loop, ms")
    axes[1][0].set_ylabel("peak on top of imports, MB")
    for row in axes:
        row[0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
