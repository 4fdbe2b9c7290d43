"""Writes the measured tables into docs/benchmarks.md, between their marks: python -m benchmarks.cpu.page.

Reads benchmarks/results/bench.json and nothing else, so that equal results are an equal page. Prose outside the marks
is kept: why an aim is missed stands there.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cpu.aims import aims_of, decibels, rivals
from benchmarks.cpu.cases import LEAST_PSNR_DB, VARIANTS
from benchmarks.cpu.environments import ROOT
from benchmarks.cpu.rounds import ratio
from benchmarks.marked_page import replace_file, with_section

PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results" / "bench.json"
WRITER = "python -m benchmarks.cpu.page"
NOT_YET = "Not measured yet."


def machine(document: Mapping[str, Any]) -> str:
    """Where it ran, and the ceilings around each model's rounds."""
    found = document["machine"]
    lines = [
        f"On {found['cores']} cores of an {found['processor']}, {found['memory_gib']} GiB, no GPU; "
        f"{document['threads']} threads for every tool. Load when it began: {found['load_1_5_15_min'][0]:g}.", "",
        "| model | product of matrices, before → after | copy, before → after | a step computes, moves | "
        "share of the product's rate | of the copy's rate |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, result in document["models"].items():
        own = result["batches"].get("1", {}).get("latentc", {"error": ""})
        if "step" not in result or "error" in own:
            lines.append(f"| {name} | | | | | |")
            continue
        before, after, step = result["ceilings"]["before"], result["ceilings"]["after"], result["step"]
        seconds = own["step_ms"]["p50"] / 1e3
        flops, moved = step["flops"] / seconds, step["bytes"] / seconds
        lines.append(
            f"| {name} | {before['matrix_flops_per_s'] / 1e9:.0f} → {after['matrix_flops_per_s'] / 1e9:.0f} GFLOP/s | "
            f"{before['copy_bytes_per_s'] / 1e9:.1f} → {after['copy_bytes_per_s'] / 1e9:.1f} GB/s | "
            f"{step['flops'] / 1e9:.2f} GFLOP, {step['bytes'] / 1e6:.1f} MB | "
            f"{_shares(flops, before['matrix_flops_per_s'], after['matrix_flops_per_s'])} | "
            f"{_shares(moved, before['copy_bytes_per_s'], after['copy_bytes_per_s'])} |"
        )
    return "\n".join(lines)


def aims(document: Mapping[str, Any]) -> str:
    """One row for each aim and model."""
    lines = ["| aim | of | bound | reached | the rival | missed by |", "|---|---|---|---|---|---|"]
    for aim in aims_of(document):
        reached = "" if aim.reached is None else f"{aim.reached:.2f}"
        if aim.interval is not None:
            reached += f" ({aim.interval[0]:.2f}–{aim.interval[1]:.2f})"
        sign = "≤" if aim.at_most else "≥"
        lines.append(f"| {aim.name} | {aim.where} | {sign} {aim.bound:g} | {reached} | {aim.rival} | {aim.missed_by} |")
    return "\n".join(lines)


def latency(document: Mapping[str, Any]) -> str:
    """One table for each model, at batch 1, and the errors of those that did not draw."""
    parts = ["![one picture by stage](images/bench_latency.svg)"]
    for name, result in document["models"].items():
        request = result["request"]
        scale = f"cfg {request['cfg_scale']:g}" if request["guidance"] is None else f"guidance {request['guidance']:g}"
        tools = result["batches"].get("1", {})
        rounds = max((len(row["requests_ms"]) for row in tools.values() if "error" not in row), default=0)
        parts.append(f"\n### {name}\n")
        parts.append(f"{request['pixels']}², {request['steps']} steps, {scale}, batch 1, {rounds} rounds; ms.\n")
        parts.append(
            "| | request p50 | p90 | p99 | before the loop | step p50 | p90 | p99 | decoder | PSNR | "
            "latentc is faster by |"
        )
        parts.append("|---" * 11 + "|")
        own = tools.get("latentc", {"error": ""})
        for tool, row in tools.items():
            if "error" in row:
                continue
            all_, step = row["request_ms"], row["step_ms"]
            faster = ""
            if tool != "latentc" and "error" not in own:
                found = ratio(own["requests_ms"], row["requests_ms"])
                faster = f"{found['ratio']:.2f} ({found['low']:.2f}–{found['high']:.2f})"
            right = tool in VARIANTS or tool in rivals(tools)
            parts.append(
                f"| {tool}{'' if right else ' (another picture: no rival)'} | {all_['p50']:.1f} | {all_['p90']:.1f} | "
                f"{all_['p99']:.1f} | {row['prologue_ms']['p50']:.1f} | {step['p50']:.2f} | {step['p90']:.2f} | "
                f"{step['p99']:.2f} | {row['decode_ms']['p50']:.1f} | {decibels(row.get('psnr_db'))} | {faster} |"
            )
        parts += _errors({**tools, **{t: row for t, row in result["tools"].items() if "error" in row}})
    return "\n".join(parts)


def throughput(document: Mapping[str, Any]) -> str:
    """Pictures a second by batch, of the models that were drawn at several."""
    parts = [
        "![pictures a second by batch](images/bench_throughput.svg)", "",
        f"In brackets: the PSNR of the picture that is least alike, where it is below {LEAST_PSNR_DB:g} dB.",
    ]  # fmt: skip
    for name, result in document["models"].items():
        batches = result["batches"]
        if len(batches) < 2:
            continue
        parts += ["", f"### {name}", "", "| | " + " | ".join(f"batch {batch}" for batch in batches) + " |"]
        parts.append("|---" * (1 + len(batches)) + "|")
        for tool in batches["1"]:
            rows = [found.get(tool, {"error": ""}) for found in batches.values()]
            if "error" in rows[0]:
                continue
            cells = ["" if "error" in row else f"{row['images_per_s']:.2f}{_least_alike(row)}" for row in rows]
            parts.append(f"| {tool} | " + " | ".join(cells) + " |")
    return "\n".join(parts)


def _least_alike(row: Mapping[str, Any]) -> str:
    psnr = row.get("psnr_db")
    return f" ({decibels(psnr)})" if psnr is not None and psnr < LEAST_PSNR_DB else ""


def cold(document: Mapping[str, Any]) -> str:
    """Whole processes, and what they held."""
    parts = ["![cold start and peak memory](images/bench_cold.svg)"]
    for key, case in document["cold"].items():
        parts += [
            "",
            f"### {key}",
            "",
            "| | median | all rounds | peak memory | of it its own |",
            "|---|---|---|---|---|",
        ]
        for tool, row in case["tools"].items():
            if "error" not in row:
                seconds = ", ".join(f"{value:.2f}" for value in row["seconds"])
                parts.append(
                    f"| {tool} | {row['median_s']:.2f} s | {seconds} | {row['peak_bytes'] / 1e6:.0f} MB | "
                    f"{row['own_bytes'] / 1e6:.0f} MB |"
                )
        parts += _errors(case["tools"])
    return "\n".join(parts)


def install(document: Mapping[str, Any]) -> str:
    """Of each environment, with the versions that drew."""
    versions: dict[str, str] = {}
    for result in document["models"].values():
        for tool, row in result["tools"].items():
            if "versions" in row:
                versions[tool] = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    lines = ["| environment | site-packages |", "|---|---|"]
    lines += [f"| {name} | {row['bytes'] / 1e6:.0f} MB |" for name, row in document["environments"].items()]
    return "\n".join([*lines, "", *(f"- {tool}: {text}" for tool, text in versions.items())])


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "aims": aims,
    "machine": machine,
    "latency": latency,
    "throughput": throughput,
    "cold": cold,
    "install": install,
}


def filled(page: str, results: Path) -> str:
    """The page with each section written anew; ValueError where its marks are not there exactly once."""
    document = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None
    for name, write in SECTIONS.items():
        page = with_section(page, name, WRITER, NOT_YET if document is None else write(document))
    return page


def main() -> None:
    """Rewrites the page."""
    replace_file(PAGE, filled(PAGE.read_text(encoding="utf-8"), RESULTS))


def _errors(tools: Mapping[str, Any]) -> list[str]:
    failed = {name: row["error"] for name, row in tools.items() if "error" in row}
    return (
        ["", *(f"- {name} does not draw it: `{text.replace('`', chr(39))}`" for name, text in failed.items())]
        if failed
        else []
    )


def _shares(rate: float, before: float, after: float) -> str:
    low, high = sorted((100 * rate / before, 100 * rate / after))
    return f"{low:.0f}–{high:.0f} %"


if __name__ == "__main__":
    main()
