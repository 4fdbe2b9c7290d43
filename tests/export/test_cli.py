"""The compiler's command line: its flags are frozen, its errors are one line with an exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from export.cli import main, parser

# A change here is a change for every script that calls the compiler: it goes into CHANGELOG.md.
FLAGS = {
    *("-h", "--help", "--output", "--solver", "--steps", "--precision", "--target", "--no-hoist", "--flops-per-byte"),
    *("--dump", "--rtol", "--min-psnr", "--lora", "--size", "--img2img", "--memory", "--cache"),
}


def test_flags_are_frozen() -> None:
    assert {flag for action in parser()._actions for flag in action.option_strings} == FLAGS
    assert [action.dest for action in parser()._actions if not action.option_strings] == ["source"]


def test_help_and_usage_errors_do_not_wait_for_torch(python_path: dict[str, str]) -> None:
    code = "import sys; from export.cli import parser; parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=python_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such", "--output", "{tmp}/b"], 1, "no-such: no such directory, and no shipped model of that name"),
        (["{tmp}", "--output", "{tmp}/b"], 1, "no model_index.json; a source is a diffusers pipeline directory"),
        (["{source}", "--output", "{source}"], 1, "exists and is no bundle"),
        (["{source}", "--output", "{tmp}/b", "--solver", "ddim2"], 1, "unknown solver 'ddim2'"),
        (["{source}", "--output", "{tmp}/b", "--solver", "lcm", "--steps", "900"], 1, "lcm cannot take 900 steps"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], code: int, message: str, random_dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("export.pipeline.trace_step", lambda *_: pytest.fail("traced before the input was checked"))
    filled = [argument.format(tmp=tmp_path, source=random_dit) for argument in arguments]
    assert main(filled) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("export: error: ")
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [[], ["x"], ["x", "--output", "y", "--steps", "0"], ["x", "--output", "y", "--steps", "a"]]
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_missed_bound_exits_with_3(random_dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(random_dit), "--output", str(tmp_path / "b"), "--steps", "2", "--min-psnr", "1000"]
    assert main(arguments) == 3
    assert "trajectory/image: psnr_db is " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("4GiB", 4 << 30), ("4GB", 4 * 10**9), ("512mib", 512 << 20), ("1.5g", 1_500_000_000)]
)
def test_memory_is_a_size_with_a_unit(text: str, num_bytes: int) -> None:
    assert parser().parse_args(["source", "--output", "b", "--memory", text]).memory == num_bytes


@pytest.mark.parametrize("text", ["much", "4XB", "-1GiB", "1MiB", ""])
def test_a_memory_that_is_none_is_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(["source", "--output", "b", f"--memory={text}"])
    assert stopped.value.code == 2
    assert "such as 4GiB" in capsys.readouterr().err


def test_the_default_memory_is_that_of_the_compiler() -> None:
    from export.reach import DEFAULT_MEMORY_BYTES

    assert parser().parse_args(["source", "--output", "b"]).memory == DEFAULT_MEMORY_BYTES
