"""Draws benchmarks/results/export_peers.json as docs/images/export_peers.svg: python plot_export.py RESULTS PICTURE.

Runs in the peer's environment, which has matplotlib (benchmarks/peers/optimum-onnx.txt), and imports nothing of this
repository. One column for each series with two exports or more; memory above, time below; a cross is where a tool was
killed for memory.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

COLOURS = {"latentc": "#0b6e4f", "optimum-onnx": "#c1440e"}
TITLES = {"flux": "FLUX.1, fp16", "sd3": "SD3.5, fp16", "dit": "DiT, fp32"}


def main(results: str, picture: str) -> None:
    """Reads the one and writes the other; equal results are equal bytes."""
    rows = json.loads(Path(results).read_text(encoding="utf-8"))["rows"]
    present = [name for name in TITLES if any(row["model"].startswith(name) for row in rows)]
    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "latentc", "font.size": 9, "font.family": "sans-serif"}
    )
    figure, axes = plt.subplots(2, len(present), figsize=(3.3 * len(present), 4.8), sharex="col", squeeze=False)
    for column, series in enumerate(present):
        memory, time = axes[0][column], axes[1][column]
        for tool, colour in COLOURS.items():
            found = sorted(
                (row for row in rows if row["model"].startswith(series) and row["tool"] == tool),
                key=lambda row: row["parameters"],
            )
            whole = [row for row in found if row["status"] == "ok"]
            for axis, figures in (
                (memory, [row["peak_bytes"]["hwm"] / 1e9 for row in whole]),
                (time, [row["seconds"] / 60 for row in whole]),
            ):
                axis.plot([row["parameters"] / 1e9 for row in whole], figures, "o-", color=colour, label=tool, ms=4)
            killed = [row for row in found if row["status"] == "out of memory"]
            memory.plot(
                [row["parameters"] / 1e9 for row in killed], [row["peak_bytes"]["rss"] / 1e9 for row in killed], "x",
                color=colour, ms=8, mew=2,
            )  # fmt: skip
            for row in killed:
                place = (row["parameters"] / 1e9, row["peak_bytes"]["rss"] / 1e9)
                memory.annotate("killed", place, (0, 6), textcoords="offset points", color=colour, ha="center")
            if found and not whole and not killed:
                memory.text(0.97, 0.93, f"{tool}: not supported", color=colour, ha="right", transform=memory.transAxes)
        memory.set_title(TITLES[series])
        for axis in (memory, time):
            axis.set_xlim(left=0)
            axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        time.set_xlabel("parameters, billions")
    axes[0][0].set_ylabel("peak resident set, GB")
    axes[1][0].set_ylabel("export, minutes")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="upper center", ncols=2)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(picture, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
