"""The commands on a text-to-image bundle, as a user types them."""

import json
from pathlib import Path

import numpy as np
import pytest
from latentc.cli import main
from latentc.picture import quantise
from PIL import Image

from tests.drawing import draw
from tests.families.cases import OVER_LONG, STEPS
from tests.families.test_pictures import Make

pytestmark = pytest.mark.xdist_group("flux-dev")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_sample_draws_prompts_at_a_size(exported: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = exported("flux-dev")
    width, height = made.case.sizes[1]
    request = made.case.request((width, height))
    flags = [flag for prompt in request.prompts for flag in ("-p", prompt)]
    size = ["-W", str(width), "-H", str(height)]
    out = tmp_path / "a.png"
    capfd.readouterr()  # what the export said
    assert main(["sample", str(made.bundle), *flags, *size, "-s", "7", "--separate", "-o", str(out), "--json"]) == 0
    done = capfd.readouterr()
    report = json.loads(done.out.splitlines()[-1])
    assert (report["width"], report["height"], report["guidance"]) == (width, height, 3.5)
    assert report["prompts"] == list(request.prompts)
    # The over-long prompt is cut for both encoders, and both lines say so; nothing else is said.
    assert len(report["notices"]) == len(done.err.splitlines()) == 2
    assert "text_encoder takes 77" in done.err
    assert "text_encoder_2 takes 512" in done.err
    expected = quantise(draw(made.bundle, "euler", STEPS, request))
    for position, path in enumerate(report["images"]):
        np.testing.assert_array_equal(pixels(Path(path)), expected[position])
    with Image.open(report["images"][2]) as image:
        assert image.info["parameters"].startswith(
            f"{request.prompts[2]}\nSteps: {STEPS}, Sampler: euler, CFG scale: 1"
        )


def test_sample_draws_over_an_image(exported: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = exported("flux-dev")
    Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / "red.png")
    flags = ["-p", "a red apple", "--init-image", str(tmp_path / "red.png"), "-s", "1", "-o", str(tmp_path / "a.png")]
    pictures = []
    for strength in ("0.25", "1.0"):
        assert main(["sample", str(made.bundle), *flags, "--strength", strength]) == 0
        pictures.append(pixels(tmp_path / "a.png").astype(float))
    assert pictures[0].shape == (32, 32, 3)  # the bundle's size, not the image's
    assert np.abs(pictures[0] - pictures[1]).mean() > 5
    capfd.readouterr()


def test_verify_and_inspect_say_what_is_there(exported: Make, capfd: pytest.CaptureFixture[str]) -> None:
    made = exported("flux-dev")
    capfd.readouterr()
    assert main(["verify", str(made.bundle)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("ok    text_encoder_2/t5_hidden") for line in lines)
    assert any(line.startswith("ok    trajectory/over_image") for line in lines)
    assert main(["inspect", str(made.bundle)]) == 0
    out = capfd.readouterr().out
    assert "any multiple of 8 from" in out
    assert "text_encoder (77 tokens), text_encoder_2 (512 tokens)" in out
    assert "4 (32x32), 4 (48x24)" in out


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "draw what? source draws from text: give -p TEXT"),
        (["-p", OVER_LONG, "-W", "33"], "-W 33 cannot be drawn; give a multiple of 8 from"),
        (["-p", "a", "-W", "40"], "no table for 40x32; euler depends on the size, and this bundle has"),
        (["-p", "a", "--init-image", "none.png"], "--init-image none.png: No such file or directory"),
        (["-p", "\udcff"], "the prompt is not Unicode text"),
    ],
)
def test_mistakes_get_one_line(
    exported: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], line: str
) -> None:
    made = exported("flux-dev")
    capfd.readouterr()
    assert main(["sample", str(made.bundle), *flags, "-o", str(tmp_path / "a.png")]) == 1
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1
    assert line in errors[0]
    assert list(tmp_path.iterdir()) == []
