"""latentc sample --stdin: an answer for every line, the command's own pictures, and no line that ends the process."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from latentc.cli import main
from latentc.commands import drawing, serve_lines
from latentc.picture import quantise
from PIL import Image

from tests.runtime import toy_variants

CAT = {"label": "cat", "seed": 7, "png": "base64"}
PROGRAM = "import sys; from latentc.cli import main; sys.exit(main(sys.argv[1:]))"


def line(**fields: object) -> bytes:
    return json.dumps(CAT | fields).encode() + b"\n"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Any:
    """Runs the command on the bytes of stdin; the decoded answers. It has to end well."""

    def run(bundle: Path, data: bytes, *flags: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert main(["sample", str(bundle), "--stdin", *flags]) == 0
        captured = capfdbinary.readouterr()
        assert captured.err == b""
        return [json.loads(answer) for answer in captured.out.splitlines()]

    return run


def png_of(answer: dict[str, Any]) -> bytes:
    return base64.b64decode(answer["images"][0], validate=True)


def command_png(bundle: Path, out: Path, *flags: str) -> bytes:
    assert main(["sample", str(bundle), "-o", str(out), *flags]) == 0
    return out.read_bytes()


def test_a_process_answers_lines_and_outlives_bad_ones(pristine: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "sample", str(pristine), "--stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        late = threading.Timer(120, process.kill)
        late.start()

        def ask(data: bytes) -> dict[str, Any]:
            # Read before the next is written: an answer that is not flushed never comes.
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(data)
            process.stdin.flush()
            document: dict[str, Any] = json.loads(process.stdout.readline())
            return document

        first = ask(line(id="a"))
        assert ask(b"no json\n")["exit_code"] == 1
        to_file = ask(line(id=2, png=None, output=str(tmp_path / "line.png")))
        assert "no label 'dgo'" in ask(line(label="dgo"))["error"]
        again = ask(line())
        process.stdin.close()
        assert process.wait(timeout=120) == 0
        late.cancel()
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
    expected = command_png(pristine, tmp_path / "command.png", "--label", "cat", "-s", "7")
    assert first["id"] == "a"
    assert "id" not in again
    assert (to_file["id"], to_file["images"]) == (2, [str(tmp_path / "line.png")])
    assert png_of(first) == png_of(again) == (tmp_path / "line.png").read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["command.png", "line.png"]


def test_the_answer_is_the_report_of_json(
    answers: Any, pristine: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    out = tmp_path / "a.png"
    fields = {"batch": 3, "separate": True, "solver": "sde", "steps": 3, "cfg_scale": 3, "no_metadata": True}
    (answer,) = answers(pristine, line(png=None, output=str(out), **fields))
    pictures = [Path(path).read_bytes() for path in answer["images"]]
    flags = ["--label", "cat", "-s", "7", "-b", "3", "--separate", "--solver", "sde", "--steps", "3"]
    assert main(["sample", str(pristine), *flags, "--cfg-scale", "3", "--no-metadata", "-o", str(out), "--json"]) == 0
    report = json.loads(capfdbinary.readouterr().out)
    assert [Path(path).read_bytes() for path in report["images"]] == pictures
    assert len(set(pictures)) == 3
    assert list(answer.pop("timings_ms")) == ["prepare", "draw", "write", "total"]
    report.pop("timings_ms")
    assert answer == report


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"colour": "red"}, "unknown field `colour`"),
        ({"seed": "7"}, "Expected `int | null`, got `str` - at `$.seed`"),
        ({"png": "hex"}, "Invalid enum value 'hex' - at `$.png`"),
        ({"width": 16}, "no size 16x8; toy draws 8x8 only"),
        ({"width": 10**30}, "toy draws 8x8 only"),
        ({"steps": 7}, "no table for 7 steps"),
        ({"seed": 2**64}, "is out of range"),
        ({"batch": 0}, "-b 0 is out of range"),
        ({"prompt": "a cat"}, "-p is for text-to-image models"),
        ({"png": None}, "give output"),
        ({"output": "a.png"}, "one of them"),
        ({"png": None, "output": "none/a.png"}, "there is no directory none"),
        ({"png": None, "output": "/proc/a.png"}, "/proc/a.png"),
        ({"png": None, "output": "a" * 300 + ".png"}, "File name too long"),
        ({"png": None, "output": "a\0.png"}, "output holds a zero byte"),
        ({"prompt": ["a\0"]}, "prompt holds a zero byte"),
        ({"latents": "none.npy"}, "--latents none.npy: cannot be read"),
    ],
)  # fmt: skip
def test_a_bad_request_is_answered_with_one_line_and_its_id(
    answers: Any, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    failed, after = answers(pristine, line(id=5, **fields) + line(id=6))
    assert set(failed) == {"id", "error", "exit_code"}
    assert (failed["id"], failed["exit_code"]) == (5, 1)
    assert error in failed["error"]
    assert "\n" not in failed["error"]
    assert (after["id"], after["seed"]) == (6, 7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [b"{\n", b"[]\n", b"\xff\xfe\n", b'"' + b"\xff" * 9 + b'"\n', b"[" * 100_000 + b"\n", b'{"id": []}\n', b"1\n"],
)
def test_what_is_no_request_is_answered(answers: Any, pristine: Path, data: bytes) -> None:
    failed, after = answers(pristine, data + line())
    assert set(failed) == {"error", "exit_code"}
    assert "the line is no request" in failed["error"]
    assert after["seed"] == 7


def test_an_endless_line_is_skipped_and_not_kept(answers: Any, pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_lines, "MAX_LINE_BYTES", 100)
    exact = line(id="").replace(b'""', b'"' + b"x" * (101 - len(line(id=""))) + b'"')
    assert len(exact) == 101  # with its line end: just allowed
    fits, failed, after = answers(pristine, exact + b"x" * 1001 + b"\n" + line())
    assert fits["seed"] == after["seed"] == 7
    assert failed == {"error": "the line is longer than 100 bytes", "exit_code": 1}
    (failed,) = answers(pristine, b"x" * 1001)  # and stdin ends in it
    assert "longer" in failed["error"]


def test_empty_lines_are_no_requests_and_the_last_line_needs_no_end(answers: Any, pristine: Path) -> None:
    assert len(answers(pristine, b"\n \r\n" + line().rstrip())) == 1
    assert answers(pristine, b"") == []


def test_prompts_are_encoded_once_and_engines_may_come_one_at_a_time(
    answers: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_variants.make_text(bundle)
    data = b"".join(line(label=None, prompt=prompt) for prompt in ("a cat", ["a cat", "a dog"], "a cat"))
    flags = ("--memory", "low")
    low, normal = answers(bundle, data, *flags), answers(bundle, data)
    assert [answer["memory"] for answer in low] == ["low"] * 3
    assert [png_of(answer) for answer in low] == [png_of(answer) for answer in normal]
    assert png_of(low[0]) == png_of(low[2]) == command_png(bundle, tmp_path / "a.png", "-p", "a cat", "-s", "7")
    expected = command_png(bundle, tmp_path / "b.png", "-p", "a cat", "-p", "a dog", "-s", "7")
    assert png_of(low[1]) == expected


def test_an_initial_image_of_a_line(answers: Any, over_image: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(photo)
    (answer,) = answers(over_image, line(init_image=str(photo), strength=0.7, solver="sde", steps=3))
    flags = ("--label", "cat", "-s", "7", "--solver", "sde", "--steps", "3")
    over = command_png(over_image, tmp_path / "a.png", *flags, "--init-image", str(photo), "--strength", "0.7")
    assert png_of(answer) == over != command_png(over_image, tmp_path / "b.png", *flags)


def test_memory_that_does_not_suffice_is_answered(
    answers: Any, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Any] = [MemoryError, quantise]

    def scarce(images: Any) -> Any:
        outcome = outcomes.pop(0)
        if outcome is MemoryError:
            raise outcome
        return outcome(images)

    monkeypatch.setattr(drawing, "quantise", scarce)
    failed, after = answers(pristine, line(id=1) + line(id=2))
    assert (failed["id"], "not enough memory" in failed["error"]) == (1, True)
    assert after["id"] == 2


def test_flags_that_a_line_gives_are_refused(pristine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(pristine), "--stdin", "--label", "cat"]) == 1
    assert "--stdin takes what to draw from its lines" in capfd.readouterr().err


def test_a_reader_that_has_gone_ends_it_quietly(pristine: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", PROGRAM, "sample", str(pristine), "--stdin"]
    done = subprocess.run(command, input=line(), stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_between_lines_is_quiet(pristine: Path) -> None:
    # A job in the background of a shell inherits an ignored SIGINT, and Python then leaves it ignored.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + PROGRAM
    command = [sys.executable, "-c", program, "sample", str(pristine), "--stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line())
        process.stdin.flush()
        process.stdout.readline()
        time.sleep(0.1)  # it waits for the next line now, or will soon: both are to be quiet
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120) == (b"", b"")
    assert process.returncode == 130


def test_the_fields_are_a_promise() -> None:
    assert serve_lines.LineRequest.__struct_fields__ == (
        "id", "prompt", "negative_prompt", "label", "width", "height", "steps", "solver", "cfg_scale", "guidance",
        "seed", "batch", "output", "png", "separate", "latents", "init_image", "strength", "tile",
        "no_metadata",
    )  # fmt: skip
