"""Every family, whole: source → bundle → picture, against the diffusers pipeline on the same request.

Marked as one group of xdist a case, so that a source is exported once.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from latentc.bundle import open_bundle
from latentc.parity import psnr_db
from latentc.schema import TextConditioning

from export.solvers import solver_from_name
from models.components import load_scheduler
from models.families import FAMILIES
from models.latent_diffusion import ReferenceRequest
from tests.drawing import draw
from tests.families.cases import BY_NAME, CASES, NEGATIVES, PROMPTS, STEPS, TEXT_CASES, Case
from tests.families.conftest import Exported

PSNR_DB = 50.0  # at least, float32, against diffusers
CHANGED_DB = 30.0  # at most, where an input was changed
Make = Callable[[str], Exported]


def each_case(*cases: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "name", [pytest.param(case.name, marks=pytest.mark.xdist_group(case.name)) for case in cases]
    )


def reference(made: Exported, solver: str, request: ReferenceRequest) -> np.ndarray:
    manifest = open_bundle(made.bundle).manifest
    scheduler = solver_from_name(solver, load_scheduler(made.source)).fresh()
    return FAMILIES[manifest.pipeline].reference_image(made.source, scheduler, request).numpy()


@each_case(*CASES)
def test_same_seed_same_pictures_as_diffusers(exported: Make, name: str) -> None:
    """Each solver at each size: four different prompts in one batch, guided where the family is."""
    made = exported(name)
    for solver in made.case.solvers:
        for size in made.case.sizes:
            request = made.case.request(size)
            expected = reference(made, solver, request)
            assert expected.shape == (4, 3, size[1], size[0])
            assert expected.std() > 0.02, "a flat picture would be equal to anything"
            actual = draw(made.bundle, solver, STEPS, request)
            assert psnr_db(actual, expected) >= PSNR_DB, (solver, size)


@each_case(*TEXT_CASES)
def test_one_prompt_and_no_negative_prompt(exported: Make, name: str) -> None:
    """What the command line asks for by default: a batch of one, and the pipeline's own idea of "no prompt"."""
    made = exported(name)
    request = replace(made.case.request(made.case.sizes[-1]), prompts=PROMPTS[:1], negative_prompts=None)
    solver = made.case.solvers[0]
    assert psnr_db(draw(made.bundle, solver, STEPS, request), reference(made, solver, request)) >= PSNR_DB


@each_case(*TEXT_CASES)
def test_text_guidance_seed_and_timestep_each_change_the_picture(exported: Make, name: str) -> None:
    """Random weights could make the comparison above one of constants; they do not."""
    made = exported(name)
    case, solver, size = made.case, made.case.solvers[0], made.case.sizes[0]
    base = replace(case.request(size), prompts=("a red apple",), negative_prompts=None)
    picture = draw(made.bundle, solver, STEPS, base)
    others = {
        "prompt": replace(base, prompts=("a blue whale under the sea",)),
        "seed": replace(base, seed=8),
    }
    if open_bundle(made.bundle).manifest.guided:
        others["cfg_scale"] = replace(base, cfg_scale=1.6 * max(case.cfg_scale, 2.0))
    if case.cfg_scale > 1:
        others["negative prompt"] = replace(base, negative_prompts=("a blue whale under the sea",))
    if case.guidance is not None:
        others["guidance"] = replace(base, guidance=2 * case.guidance + 3)
    found = {what: psnr_db(draw(made.bundle, solver, STEPS, request), picture) for what, request in others.items()}
    found["timestep"] = psnr_db(draw(made.bundle, solver, STEPS, base, timesteps=(40.0,) * 20), picture)
    assert {what: db for what, db in found.items() if db >= CHANGED_DB} == {}


@each_case(*(case for case in CASES if case.img2img))
def test_drawing_over_an_image_is_the_pipelines_own(exported: Make, name: str) -> None:
    made = exported(name)
    solver = made.case.solvers[0]
    for size, strength in zip(made.case.sizes, (0.8, 1.0), strict=True):
        request = made.case.over_image(size, strength)
        actual = draw(made.bundle, solver, STEPS, request)
        assert psnr_db(actual, reference(made, solver, request)) >= PSNR_DB
        other = replace(request, init_image=1 - request.init_image, strength=0.5)
        same = replace(request, strength=0.5)
        assert psnr_db(draw(made.bundle, solver, STEPS, other), draw(made.bundle, solver, STEPS, same)) < CHANGED_DB


@each_case(BY_NAME["flux-dev"])
def test_true_guidance_of_a_distilled_model(exported: Make, name: str) -> None:
    """FLUX with a negative prompt: both kinds of guidance at once."""
    made = exported(name)
    request = replace(made.case.request(made.case.sizes[0]), cfg_scale=3.0, guidance=2.0, negative_prompts=NEGATIVES)
    expected = reference(made, "euler", request)
    assert psnr_db(draw(made.bundle, "euler", STEPS, request), expected) >= PSNR_DB
    without = replace(request, cfg_scale=1.0, negative_prompts=None)
    assert psnr_db(draw(made.bundle, "euler", STEPS, without), expected) < CHANGED_DB


@each_case(BY_NAME["sd3-medium"])
def test_a_batch_of_eight_is_that_of_diffusers(exported: Make, name: str) -> None:
    made = exported(name)
    prompts = tuple(f"{number} apples" for number in range(8))
    request = replace(made.case.request(made.case.sizes[0]), prompts=prompts, negative_prompts=("ugly",) * 8)
    solver = made.case.solvers[0]
    assert psnr_db(draw(made.bundle, solver, STEPS, request), reference(made, solver, request)) >= PSNR_DB


@each_case(*TEXT_CASES)
def test_text_and_timestep_work_has_left_the_loop(exported: Make, name: str) -> None:
    """Text encoders run once a request, the loop holds fewer parameters than the step, and reads no text."""
    made = exported(name)
    manifest = open_bundle(made.bundle).manifest
    assert isinstance(manifest.conditioning, TextConditioning)
    assert all(manifest.graphs[encoder.graph].runs_once_per == "request" for encoder in manifest.conditioning.encoders)
    assert manifest.graphs["denoise"].parameters < manifest.hoisting.whole_parameters
    inputs = {spec.name for spec in manifest.graphs["denoise"].inputs}
    assert "timestep" not in inputs
    given = {spec.name for e in manifest.conditioning.encoders for spec in manifest.graphs[e.graph].outputs}
    assert not inputs & given
