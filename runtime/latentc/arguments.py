"""The command line's flags. Imports nothing but argparse: `latentc --help` must be instant.

A new flag is a promise: tests/runtime/test_arguments.py holds the list.
"""

import argparse
from pathlib import Path
from typing import NoReturn

from latentc import __version__
from latentc.errors import EXIT_USAGE


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, where argparse prints the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"latentc: error: {message}; {self.prog} --help lists what there is\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` holds the one that was asked for."""
    top = _Parser(prog="latentc", description="Samples compiled latent diffusion models.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"latentc {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    sample = _command(commands, "sample", "draw pictures")
    sample.add_argument(
        "-p", "--prompt", action="append", default=[], metavar="TEXT",
        help="what to draw (text-to-image models); repeat it for a batch of different prompts",
    )  # fmt: skip
    sample.add_argument("--label", metavar="NAME", help="what to draw, by name or number (class-label models)")
    sample.add_argument(
        "-n", "--negative-prompt", action="append", default=[], metavar="TEXT",
        help="what not to draw (text-to-image models, with --cfg-scale above 1); once, or once for each -p",
    )  # fmt: skip
    sample.add_argument("-W", "--width", type=int, metavar="N", help="width in pixels")
    sample.add_argument("-H", "--height", type=int, metavar="N", help="height in pixels")
    sample.add_argument("--steps", type=int, metavar="N", help="solver steps; latentc inspect lists what there is")
    sample.add_argument("--solver", metavar="NAME", help="a solver of the bundle")
    sample.add_argument("--cfg-scale", type=float, metavar="F", help="classifier-free guidance; 1 and less is none")
    sample.add_argument("--guidance", type=float, metavar="F", help="distilled guidance (models that have it)")
    sample.add_argument("-s", "--seed", type=int, metavar="SEED", help="0 to 2^64 - 1, as torch's; default: random")
    sample.add_argument("-b", "--batch", type=int, metavar="COUNT", help="how many pictures of each prompt (default 1)")
    sample.add_argument("-o", "--output", type=Path, default=Path("out.png"), metavar="FILE", help="default: out.png")
    sample.add_argument("--separate", action="store_true", help="FILE-000.png, FILE-001.png, ... instead of one grid")
    sample.add_argument(
        "--latents", type=Path, metavar="FILE.npy", help="initial noise [B, C, H, W] in place of the seed's"
    )
    sample.add_argument("--init-image", type=Path, metavar="FILE", help="draw over this picture (img2img)")
    sample.add_argument("--strength", type=float, metavar="F", help="how much of it to change, above 0 to 1")
    sample.add_argument("--no-metadata", action="store_true", help="no `parameters` text in the PNG")
    _backend(sample, "auto")
    _memory(sample)
    _json(sample)

    build = _command(commands, "build", "make engines for this machine, kept in the bundle")
    _backend(build, "auto")
    build.add_argument("--force", action="store_true", help="make them even if they are up to date")
    _json(build)

    inspect = _command(commands, "inspect", "show what a bundle holds and what each stage costs")
    _json(inspect)

    verify = _command(commands, "verify", "check every hash, then parity with torch's stored outputs")
    _backend(verify, "auto")
    _memory(verify)
    _json(verify)
    return top


def _command(commands: "argparse._SubParsersAction[_Parser]", name: str, what: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=what, description=what.capitalize() + ".", allow_abbrev=False)
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="the directory that python -m export wrote")
    return command


def _backend(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--backend", default=default, metavar="NAME", help="onnxruntime or auto (default: auto)")
    command.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all cores)")


def _memory(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--memory", default="normal", choices=["normal", "low"],
        help="low holds one stage at a time, its weights in the bundle's files (default: normal)",
    )  # fmt: skip


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one JSON document as the last line of stdout")
