"""The requests that all scripts of this folder draw: by label or by prompt, what the bundle's defaults say."""

from collections.abc import Mapping

from latentc.request import Asked, Request, resolve
from latentc.schema import LabelConditioning, Manifest

PROMPT = "a red heart"
SEEDS = (7, 8, 9)
STEPS = 20  # of what is compared


def request_of(manifest: Manifest, count: int = 1, steps: int | None = None) -> Request:
    """`count` pictures of the last label, or of one prompt."""
    if isinstance(manifest.conditioning, LabelConditioning):
        return resolve(manifest, Asked(label=sorted(manifest.conditioning.labels)[-1], count=count, steps=steps))
    return resolve(manifest, Asked(prompts=(PROMPT,), count=count, steps=steps))


def described(request: Request) -> Mapping[str, object]:
    """What a result says of its request."""
    return {
        "width": request.width,
        "height": request.height,
        "batch": request.count,
        "solver": request.table.solver,
        "steps": request.table.steps,
        "calls": request.table.calls,
        "cfg_scale": request.cfg_scale,
    }
