"""Puts the measured tables into docs/export-at-size.md, between their marks: python -m benchmarks.export_page.

Reads benchmarks/results/export_at_size.json, one_step_at_size.json, kill_export.json and export_peers.json.
What was not measured yet is said in its place; nothing else of the page is touched.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.export_at_size import table
from benchmarks.marked_page import replace_file, with_section

PAGE = Path(__file__).parent.parent / "docs" / "export-at-size.md"
RESULTS = Path(__file__).parent / "results"


def at_size(document: Mapping[str, Any]) -> str:
    """The exports, with the machine and the peak by phase."""
    rows = document["rows"]
    lines = [table(rows), "", "Seconds and peak (GB) of each phase:", ""]
    lines += ["| model | " + " | ".join(phase for phase in next(iter(rows.values()))["phases"]) + " |"]
    lines += ["|---" * (1 + len(next(iter(rows.values()))["phases"])) + "|"]
    for row in rows.values():
        cells = [f"{phase['seconds']:g} s, {phase['rss'] / 1e9:.2f}" for phase in row["phases"].values()]
        lines.append(f"| {row['model']} | " + " | ".join(cells) + " |")
    notes = [
        f"- {row['model']}: {item['tensor']}: {item['reason']}" for row in rows.values() for item in row["unverified"]
    ]
    if notes:
        lines += ["", "Not compared within the memory that was given, as `parity.json` says it:", "", *notes]
    return "\n".join([*lines, "", _machine(next(iter(rows.values()))["machine"])])


def one_step(document: Mapping[str, Any]) -> str:
    """One step, beside torch."""
    lines = [
        "| | time of the step | whole process | peak resident set | of it its own | mapped files |",
        "|---|---|---|---|---|---|",
    ]
    for part, name in (("runtime", "latentc, weights mapped"), ("torch", "torch, block by block")):
        found = document[part]
        peak = found["peak_bytes"]
        lines.append(
            f"| {name} | {found['phases']['step']['seconds']:g} s | {found['seconds']:g} s | "
            f"{peak['hwm'] / 1e9:.2f} GB | {peak['anon'] / 1e9:.2f} GB | {peak['file'] / 1e9:.2f} GB |"
        )
    lines += [
        "",
        f"{document['pipeline']} in {document['precision']}, {document['loop_parameters'] / 1e9:.2f} B parameters "
        f"in the loop, {document['size']}: "
        f"relative L2 distance {document['relative_l2']:.2e}, bound {document['bound']:g}.",
        "",
        _machine(document["machine"]),
    ]
    return "\n".join(lines)


def kills(document: Mapping[str, Any]) -> str:
    """The kills, counted."""
    unequal = len(document["rounds_with_other_hashes"])
    return (
        f"{len(document['kills'])} kills, {document['killed_while_running']} of them before the export was done, "
        f"in {document['rounds']} rounds of an export of {document['undisturbed_s']:g} s: "
        f"{document['partial_bundles']} partial bundles, {unequal} rounds with other hashes, "
        f"{len(document['left_beside'])} files left beside the bundle.\n\n"
        f"{_machine(document['machine'])}"
    )


def peers(document: Mapping[str, Any]) -> str:
    """All exports of both tools, and the picture."""
    lines = [
        "![peak memory and time against parameters](images/export_peers.svg)",
        "",
        "| model | parameters | tool | | peak resident set | times the checkpoint | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(
        document["rows"], key=lambda row: (row["model"].partition("-")[0], row["parameters"], row["tool"])
    ):
        peak = max(row["peak_bytes"]["hwm"], row["peak_bytes"]["rss"] if row["status"] == "out of memory" else 0)
        ended = row["status"] == "ok"
        lines.append(
            f"| {row['model']} | {row['parameters'] / 1e9:.2f} B | {row['tool']} | "
            f"{row['status']} | {peak / 1e9:.2f} GB | {peak / row['source_bytes']:.1f} | "
            f"{'' if ended else 'ended after '}{row['seconds'] / 60:.1f} min |"
        )
    failed = {row["message"]: row["model"] for row in reversed(document["rows"]) if row["status"] == "failed"}
    lines += [f"\n{model}: `{message}`" for message, model in failed.items()]
    versions = ", ".join(f"{name} {version}" for name, version in document["peer_versions"].items())
    return "\n".join([*lines, "", f"The peer: {versions}.", "", _machine(document["machine"])])


def _machine(found: Mapping[str, Any]) -> str:
    versions = found["versions"]
    return (
        f"On {found['cores']} cores of an {found['processor']}, {found['memory_gib']} GiB, no GPU; "
        f"torch {versions['torch']}, diffusers {versions['diffusers']}, onnxruntime {versions['onnxruntime']}."
    )


SECTIONS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "at size": ("export_at_size", at_size),
    "one step": ("one_step_at_size", one_step),
    "kills": ("kill_export", kills),
    "peers": ("export_peers", peers),
}


def filled(page: str, results: Path) -> str:
    """The page with each section written anew; ValueError where its marks are not there exactly once."""
    for name, (stem, write) in SECTIONS.items():
        file = results / f"{stem}.json"
        text = write(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else "Not measured yet."
        page = with_section(page, name, "python -m benchmarks.export_page", text)
    return page


def main() -> None:
    """Rewrites the page, by rename."""
    replace_file(PAGE, filled(PAGE.read_text(encoding="utf-8"), RESULTS))


if __name__ == "__main__":
    main()
