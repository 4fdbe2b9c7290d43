"""Requests: defaults, names and numbers, and one helpful line for everything that cannot be."""

from pathlib import Path

import msgspec
import pytest
from latentc.errors import RequestError
from latentc.request import Asked, resolve
from latentc.schema import LabelConditioning, Manifest

from tests.runtime import toy


@pytest.fixture(scope="module")
def manifest(pristine: Path) -> Manifest:
    return toy.read_manifest(pristine)


def test_defaults_are_the_bundles(manifest: Manifest) -> None:
    request = resolve(manifest, Asked(label="dog"))
    assert (request.label, request.labels, request.cfg_scale) == ("dog", (1,), 2.0)
    assert (request.table.solver, request.table.steps) == ("plain", 4)


def test_labels_by_name_or_number(manifest: Manifest) -> None:
    assert resolve(manifest, Asked(label="fruit", count=3)).labels == (2, 2, 2)
    assert resolve(manifest, Asked(label="2")).label == "food-fruit"  # the first name of the number
    assert resolve(manifest, Asked(label="3")).label == "unconditional"


def test_solver_by_short_name_or_class(manifest: Manifest) -> None:
    for name in ("heun", "heunScheduler"):
        assert resolve(manifest, Asked(label="cat", solver=name, steps=3)).table.solver == "heun"


def test_the_bundles_own_size_may_be_given(manifest: Manifest) -> None:
    resolve(manifest, Asked(label="cat", width=8, height=8))


def test_given_latents_set_the_batch(manifest: Manifest) -> None:
    assert resolve(manifest, Asked(label="cat"), batch=3).labels == (0, 0, 0)
    resolve(manifest, Asked(label="cat", count=3), batch=3)
    with pytest.raises(RequestError, match="-b 2 does not fit --latents, which hold 3"):
        resolve(manifest, Asked(label="cat", count=2), batch=3)


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (Asked(), "which one? give --label NAME: cat, dog, food-fruit, fruit"),
        (Asked(label="Dgo"), "no label 'Dgo'; did you mean dog? this bundle has cat, dog, food-fruit, fruit"),
        (Asked(label="zzz"), "no label 'zzz'; this bundle has cat, dog, food-fruit, fruit"),
        (Asked(label="4"), "no label 4; numbers are 0 to 3"),
        (Asked(label="-1"), "no label '-1'; this bundle has cat, dog, food-fruit, fruit"),
        (Asked(label="9" * 5000), None),
        (Asked(label="²"), None),
        (Asked(label="cat", steps=7), "no table for 7 steps of plain; this bundle has 2, 4: export with --steps 7"),
        (Asked(label="cat", steps=0), "no table for 0 steps of plain; this bundle has 2, 4: give one of these"),
        (Asked(label="cat", steps=-3), "no table for -3 steps of plain; this bundle has 2, 4: give one of these"),
        (Asked(label="cat", solver="heun"), "no table for 4 steps of heun; this bundle has 3: export with --steps 4"),
        (
            Asked(label="cat", solver="huen"),
            "no solver 'huen'; did you mean heun? this bundle has heun, plain, sde; export with --solver adds others",
        ),
        (Asked(label="cat", width=16), "no size 16x8; toy draws 8x8 only"),
        (Asked(label="cat", height=0), "no size 8x0; toy draws 8x8 only"),
        (Asked(prompts=["a cat"]), "-p is for text-to-image models; toy draws classes: give --label NAME"),
        (
            Asked(label="cat", negative_prompts=[""]),
            "-n is for text-to-image models; toy draws classes: give --label NAME",
        ),
        (Asked(label="cat", guidance=3.5), "--guidance is for guidance-distilled models; toy has --cfg-scale"),
        (Asked(label="cat", count=0), "-b 0 is out of range; give 1 to 1024"),
        (Asked(label="cat", count=1025), "-b 1025 is out of range; give 1 to 1024"),
        (
            Asked(label="cat", cfg_scale=float("nan")),
            "--cfg-scale nan is out of range; give 0 or more (1 and less is no guidance)",
        ),
        (Asked(label="cat", cfg_scale=float("inf")), None),
        (Asked(label="cat", cfg_scale=-1), None),
    ],
)
def test_what_cannot_be_gets_one_line(manifest: Manifest, asked: Asked, line: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        resolve(manifest, asked)
    assert line is None or str(caught.value) == line
    assert "\n" not in str(caught.value)


def test_a_thousand_labels_are_not_listed_in_one_line(manifest: Manifest) -> None:
    many = LabelConditioning(labels={f"class-{i:03d}": i for i in range(1000)}, null_label=1000)
    with pytest.raises(RequestError, match=r"class-011, … \(1000 in all; latentc inspect lists them\)$"):
        resolve(msgspec.structs.replace(manifest, conditioning=many), Asked())
