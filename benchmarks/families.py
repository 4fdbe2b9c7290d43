"""Draws with every family, beside diffusers, and writes the README's table of them: `make families`.

    python -m benchmarks.families [--only NAME …]      a table, and one JSON document as the last line
    python -m benchmarks.families --half               the same in float16 for TensorRT 8.6; leaves the README alone

Each row is a small pipeline with random weights in the layout of the public checkpoints (tests/families/cases.py): four
different prompts in one batch, float32, same seed, steps, guidance and size on both sides. The parameters in the
loop at the real size are counted without weights by `python -m benchmarks.family_sizes`.
"""

import argparse
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from latentc.bundle import open_bundle
from latentc.parity import psnr_db

from benchmarks.machine import machine
from export.pipeline import ExportOptions, export_bundle
from export.solvers import solver_from_name
from models.components import load_scheduler
from models.families import FAMILIES
from tests.drawing import draw
from tests.families.cases import CASES, STEPS, STORED, Case

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
MARKS = ("<!-- families: written by make families -->", "<!-- end of families -->")


@dataclass(frozen=True)
class Row:
    """What one case showed."""

    name: str
    pipeline: str
    sizes: tuple[str, ...]
    psnr_db: Mapping[str, float]  # solver -> the least over the sizes
    over_image_psnr_db: float | None
    parameters_before: int
    parameters_after: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws, prints, and rewrites the table, unless only some rows were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--half", action="store_true", help="float16 for tensorrt-8.6, against diffusers in float32")
    given = parser.parse_args(arguments)
    only, half = given.only, given.half
    for name in ("transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows = [measured(case, half) for case in CASES if only is None or case.name in only]
    command = "python -m benchmarks.families --half" if half else "make families"
    result = {"command": command, "machine": machine(), "steps": STEPS, "rows": [asdict(row) for row in rows]}
    if only is None:
        file = RESULTS / ("families_half.json" if half else "families.json")
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if not half:
            write_table(table(rows, real_sizes()))
    print(table(rows, real_sizes()))
    print(json.dumps(result))


def measured(case: Case, half: bool = False) -> Row:
    """Exports the case once, and draws it with each solver at each size, twice."""
    with tempfile.TemporaryDirectory() as directory:
        source = case.make(Path(directory) / "source", **STORED, **case.options)
        bundle = Path(directory) / "bundle"
        export_bundle(
            ExportOptions(
                source=str(source),
                output=bundle,
                solvers=case.solvers,
                steps=(STEPS,),
                sizes=case.sizes,
                img2img=case.img2img,
                precision="fp16" if half else "fp32",
                target="tensorrt-8.6" if half else "onnxruntime",
            )
        )
        manifest = open_bundle(bundle).manifest
        family = FAMILIES[manifest.pipeline]
        figures: dict[str, float] = {}
        over_image = None
        for solver in case.solvers:
            requests = [case.request(size) for size in case.sizes]
            requests += [case.over_image(case.sizes[-1], 0.8)] if case.img2img else []
            for request in requests:
                scheduler = solver_from_name(solver, load_scheduler(source)).fresh()
                expected = family.reference_image(source, scheduler, request).numpy()
                found = psnr_db(draw(bundle, solver, STEPS, request), expected)
                if request.init_image is None:
                    figures[solver] = round(min(found, figures.get(solver, found)), 1)
                else:
                    over_image = round(min(found, over_image or found), 1)
    return Row(
        name=case.name,
        pipeline=manifest.pipeline,
        sizes=tuple(f"{width}×{height}" for width, height in case.sizes),
        psnr_db=figures,
        over_image_psnr_db=over_image,
        parameters_before=manifest.hoisting.whole_parameters,
        parameters_after=manifest.graphs["denoise"].parameters,
    )


def real_sizes() -> dict[str, str]:
    """Case name -> parameters in the loop at the size of the published checkpoint, where they were counted."""
    path = RESULTS / "family_sizes.json"
    models = json.loads(path.read_text(encoding="utf-8"))["models"] if path.is_file() else []
    found = {}
    for row in models:
        before, after = row["parameters_before"], row["parameters_after"]
        share = 100 * (1 - after / before)
        found[row["case"]] = f"{row['model']}: {_count(before)} → {_count(after)} (−{share:.1f} %)"
    return found


def table(rows: Sequence[Row], real: Mapping[str, str]) -> str:
    """The table in Markdown."""
    lines = [
        "| class in `model_index.json` | drawn as | sizes | PSNR against diffusers, least | over an image | "
        "parameters in the loop, this one | at the real size |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = ", ".join(f"{solver} {db:g} dB" for solver, db in row.psnr_db.items())
        over = "" if row.over_image_psnr_db is None else f"{row.over_image_psnr_db:g} dB"
        share = 100 * (1 - row.parameters_after / row.parameters_before)
        loop = f"{_count(row.parameters_before)} → {_count(row.parameters_after)} (−{share:.0f} %)"
        lines.append(
            f"| `{row.pipeline}` | {row.name} | {', '.join(row.sizes)} | {figures} | {over} | {loop} | "
            f"{real.get(row.name, '')} |"
        )
    return "\n".join(lines)


def write_table(text: str) -> None:
    """Puts the table between its marks in the README, by rename."""
    readme = ROOT / "README.md"
    begin, end = MARKS
    old = readme.read_text(encoding="utf-8")
    new, count = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", old, flags=re.S)
    if count != 1:
        raise SystemExit(f"{readme.name}: has not exactly one place between {begin} and {end}")
    staged = readme.with_name(f".README.{os.getpid()}")
    staged.write_text(new, encoding="utf-8")
    staged.replace(readme)


def _count(number: float) -> str:
    for unit in ("", "k", "M"):
        if number < 1000:
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    return f"{number:.4g} B"  # billions, as parameters are counted


if __name__ == "__main__":
    main()
