"""Draws benchmarks/results/cache_curve.json as docs/images/cache_curve.svg: python plot_cache_curve.py RESULTS PICTURE.

Runs where matplotlib is and imports nothing of this repository. One column for each model: PSNR against full steps over
the time of loop and decoder as a share of full steps'. The line is of thresholds, its band from the least to the most
of the requests; crosses are of every second and third step, points of the levels.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

LINE, UNIFORM = "#0b6e4f", "#777777"
LEVELS = {"slight": "#1f77b4", "medium": "#c1a40e", "strong": "#c1440e"}
MOST_DB = 62.0


def main(results: str, picture: str) -> None:
    """Reads the one and writes the other; equal results are equal bytes."""
    models = json.loads(Path(results).read_text(encoding="utf-8"))["models"]
    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "latentc", "font.size": 9, "font.family": "sans-serif"}
    )
    figure, axes = plt.subplots(1, len(models), figsize=(3.4 * len(models), 3.4), sharey=True, squeeze=False)
    for axis, (name, model) in zip(axes[0], models.items(), strict=True):
        rows = [row for row in model["schedules"] if row["threshold"] is not None]
        rows.sort(key=lambda row: row["cached_calls"])
        times = [row["time_ratio"] for row in rows]
        bands = [[min(MOST_DB, row["psnr_db"][key]) for row in rows] for key in ("least", "most", "mean")]
        axis.fill_between(times, bands[0], bands[1], color=LINE, alpha=0.15, linewidth=0)
        axis.plot(times, bands[2], "o-", color=LINE, ms=3, label="threshold")
        for row in model["schedules"]:
            place = (row["time_ratio"], min(MOST_DB, row["psnr_db"]["mean"]))
            if row["name"].startswith("every"):
                axis.plot(*place, "x", color=UNIFORM, ms=7, mew=2, label="every 2nd, 3rd step full")
            elif row["name"] in LEVELS and row["cached_calls"]:
                axis.plot(*place, "D", color=LEVELS[row["name"]], ms=6, label=row["name"])
        blocks = model["blocks"]
        axis.set_title(f"{name}, {model['steps']} steps\n{blocks[1] - blocks[0]} of {blocks[2]} blocks reused")
        axis.set_xlim(1.02, 0.3)
        axis.set_ylim(10, MOST_DB)
        axis.set_xlabel("time, full steps = 1")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("PSNR against full steps, dB")
    found = {}
    for axis in axes[0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), frameon=False, loc="upper center", ncols=len(found))
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    figure.savefig(picture, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
