"""Draws benchmarks/results/bench.json as three SVG: python benchmarks/cpu/plot.py RESULTS FOLDER.

Runs where matplotlib is (the group `bench`, build/bench/env/plot) and imports nothing of this repository. Text stays
text, and equal results are equal bytes. Tools that did not draw are left out; the page has their reasons.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

COLOURS = {
    "latentc": "#0b6e4f", "latentc-int8": "#2fa37c", "latentc-cached": "#6bc5a4", "latentc-int8-cached": "#a9dfc9",
    "diffusers": "#7a7a7a", "torch.compile": "#c1440e", "openvino": "#3b5ba5", "optimum-intel": "#8fa5d6",
    "optimum-onnx": "#b58900",
}  # fmt: skip
STAGES = {"prologue_ms": "#f2b134", "loop": "#3b5ba5", "decode_ms": "#c1440e"}
NAMES = {"prologue_ms": "before the loop", "loop": "all steps", "decode_ms": "decoder"}


def main(results: str, folder: str) -> None:
    """Reads the one, writes the others."""
    document = json.loads(Path(results).read_text(encoding="utf-8"))
    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "latentc", "font.size": 8, "font.family": "sans-serif"}
    )
    latency(document["models"], Path(folder) / "bench_latency.svg")
    throughput(document["models"], Path(folder) / "bench_throughput.svg")
    cold(document["cold"], Path(folder) / "bench_cold.svg")


def latency(models: Mapping[str, Any], path: Path) -> None:
    """Stages of one picture, one panel for each model."""
    figure, axes = plt.subplots(1, len(models), figsize=(2.9 * len(models), 2.6), squeeze=False)
    for axis, (model, result) in zip(axes[0], models.items(), strict=True):
        rows = {tool: row for tool, row in result["batches"].get("1", {}).items() if "error" not in row}
        names = list(rows)[::-1]
        left = [0.0] * len(names)
        for stage, colour in STAGES.items():
            if stage == "loop":
                values = [
                    max(rows[n]["request_ms"]["p50"] - rows[n]["prologue_ms"]["p50"] - rows[n]["decode_ms"]["p50"], 0)
                    for n in names
                ]
            else:
                values = [rows[name][stage]["p50"] for name in names]
            axis.barh(names, values, left=left, color=colour, label=NAMES[stage], height=0.7)
            left = [a + b for a, b in zip(left, values, strict=True)]
        for place, name in enumerate(names):
            axis.text(left[place], place, f" {rows[name]['request_ms']['p50']:.0f}", va="center", fontsize=7)
        axis.set_xlim(0, 1.2 * max(left, default=1.0))
        axis.set_title(model)
        axis.set_xlabel("ms, p50")
    _finish(figure, axes[0], path)


def throughput(models: Mapping[str, Any], path: Path) -> None:
    """Pictures a second against the batch."""
    shown = {name: result for name, result in models.items() if len(result["batches"]) > 1}
    figure, axes = plt.subplots(1, max(len(shown), 1), figsize=(3.2 * max(len(shown), 1), 2.6), squeeze=False)
    for axis, (model, result) in zip(axes[0], shown.items(), strict=False):
        for tool in result["batches"]["1"]:
            points = [
                (int(batch), rows[tool]["images_per_s"])
                for batch, rows in result["batches"].items()
                if "error" not in rows.get(tool, {"error": ""})
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", ms=3, color=COLOURS[tool], label=tool)
        axis.set_xscale("log", base=2)
        axis.set_xticks([int(batch) for batch in result["batches"]], list(result["batches"]))
        axis.set_ylim(bottom=0)
        axis.set_title(model)
        axis.set_xlabel("batch")
    axes[0][0].set_ylabel("pictures a second")
    _finish(figure, axes[0], path)


def cold(cases: Mapping[str, Any], path: Path) -> None:
    """Seconds above, peak memory below."""
    shown = {key: case for key, case in cases.items() if case["pages"] == "warm"}
    count = max(len(shown), 1)
    figure, axes = plt.subplots(2, count, figsize=(2.9 * count, 4.4), squeeze=False)
    for column, (key, case) in enumerate(shown.items()):
        rows = {tool: row for tool, row in case["tools"].items() if "error" not in row}
        names = list(rows)[::-1]
        seconds, peaks = axes[0][column], axes[1][column]
        for axis, values, form in (
            (seconds, [rows[name]["median_s"] for name in names], "{:.2f}"),
            (peaks, [rows[name]["peak_bytes"] / 1e6 for name in names], "{:.0f}"),
        ):
            axis.barh(names, values, color=[COLOURS[name] for name in names], height=0.7)
            for place, value in enumerate(values):
                axis.text(value, place, " " + form.format(value), va="center", fontsize=7)
            axis.set_xlim(0, 1.2 * max(values, default=1.0))
        seconds.set_title(key)
        seconds.set_xlabel("cold start, s")
        peaks.set_xlabel("peak memory, MB")
    _finish(figure, [], path, [axis for row in axes for axis in row])


def _finish(figure: Any, legend_of: Any, path: Path, others: Any = ()) -> None:
    for axis in [*legend_of, *others]:
        axis.spines[["top", "right"]].set_visible(False)
    top = 1.0
    if len(legend_of):
        both = [axis.get_legend_handles_labels() for axis in legend_of]
        unique = {label: handle for handles, labels in both for handle, label in zip(handles, labels, strict=True)}
        figure.legend(unique.values(), unique, frameon=False, loc="upper center", ncols=min(len(unique), 9))
        top = 0.9
    figure.tight_layout(rect=(0, 0, 1, top))
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
