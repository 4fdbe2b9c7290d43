"""What `latentc inspect` says that a picture will take, against what the kernel says that it took."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from latentc import schema
from latentc.memory import MEMORY, Memory, Prediction, TileMemory, predicted, tile_memory

from tests.runtime import toy
from tests.runtime.heavy import write_heavy_bundle
from tests.runtime.watch import Watched, watched

BAND = 0.25  # of what was measured
MB = 10**6

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc")


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """340 MB, which pytest would keep for three runs."""
    root = write_heavy_bundle(tmp_path_factory.mktemp("heavy") / "toy")
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def measured(heavy: Path) -> dict[Memory, Watched]:
    return {memory: watched(heavy, memory, heavy.parent / f"{memory}.npy") for memory in MEMORY}


@pytest.fixture(scope="module")
def expected(heavy: Path) -> dict[Memory, Prediction]:
    return {memory: predicted(toy.read_manifest(heavy), memory) for memory in MEMORY}


@pytest.mark.parametrize("memory", MEMORY)
def test_the_peak_is_as_predicted(
    measured: dict[Memory, Watched], expected: dict[Memory, Prediction], memory: Memory
) -> None:
    assert expected[memory].peak_bytes == pytest.approx(measured[memory].peak, rel=BAND)


def test_low_is_lower_by_what_was_predicted(
    measured: dict[Memory, Watched], expected: dict[Memory, Prediction]
) -> None:
    ratio = measured["low"].peak / measured["normal"].peak
    assert ratio < 0.5
    assert expected["low"].peak_bytes / expected["normal"].peak_bytes == pytest.approx(ratio, rel=BAND)


def test_with_low_memory_weights_are_pages_of_the_file(
    measured: dict[Memory, Watched], expected: dict[Memory, Prediction]
) -> None:
    stages = expected["low"].stages.values()
    assert measured["low"].anonymous == pytest.approx(max(s.activations_bytes for s in stages), rel=BAND)
    assert measured["low"].file == pytest.approx(max(s.weights_bytes for s in stages), rel=BAND)
    # One stage's weights, not those of all; and half-precision weights were never all in single.
    assert measured["low"].file < 0.6 * sum(s.weights_bytes for s in stages)
    assert (
        measured["low"].anonymous
        < measured["normal"].anonymous - 0.9 * expected["normal"].stages["denoise"].weights_bytes
    )


def test_hashing_leaves_nothing_in_memory(measured: dict[Memory, Watched], heavy: Path) -> None:
    assert sum(path.stat().st_size for path in heavy.rglob("*.weights")) > 300 * MB
    assert measured["low"].opened < 50 * MB


def test_both_ways_draw_the_same_picture(measured: dict[Memory, Watched]) -> None:
    low, normal = (measured[memory].picture for memory in ("low", "normal"))
    assert normal.std() > 0.01
    np.testing.assert_allclose(low, normal, rtol=0, atol=1e-6)


def graphs(manifest: schema.Manifest, **bytes_of: tuple[int, int, int]) -> schema.Manifest:
    """The toy's manifest with graphs of given weight_bytes, parameters and activation_bytes."""
    decode = manifest.graphs["decode"]
    made = {
        name: msgspec.structs.replace(decode, weight_bytes=weights, parameters=parameters, activation_bytes=activations)
        for name, (weights, parameters, activations) in bytes_of.items()
    }
    return msgspec.structs.replace(manifest, graphs=made)


def test_the_sums_by_hand(pristine: Path) -> None:
    # Half precision: 100 parameters are 200 bytes in the file and 400 in memory. The manifest's order is no matter.
    manifest = graphs(toy.read_manifest(pristine), decode=(40, 10, 7), denoise=(200, 100, 300), encode=(8, 2, 9000))
    low, normal = predicted(manifest, "low"), predicted(manifest, "normal")
    assert list(low.stages) == list(normal.stages) == ["denoise", "decode"]
    assert (low.peak_bytes, low.peak_while) == (500, "running denoise")
    assert (low.stages["decode"].weights_bytes, low.stages["decode"].total_bytes) == (40, 47)
    # All weights, and what each stage's arena keeps.
    assert normal.stages["denoise"] == msgspec.structs.replace(
        low.stages["denoise"], weights_bytes=400, total_bytes=448 + 300
    )
    assert (normal.peak_bytes, normal.peak_while) == (448 + 300 + 7, "running decode")
    # Where loading is the most: the file is mapped while the engine is made from it.
    manifest = graphs(toy.read_manifest(pristine), denoise=(40, 10, 0), decode=(200, 100, 0))
    assert predicted(manifest, "normal").peak_bytes == 40 + 400 + 200
    assert predicted(manifest, "normal").peak_while == "loading decode"


def test_a_tile_takes_its_share_of_the_decoder(pristine: Path) -> None:
    manifest = graphs(toy.read_manifest(pristine), denoise=(0, 0, 1), decode=(0, 0, 800))
    assert tile_memory(manifest) is None
    image = msgspec.structs.replace(manifest.image, height=64, width=96)
    sizes = schema.SizeRange(multiple=4, minimum=8, maximum=128)
    free = msgspec.structs.replace(manifest, image=image, sizes=sizes)
    assert tile_memory(free) == TileMemory(pixels=32, activations_bytes=800 * 32 * 32 // (64 * 96), whole_bytes=800)
    # Half of 64 is no multiple of 4 * 12, and of 4 * 6 it is 24.
    for multiple, pixels in ((6, 24), (12, None)):
        sizes = schema.SizeRange(multiple=multiple, minimum=8, maximum=128)
        found = tile_memory(msgspec.structs.replace(free, sizes=sizes))
        assert (found and found.pixels) == pixels


def test_the_rows_of_all_calls_are_held_in_the_loop(pristine: Path) -> None:
    manifest = graphs(toy.read_manifest(pristine), denoise=(0, 0, 1), decode=(0, 0, 0))
    for rows, branches in (("one", 1), ("batch", 2)):
        hoisting = msgspec.structs.replace(manifest.hoisting, row_width=50, rows_per_step=rows)
        low = predicted(msgspec.structs.replace(manifest, hoisting=hoisting), "low")
        assert low.stages["denoise"].activations_bytes == 1 + 4 * 50 * 4 * branches  # float32, 4 calls
