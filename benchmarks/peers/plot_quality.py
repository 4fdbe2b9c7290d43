"""Draws benchmarks/results/quality_steps.json as docs/images/quality_steps.svg: python plot_quality.py RESULTS PICTURE.

Runs in an environment with matplotlib, and imports nothing of this repository. A row for each model: PSNR to the
converged trajectory, and what the judge says, both against the denoiser's calls; the dashed line is the default.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

COLOURS = ("#0b6e4f", "#c1440e", "#2c5aa0", "#8a5a9e")


def main(results: str, picture: str) -> None:
    """Reads the one and writes the other; equal results are equal bytes."""
    models = json.loads(Path(results).read_text(encoding="utf-8"))
    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "latentc", "font.size": 9, "font.family": "sans-serif"}
    )
    figure, axes = plt.subplots(len(models), 2, figsize=(7.6, 2.9 * len(models)), squeeze=False)
    for (name, found), (psnr, judge) in zip(models.items(), axes, strict=True):
        rows, default = found["rows"], found["default"]
        for colour, solver in zip(COLOURS, dict.fromkeys(row["solver"] for row in rows), strict=False):
            own = [row for row in rows if row["solver"] == solver]
            calls = [row["calls"] for row in own]
            psnr.plot(calls, [row["psnr_db"] for row in own], "o-", color=colour, ms=4, label=solver)
            judge.plot(calls, [row["judge"] for row in own], "o-", color=colour, ms=4, label=solver)
        at = next(
            (r["calls"] for r in rows if (r["solver"], r["steps"]) == (default["solver"], default["steps"])),
            default["steps"],
        )
        judge.axhline(found["reference"]["judge"], color="#888888", lw=0.8)
        for axis in (psnr, judge):
            axis.axvline(at, color="#888888", ls="--", lw=0.8)
            axis.set_xscale("log", base=2)
            axis.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xlabel("calls of the denoiser")
        psnr.set_ylabel(f"{name}\nPSNR to 200 steps, dB")
        judge.set_ylabel("accepted by the judge")
        judge.set_ylim(0, 1)
        psnr.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
