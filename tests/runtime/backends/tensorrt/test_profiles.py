"""The shapes that engines are built for."""

from pathlib import Path

import msgspec
import pytest
from latentc.backends.options import EngineOptions
from latentc.backends.tensorrt.profiles import profiles_of
from latentc.bundle import open_bundle
from latentc.errors import RequestError
from latentc.schema import Manifest, SizeRange, TensorSpec, TextConditioning, TextEncoder, TextRule

from tests.runtime import toy


@pytest.fixture(scope="module")
def manifest(pristine: Path) -> Manifest:
    return open_bundle(pristine).manifest


def shapes(manifest: Manifest, graph: str, name: str, **options: object) -> tuple[list[int], list[int], list[int]]:
    profile = profiles_of(manifest, graph, EngineOptions(**options))[name]
    return list(profile.least), list(profile.best), list(profile.most)


def test_of_a_class_label_model(manifest: Manifest) -> None:
    # Tables of the toy: 2, 4 and 5 calls, and 3 calls with 3 draws: at most 7 slots, the default 5.
    expected = ([2, 1, 4, 4, 4], [5, 1, 4, 4, 4], [7, 4, 4, 4, 4])
    assert shapes(manifest, "denoise", "history") == expected
    assert shapes(manifest, "decode", "history") == expected
    assert shapes(manifest, "denoise", "class_labels") == ([1, 1], [2, 1], [2, 4])  # guided: two branches
    assert shapes(manifest, "denoise", "guidance_weights", batch=8) == ([1], [2], [2])
    assert shapes(manifest, "decode", "history", batch=8)[2] == [7, 8, 4, 4, 4]


def test_an_unguided_model_has_one_branch(manifest: Manifest) -> None:
    plain = msgspec.structs.replace(manifest, guided=False)
    assert shapes(plain, "denoise", "class_labels") == ([1, 1], [1, 1], [1, 4])


@pytest.mark.parametrize(
    ("rows", "expected"), [("batch", ([1, 1], [8, 1], [10, 4])), ("one", ([1, 1], [4, 1], [5, 1]))]
)
def test_the_schedule_runs_all_calls_at_once(manifest: Manifest, rows: str, expected: tuple[list[int], ...]) -> None:
    timestep = TensorSpec(name="timestep", dtype="float32", shape=("guidance_branches", "batch"))
    schedule = msgspec.structs.replace(manifest.graphs["denoise"], inputs=(timestep,))
    hoisting = msgspec.structs.replace(manifest.hoisting, rows_per_step=rows)
    changed = msgspec.structs.replace(manifest, graphs={**manifest.graphs, "schedule": schedule}, hoisting=hoisting)
    assert shapes(changed, "schedule", "timestep") == expected


def sized(manifest: Manifest) -> Manifest:
    """The toy with sizes from 8 to 24: 4 pixels a unit of the grid."""
    history = TensorSpec(name="history", dtype="float32", shape=("slots", "batch", 4, "2*grid_height", "2*grid_width"))
    graph = msgspec.structs.replace(manifest.graphs["decode"], inputs=(history,))
    latent = msgspec.structs.replace(manifest.latent, multiple=2)
    sizes = SizeRange(multiple=4, minimum=6, maximum=26)
    return msgspec.structs.replace(manifest, graphs={"decode": graph}, latent=latent, sizes=sizes)


def test_sizes_are_those_of_the_manifest_or_of_the_options(manifest: Manifest) -> None:
    changed = sized(manifest)
    # The decoder takes less than the least size, for the tiles at an edge, unless it is built for one size.
    assert shapes(changed, "decode", "history") == ([2, 1, 4, 2, 2], [5, 1, 4, 4, 4], [7, 4, 4, 12, 12])
    step = msgspec.structs.replace(changed, graphs={"denoise": changed.graphs["decode"]})
    assert shapes(step, "denoise", "history")[0] == [2, 1, 4, 4, 4]
    one = shapes(changed, "decode", "history", sizes=((16, 8),))
    assert [shape[3:] for shape in one] == [[4, 8], [4, 8], [4, 8]]
    some = shapes(changed, "decode", "history", sizes=((16, 16), (8, 24)))
    assert [shape[3:] for shape in some] == [[2, 2], [8, 8], [12, 8]]


@pytest.mark.parametrize("size", [(10, 8), (28, 8), (4, 8)])
def test_sizes_that_cannot_be_drawn(manifest: Manifest, size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match=r"--size \d+x8 cannot be drawn; toy draws multiples of 4 from 6 to 26"):
        shapes(sized(manifest), "decode", "history", sizes=(size,))


def test_texts_and_tokens(manifest: Manifest) -> None:
    rule = TextRule(length=77)
    encoder = TextEncoder(graph="text_encoder", tokenizer="t", pad_id=0, prompt=TextRule(length=300), negative=rule)
    ids = TensorSpec(name="input_ids", dtype="int64", shape=("texts", "tokens"))
    hidden = TensorSpec(name="hidden", dtype="float32", shape=("guidance_branches", "batch", "tokens", 8))
    denoise = manifest.graphs["denoise"]
    graphs = {
        "text_encoder": msgspec.structs.replace(denoise, inputs=(ids,)),
        "prompt": msgspec.structs.replace(denoise, inputs=(hidden,)),
    }
    text = msgspec.structs.replace(
        manifest,
        conditioning=TextConditioning(encoders=(encoder,), zero_null=False),
        graphs={**manifest.graphs, **graphs},
    )
    assert shapes(text, "text_encoder", "input_ids") == ([1, 77], [1, 300], [8, 300])
    assert shapes(text, "prompt", "hidden") == ([1, 1, 77, 8], [1, 1, 300, 8], [2, 4, 300, 8])


def test_every_shape_of_a_request_is_within(pristine: Path) -> None:
    """What the runtime binds for every table of the toy is what the profiles allow."""
    manifest = open_bundle(pristine).manifest
    least, _, most = shapes(manifest, "denoise", "history")
    for solver, steps, calls, draws in toy.TABLES:
        assert least[0] <= 1 + calls + draws <= most[0], (solver, steps)
