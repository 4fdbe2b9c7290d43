"""Requests of text-to-image bundles: prompts, sizes, distilled guidance, initial images."""

from pathlib import Path

import msgspec
import pytest
from latentc.errors import RequestError
from latentc.request import Asked, resolve, skipped_steps
from latentc.schema import Defaults, Img2Img, Manifest, SizeRange, Table, TextConditioning

from tests.runtime import toy


def table(steps: int, size: tuple[int, int] | None = None) -> Table:
    return Table(solver="euler", steps=steps, calls=steps, noise_draws=0, file="t", size=size, img2img=True)


@pytest.fixture(scope="module")
def manifest(pristine: Path) -> Manifest:
    """8×8 by default, 8 to 32 in steps of 4; 10 steps at any size, 20 at two; 5 steps of img2img."""
    base = toy.read_manifest(pristine)
    return msgspec.structs.replace(
        base,
        conditioning=TextConditioning(encoders=(), zero_null=False),
        sizes=SizeRange(multiple=4, minimum=8, maximum=32),
        img2img=Img2Img(strength=0.8, rounds_up=False),
        tables=(table(10), table(20, (8, 8)), table(20, (16, 8))),
        defaults=Defaults(solver="euler", steps=10, cfg_scale=4.0, guidance=3.5),
    )


def test_pictures_of_one_prompt_lie_side_by_side(manifest: Manifest) -> None:
    request = resolve(manifest, Asked(prompts=["cat", "dog"], negative_prompts=["ugly"], count=2))
    assert request.prompts == ("cat", "cat", "dog", "dog")
    assert request.negative_prompts == ("ugly",) * 4
    assert (request.count, request.texts) == (4, request.prompts)
    each = resolve(manifest, Asked(prompts=["cat", "dog"], negative_prompts=["ugly", "bad"], count=2))
    assert each.negative_prompts == ("ugly", "ugly", "bad", "bad")
    assert resolve(manifest, Asked(prompts=["cat"])).negative_prompts is None


def test_guidance_and_size_have_defaults(manifest: Manifest) -> None:
    request = resolve(manifest, Asked(prompts=[""]))
    assert (request.guidance, request.cfg_scale, request.width, request.height) == (3.5, 4.0, 8, 8)
    other = resolve(manifest, Asked(prompts=[""], guidance=0.0, width=32, height=12))
    assert (other.guidance, other.width, other.height) == (0.0, 32, 12)


def test_a_table_of_its_size_is_taken(manifest: Manifest) -> None:
    assert resolve(manifest, Asked(prompts=["a"], steps=20, width=16)).table.size == (16, 8)
    assert resolve(manifest, Asked(prompts=["a"], steps=20)).table.size == (8, 8)


def test_given_latents_decide_how_many(manifest: Manifest) -> None:
    assert resolve(manifest, Asked(prompts=["a", "b"]), batch=4).prompts == ("a", "a", "b", "b")
    with pytest.raises(RequestError, match="2 pictures of 2 prompts does not fit --latents, which hold 3"):
        resolve(manifest, Asked(prompts=["a", "b"]), batch=3)


@pytest.mark.parametrize(("strength", "skipped"), [(None, 2), (0.25, 8), (0.1, 9), (1.0, 0)])
def test_strength_is_a_number_of_steps(manifest: Manifest, strength: float | None, skipped: int) -> None:
    assert resolve(manifest, Asked(prompts=["a"], init_image=True, strength=strength)).skipped == skipped
    assert resolve(manifest, Asked(prompts=["a"])).skipped is None


@pytest.mark.parametrize(
    ("steps", "strength", "down", "up"), [(10, 0.75, 3, 2), (4, 0.8, 1, 0), (50, 0.6, 20, 20), (4, 1.0, 0, 0)]
)
def test_steps_are_counted_as_both_kinds_of_pipelines_count_them(
    steps: int, strength: float, down: int, up: int
) -> None:
    """StableDiffusionImg2ImgPipeline.get_timesteps, and StableDiffusion3Img2ImgPipeline's and FLUX's."""
    assert skipped_steps(steps, strength, rounds_up=False) == down
    assert skipped_steps(steps, strength, rounds_up=True) == up


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (Asked(), "draw what? toy draws from text: give -p TEXT"),
        (Asked(label="cat"), "--label is for class-label models; toy draws from text: give -p TEXT"),
        (
            Asked(prompts=["a"], negative_prompts=["b"], cfg_scale=1.0),
            "-n needs guidance, and --cfg-scale is 1; give --cfg-scale above 1, or leave -n away",
        ),
        (
            Asked(prompts=["a", "b", "c"], negative_prompts=["d", "e"]),
            "2 times -n for 3 prompts; give it once, or once for each -p",
        ),
        (Asked(prompts=["a"] * 1025), "1025 times -p is out of range; give at most 1024"),
        (Asked(prompts=["a"], width=9), "-W 9 cannot be drawn; give a multiple of 4 from 8 to 32, such as 8"),
        (Asked(prompts=["a"], height=99), "-H 99 cannot be drawn; give a multiple of 4 from 8 to 32, such as 32"),
        (Asked(prompts=["a"], height=-4), "-H -4 cannot be drawn; give a multiple of 4 from 8 to 32, such as 8"),
        (
            Asked(prompts=["a"], steps=20, width=12),
            "no table for 12x8; euler depends on the size, and this bundle has 8x8, 16x8: export with --size 12x8",
        ),
        (Asked(prompts=["a"], guidance=float("nan")), "--guidance nan is out of range; give 0 or more"),
        (Asked(prompts=["a"], strength=0.5), "--strength is for drawing over an image; give --init-image FILE too"),
        (
            Asked(prompts=["a"], init_image=True, strength=0.0),
            "--strength 0.0 is out of range; give more than 0, and at most 1",
        ),
        (
            Asked(prompts=["a"], init_image=True, strength=0.05),
            "--strength 0.05 of 10 steps is none; give --strength 0.1 or more",
        ),
    ],
)
def test_what_cannot_be_gets_one_line(manifest: Manifest, asked: Asked, line: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve(manifest, asked)
    assert str(caught.value) == line


def test_a_model_without_guidance_refuses_a_scale(manifest: Manifest) -> None:
    """LCM's pipeline runs one branch at any scale."""
    distilled = msgspec.structs.replace(manifest, guided=False)
    with pytest.raises(RequestError, match="--cfg-scale is not for toy, whose guidance is distilled; give --guidance"):
        resolve(distilled, Asked(prompts=["a"], cfg_scale=2.0))
    assert resolve(distilled, Asked(prompts=["a"], cfg_scale=1.0)).cfg_scale == 1.0


def test_a_bundle_without_an_encoder_says_how_to_get_one(manifest: Manifest) -> None:
    without = msgspec.structs.replace(manifest, img2img=None)
    with pytest.raises(RequestError, match="has no encoder; export with --img2img"):
        resolve(without, Asked(prompts=["a"], init_image=True))
