"""PSNR of the runtime's pictures against DiTPipeline's, solver by solver, on the shipped model.

    python -m benchmarks.solver_parity        a table, and one JSON document as the last line

Same seed, labels, steps and guidance on both sides; diffusers' scheduler is swapped in on its own side.
"""

import json
import tempfile
from pathlib import Path

from latentc.backends import open_backend
from latentc.bundle import open_bundle
from latentc.parity import psnr_db
from latentc.sampler import sample
from latentc.table import table_from_bundle
from latentc.trajectory import noise_from_seed, trajectory_of_labels

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
        bundle, backend = open_bundle(path), open_backend("onnxruntime")
        manifest = bundle.manifest
        engines = {name: backend.load_graph(bundle.graph(name)) for name in manifest.graphs}
        latent = (len(REQUEST.labels), manifest.latent.channels, manifest.latent.height, manifest.latent.width)
        for record in manifest.tables:
            table = table_from_bundle(bundle, record)
            trajectory = trajectory_of_labels(
                table,
                noise_from_seed(REQUEST.seed, latent, table.noise_draws),
                REQUEST.labels,
                manifest.conditioning.null_label,
                REQUEST.cfg_scale,
            )
            scheduler = solver_from_name(record.solver, load_scheduler(source)).fresh()
            expected = reference_image(source, scheduler, REQUEST).numpy()
            figures[record.solver] = round(psnr_db(sample(backend, engines, manifest, trajectory), expected), 1)
            print(f"{record.solver:<10}{record.calls:>4} calls  {figures[record.solver]:6.1f} dB")
    print(json.dumps({"steps": STEPS, "cfg_scale": REQUEST.cfg_scale, "seed": REQUEST.seed, "psnr_db": figures}))


if __name__ == "__main__":
    main()
