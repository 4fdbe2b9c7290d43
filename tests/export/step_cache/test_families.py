"""Every family of transformers splits as its trace is: with the true residual the cached step is the whole step."""

from collections.abc import Callable
from pathlib import Path

import pytest
from latentc.parity import relative_l2

from export.runner import run_model
from export.step_cache.split import split_step
from models.families import FAMILIES
from tests.models.steps import traced_family
from tests.pipelines.flux import make_flux
from tests.pipelines.pixart import make_pixart
from tests.pipelines.sana import make_sana
from tests.pipelines.sd3 import make_sd3
from tests.sources import write_random_dit


def _pixart(directory: Path) -> Path:
    return make_pixart(directory, layers=3)


def _sana(directory: Path) -> Path:
    return make_sana(directory, layers=3)


def _dit(directory: Path) -> Path:
    return write_random_dit(directory, layers=4)


@pytest.mark.parametrize(
    ("pipeline", "make", "blocks", "streams"),
    [
        ("DiTPipeline", _dit, 4, 1),
        ("FluxPipeline", make_flux, 4, 2),
        ("StableDiffusion3Pipeline", make_sd3, 3, 2),
        ("PixArtSigmaPipeline", _pixart, 3, 1),
        ("SanaPipeline", _sana, 3, 1),
    ],
)
def test_the_cached_step_is_the_whole_step(
    pipeline: str, make: Callable[[Path], Path], blocks: int, streams: int, tmp_path: Path
) -> None:
    model = FAMILIES[pipeline].load(make(tmp_path / "source"))
    assert model.num_blocks == blocks
    traced = traced_family(model)
    split = split_step(traced.graph, model.blocks)
    assert (split.first, split.end, split.count, len(split.residuals)) == (1, blocks - 1, blocks, streams)
    if model.sizes is None:
        return  # the inputs of `traced` are of symbolic sizes; tests/export/step_cache/test_export.py draws with DiT
    # Another size than the trace's: residuals follow it.
    given = {name: value.numpy() for name, value in traced.inputs(branches=2, batch=1, grid=(3, 4), seed=1).items()}
    whole = run_model(traced.graph, given)["prediction"]
    full = run_model(split.full, given)
    residuals = {name: full[name] for name in split.residuals}
    assert relative_l2(run_model(split.cached, given | residuals)["prediction"], whole) <= 2e-6
    stale = {name: 0.5 * values for name, values in residuals.items()}
    assert relative_l2(run_model(split.cached, given | stale)["prediction"], whole) > 1e-3


@pytest.mark.parametrize("pipeline", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_u_nets_name_no_blocks(pipeline: str) -> None:
    """Their levels have streams of several widths; `export --cache` says so (test_export.py)."""
    source = Path(__import__(type(FAMILIES[pipeline]).__module__, fromlist=["__file__"]).__file__ or "")
    assert "blocks=" not in source.read_text(encoding="utf-8")
