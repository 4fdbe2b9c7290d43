"""--memory as a user meets it, and what inspect says of it."""

import json
from pathlib import Path

import pytest
from latentc.cli import main


def printed(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[str, str]:
    """What a command that succeeds prints."""
    assert main([str(argument) for argument in arguments]) == 0
    captured = capfd.readouterr()
    return captured.out, captured.err


def test_low_memory_draws_the_same_and_says_that_built_engines_are_not_used(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def sample(*flags: str, output: str) -> tuple[dict[str, object], str]:
        given = ("--label", "cat", "-s", "5", "-b", "2", "-o", tmp_path / output, "--json")
        out, err = printed(capfd, "sample", bundle, *given, *flags)
        return json.loads(out), err

    sample(output="normal.png")
    document, err = sample("--memory", "low", output="low.png")
    assert (document["memory"], err) == ("low", "")
    assert (tmp_path / "low.png").read_bytes() == (tmp_path / "normal.png").read_bytes()
    printed(capfd, "build", bundle)
    document, err = sample("--memory", "low", output="low.png")
    assert document["engines"] is False
    assert err == "latentc: the built engines are not used (--memory low reads the graphs' own weights)\n"
    document, err = sample(output="normal.png")
    assert (document["engines"], err) == (True, "")


def test_verify_with_low_memory(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    printed(capfd, "build", bundle)
    out, _ = printed(capfd, "verify", bundle, "--memory", "low")
    assert "optimised graph" in out
    assert "built engine" not in out


def test_there_are_two_ways(pristine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sample", str(pristine), "--memory", "little"])
    assert stopped.value.code == 2
    assert "invalid choice: 'little' (choose from" in capfd.readouterr().err


def test_inspect_predicts_the_memory_of_both_ways(pristine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capfd, "inspect", pristine)
    lines = out.splitlines()
    begin = next(position for position, line in enumerate(lines) if line.startswith("memory of"))
    assert [" ".join(line.split()) for line in lines[begin : begin + 4]] == [
        "memory of normal: weights normal: activations normal: in all low: weights low: activations low: in all",
        "denoise 160 B 2 kB 2.32 kB 160 B 2 kB 2.16 kB",
        "decode 160 B 2 kB 4.32 kB 160 B 2 kB 2.16 kB",
        "peak of a picture on the CPU: normal 4.32 kB (running decode), low 2.16 kB (running denoise)",
    ]
    out, _ = printed(capfd, "inspect", pristine, "--json")
    memory = json.loads(out)["memory"]
    stage = {"weights_bytes": 160, "activations_bytes": 2000, "total_bytes": 2160}
    assert memory["low"] == {
        "peak_bytes": 2160,
        "peak_while": "running denoise",
        "stages": {"denoise": stage, "decode": stage},
    }
    assert (memory["normal"]["peak_bytes"], memory["normal"]["peak_while"]) == (4320, "running decode")
