"""The flags are a promise: this is the whole list. Changing it is changing the interface."""

import argparse

from latentc.arguments import parser

FLAGS = {
    "sample": [
        "--backend", "--batch", "--cfg-scale", "--guidance", "--height", "--help", "--init-image", "--json", "--label",
        "--latents", "--memory", "--negative-prompt", "--no-metadata", "--output", "--prologue", "--prompt", "--seed",
        "--separate", "--solver", "--stdin", "--steps", "--strength", "--threads", "--tile", "--width", "-H", "-W",
        "-b", "-h", "-n", "-o", "-p", "-s", "BUNDLE",
    ],
    "build": [
        "--backend", "--batch", "--force", "--hardware-compatible", "--help", "--json", "--opt-level", "--prologue",
        "--size", "--strip-weights", "--threads", "--version-compatible", "--weight-streaming", "--workspace", "-h",
        "BUNDLE",
    ],
    "bench": [
        "--backend", "--batch", "--height", "--help", "--json", "--prologue", "--repeat", "--steps", "--threads",
        "--width", "-H", "-W", "-h", "BUNDLE",
    ],
    "inspect": ["--help", "--json", "-h", "BUNDLE"],
    "verify": ["--backend", "--help", "--json", "--memory", "--prologue", "--threads", "-h", "BUNDLE"],
}  # fmt: skip


def test_flags_are_frozen() -> None:
    top = parser()
    commands = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    found = {
        name: sorted(flag for action in command._actions for flag in action.option_strings or [str(action.metavar)])
        for name, command in commands.choices.items()
    }
    assert found == FLAGS
    assert sorted(flag for action in top._actions for flag in action.option_strings) == ["--help", "--version", "-h"]


def test_flags_are_not_guessed_from_their_beginnings() -> None:
    top = parser()
    assert not top.allow_abbrev
    commands = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    assert not any(command.allow_abbrev for command in commands.choices.values())
