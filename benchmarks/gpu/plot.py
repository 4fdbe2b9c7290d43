"""Draws results of peers.py or loop.py as bars, in SVG, with nothing but the standard library.

python -m benchmarks.gpu.plot benchmarks/results/gpu_peers.json docs/images/gpu_peers.svg
"""

import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, BAR, GAP, LABEL = 760, 18, 6, 150


def main(source: Path, target: Path) -> None:
    """One group of bars for each result: milliseconds of a request, p50; the thin line is p99."""
    groups = groups_of(json.loads(source.read_text()))
    most = max((bar[2] for _, bars in groups for bar in bars), default=1.0)
    lines, y = [], 10
    for title, bars in groups:
        lines.append(f'<text x="0" y="{y + 12}" font-weight="bold">{escape(title)}</text>')
        y += 22
        for name, p50, p99 in bars:
            long, whisker = ((WIDTH - LABEL - 90) * value / most for value in (p50, p99))
            lines.append(f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
            lines.append(f'<rect x="{LABEL}" y="{y}" width="{long:.1f}" height="{BAR}" fill="#4c78a8"/>')
            middle = y + BAR / 2
            lines.append(f'<path d="M{LABEL} {middle}h{whisker:.1f}" stroke="#222" stroke-width="1"/>')
            lines.append(f'<text x="{LABEL + whisker + 6:.1f}" y="{y + 13}">{p50:.1f} ms</text>')
            y += BAR + GAP
        y += 12
    style = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" {style}>'
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join([head, *lines, "</svg>\n"]))


def groups_of(document: dict[str, object]) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """(title, [(peer, p50, p99)]) of either kind of document; peers that did not run are left out."""
    groups = []
    for result in document["results"]:  # type: ignore[attr-defined]
        if "peers" in result:
            title = f"{result['case']}, batch {result['batch']}, {result['steps']} steps"
            timed = {peer: found["request_ms"] for peer, found in result["peers"].items() if "request_ms" in found}
        else:
            title = f"{result['bundle']}, batch {result['batch']}, {result['steps']} steps"
            timed = result["request_ms"]
        groups.append((title, [(name, float(ms["p50"]), float(ms["p99"])) for name, ms in timed.items()]))
    return groups


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
