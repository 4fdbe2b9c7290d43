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
    sample.add_argument("--tile", type=int, metavar="PIXELS", help="decode tiles of this side (docs/memory.md)")
    sample.add_argument("--no-metadata", action="store_true", help="no `parameters` text in the PNG")
    sample.add_argument("--stdin", action="store_true", help="read requests, JSON, a line each, and answer them so")
    _backend(sample, "auto")
    _prologue(sample)
    _memory(sample)
    _json(sample)

    build = _command(commands, "build", "make engines for this machine, kept in the bundle")
    _backend(build, "auto")
    build.add_argument("--force", action="store_true", help="make them even if they are up to date")
    _prologue(build)
    trt = build.add_argument_group("options of --backend tensorrt (docs/tensorrt.md)")
    trt.add_argument("--batch", type=int, metavar="N", help="the most pictures of one request (default 4)")
    trt.add_argument(
        "--size", action="append", default=[], metavar="WxH",
        help="for this size; repeat it for all sizes between (default: every size of the bundle)",
    )  # fmt: skip
    trt.add_argument("--workspace", metavar="SIZE", help="scratch memory that a kernel may take, such as 512MiB")
    trt.add_argument("--opt-level", type=int, metavar="0-5", help="0 is the quickest build, 5 the quickest engine")
    trt.add_argument("--version-compatible", action="store_true", help="newer TensorRT and tensorrt_lean may run it")
    trt.add_argument("--hardware-compatible", action="store_true", help="every GPU from Ampere on may run it")
    trt.add_argument("--strip-weights", action="store_true", help="small engines; weights come from the bundle")
    trt.add_argument("--weight-streaming", metavar="BUDGET", help="weights to keep on the GPU, such as 4GiB, or auto")
    _json(build)

    inspect = _command(commands, "inspect", "show what a bundle holds and what each stage costs")
    _json(inspect)

    verify = _command(commands, "verify", "check every hash, then parity with torch's stored outputs")
    _backend(verify, "auto")
    _prologue(verify)
    _memory(verify)
    _json(verify)

    bench = _command(commands, "bench", "measure latency by stage, throughput, and the share of the machine's ceilings")
    _backend(bench, "auto")
    _prologue(bench)
    bench.add_argument("--steps", type=int, metavar="N", help="solver steps (default: the bundle's)")
    bench.add_argument(
        "--batch", metavar="N,N,…", help="pictures at once (default: 1,2,4,8, as far as the engines were built for)"
    )
    bench.add_argument("--repeat", type=int, default=10, metavar="N", help="requests of each batch (default: 10)")
    bench.add_argument("-W", "--width", type=int, metavar="N", help="width in pixels")
    bench.add_argument("-H", "--height", type=int, metavar="N", help="height in pixels")
    _json(bench)
    return top


def _command(commands: "argparse._SubParsersAction[_Parser]", name: str, what: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=what, description=what.capitalize() + ".", allow_abbrev=False)
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="the directory that python -m export wrote")
    return command


def _backend(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--backend", default=default, metavar="NAME",
        help="onnxruntime, tensorrt, onnxruntime-cuda or auto (default: auto)",
    )  # fmt: skip
    command.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all cores)")


def _prologue(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--prologue", choices=["cpu"], default="", help="leave text and schedule to the CPU; the loop has the GPU"
    )


def _memory(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--memory", default="normal", choices=["normal", "low"],
        help="low holds one stage at a time, its weights in the bundle's files (default: normal)",
    )  # fmt: skip


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one JSON document as the last line of stdout")
