"""`--tile` from the flag to the picture, on a toy whose decoder looks at one latent alone: tiles must not show."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from latentc.backends.onnxruntime import OnnxRuntimeEngine
from latentc.backends.protocol import Buffer
from latentc.cli import main
from latentc.errors import RequestError
from latentc.memory import MEMORY, Memory
from latentc.request import Asked, resolve
from latentc.session import open_session
from PIL import Image

from tests.runtime import toy, toy_variants

WIDE = {"label": "dog", "width": 46, "height": 30}  # latents 23 × 15


@pytest.fixture(scope="module")
def sizes(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sizes") / "toy"
    return toy_variants.free_sizes(Path(shutil.copytree(pristine, root)))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all pictures that an engine is told to make."""
    shapes: list[tuple[int, ...]] = []
    bind = OnnxRuntimeEngine.bind

    def watched(self: OnnxRuntimeEngine, name: str, buffer: Buffer) -> None:
        if name == "image":
            shapes.append(buffer.shape)
        bind(self, name, buffer)

    monkeypatch.setattr(OnnxRuntimeEngine, "bind", watched)
    return shapes


@pytest.mark.parametrize("memory", MEMORY)
def test_pictures_are_the_same_and_the_decoder_sees_one_tile_of_one(
    sizes: Path, decoded: list[tuple[int, ...]], memory: Memory
) -> None:
    session = open_session(sizes, "onnxruntime", threads=1, memory=memory)
    manifest = session.bundle.manifest
    for asked in (WIDE | {"count": 3}, WIDE | {"solver": "sde", "steps": 3}):
        whole = session.draw(resolve(manifest, Asked(**asked)), seed=4)
        decoded.clear()
        drawn = session.draw(resolve(manifest, Asked(**asked, tile=16)), seed=4)
        np.testing.assert_allclose(drawn, whole, rtol=0, atol=1e-6)
        assert whole.std() > 0.05
        # Latents 15 × 23 in tiles of 8 that are 6 apart: 3 rows, 4 columns.
        assert decoded[:4] == [(1, 3, 16, 16)] * 2 + [(1, 3, 16, 16), (1, 3, 16, 10)]
        assert len(decoded) == 12 * asked.get("count", 1)
        assert len({picture.tobytes() for picture in drawn}) == asked.get("count", 1)


def test_a_tile_that_holds_the_picture_is_no_tile(sizes: Path, decoded: list[tuple[int, ...]]) -> None:
    session = open_session(sizes, "onnxruntime", threads=1)
    drawn = [session.draw(resolve(session.bundle.manifest, Asked(**WIDE, tile=tile)), seed=4) for tile in (48, None)]
    np.testing.assert_array_equal(*drawn)
    assert decoded == [(1, 3, 30, 46)] * 2


def test_steps_can_be_watched_before_the_tiles(sizes: Path) -> None:
    from latentc.session import trajectory_of_request

    session = open_session(sizes, "onnxruntime", threads=1)
    request = resolve(session.bundle.manifest, Asked(**WIDE, tile=16))
    sampling = session.sampling(trajectory_of_request(session.bundle, request, 4))
    assert list(sampling.steps()) == [1, 2, 3, 4]
    np.testing.assert_array_equal(sampling.decode(), session.draw(request, 4))


@pytest.mark.parametrize(
    ("tile", "line"),
    [
        (0, "--tile 0 cannot be decoded; give a multiple of 8, such as 8"),
        (-8, "--tile -8 cannot be decoded; give a multiple of 8, such as 8"),
        (4, "--tile 4 cannot be decoded; give a multiple of 8, such as 8"),
        (30, "--tile 30 cannot be decoded; give a multiple of 8, such as 32"),
    ],
)
def test_what_cannot_be_a_tile(sizes: Path, tile: int, line: str) -> None:
    manifest = toy.read_manifest(sizes)
    with pytest.raises(RequestError) as caught:
        resolve(manifest, Asked(label="dog", tile=tile))
    assert str(caught.value) == line


def test_a_model_of_one_size_has_no_tiles(pristine: Path) -> None:
    with pytest.raises(RequestError, match=r"^--tile is for models of several sizes; toy draws 8x8 only$"):
        resolve(toy.read_manifest(pristine), Asked(label="dog", tile=8))


def test_the_command_and_a_line_of_stdin(
    sizes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.png"
    size = ["-W", "46", "-H", "30", "-s", "4"]
    assert main(["sample", str(sizes), "--label", "dog", *size, "--tile", "16", "-o", str(out), "--json"]) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert report["tile"] == 16
    with Image.open(out) as image:
        assert image.size == (46, 30)
        assert "VAE tile: 16" in image.info["parameters"]
    request = {**WIDE, "seed": 4, "tile": 16, "output": str(tmp_path / "b.png")}
    (tmp_path / "lines").write_text(json.dumps(request) + "\n")
    with (tmp_path / "lines").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert main(["sample", str(sizes), "--stdin"]) == 0
    assert json.loads(capfd.readouterr().out)["tile"] == 16
    assert (tmp_path / "b.png").read_bytes() == out.read_bytes()
    assert main(["sample", str(sizes), "--label", "dog", "--tile", "9", "-o", str(tmp_path / "c.png")]) == 1
    assert capfd.readouterr().err == "latentc: error: --tile 9 cannot be decoded; give a multiple of 8, such as 8\n"
    assert not (tmp_path / "c.png").exists()


def test_inspect_says_what_a_tile_takes(sizes: Path, pristine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = toy.read_manifest(sizes)
    image = msgspec.structs.replace(manifest.image, height=16, width=16)
    latent = msgspec.structs.replace(manifest.latent, height=8, width=8)
    root = Path(shutil.copytree(sizes, sizes.parent / "larger"))
    toy.seal(root, msgspec.structs.replace(manifest, image=image, latent=latent))
    assert main(["inspect", str(root)]) == 0
    line = "the decoder by tiles, with --tile 8: 500 B of activations, whole 2 kB\n"
    assert line in capfd.readouterr().out
    assert main(["inspect", str(pristine)]) == 0
    assert "--tile" not in capfd.readouterr().out
