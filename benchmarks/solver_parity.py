"""PSNR of the runtime's pictures against DiTPipeline's, solver by solver, on the shipped model.

    python -m benchmarks.solver_parity        a table, and one JSON document as the last line

Same seed, labels, steps and guidance on both sides; diffusers' scheduler is swapped in on its own side.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from latentc.parity import psnr_db
from latentc.request import Asked, resolve
from latentc.session import open_session

from export.pipeline import ExportOptions, export_bundle
from export.solvers import solver_from_name
from models.components import load_scheduler
from models.dit.reference import reference_image
from models.latent_diffusion import ReferenceRequest
from models.shipped import shipped_checkpoints

SOLVERS = ("ddim", "ddpm", "dpmpp_2m", "unipc", "euler", "heun")
STEPS = 20
REQUEST = ReferenceRequest(labels=(40, 0, 14, 32), seed=7, steps=STEPS, cfg_scale=4.0)  # fruit, face, heart, mammal


def main() -> None:
    """Exports once with all solvers, then draws each twice."""
    source = shipped_checkpoints()["emoji-dit"]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bundle"
        export_bundle(ExportOptions(source=str(source), output=path, solvers=SOLVERS, steps=(STEPS,)))
        session = open_session(path, "onnxruntime")
        for record in session.bundle.manifest.tables:
            asked = Asked(label="0", solver=record.solver, steps=STEPS, cfg_scale=REQUEST.cfg_scale)
            request = replace(resolve(session.bundle.manifest, asked), labels=REQUEST.labels)
            scheduler = solver_from_name(record.solver, load_scheduler(source)).fresh()
            expected = reference_image(source, scheduler, REQUEST).numpy()
            figures[record.solver] = round(psnr_db(session.draw(request, REQUEST.seed), expected), 1)
            print(f"{record.solver:<10}{record.calls:>4} calls  {figures[record.solver]:6.1f} dB")
    print(json.dumps({"steps": STEPS, "cfg_scale": REQUEST.cfg_scale, "seed": REQUEST.seed, "psnr_db": figures}))


if __name__ == "__main__":
    main()
