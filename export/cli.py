"""The command line of the compiler: flags to ExportOptions, errors to one line and an exit code."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.targets.names import TARGETS

if TYPE_CHECKING:
    from export.verify import Bounds

EXIT_INPUT = 1
DEFAULT_MEMORY_BYTES = 4 << 30  # export.reach's, which imports torch
_LEAST_MEMORY = 256 << 20
PRECISIONS = ("fp32", "fp16", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """Exports; returns 0, 1 for the user's input, 3 for a parity bound (argparse exits with 2 by itself)."""
    arguments = parser().parse_args(argv)
    # Imported late: --help and usage errors answer at once, without torch. The loggers come first: what is imported
    # after them announces what it will not be asked for here (torchvision).
    from diffusers.utils import logging as diffusers_logging
    from latentc.errors import LatentcError
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()

    from export.pipeline import ExportOptions, export_bundle
    from models.components import only_errors
    from models.latent_diffusion import Lora, SourceError

    only_errors()

    try:
        manifest = export_bundle(
            ExportOptions(
                source=arguments.source,
                output=arguments.output,
                solvers=tuple(arguments.solver),
                steps=arguments.steps,
                sizes=tuple(arguments.size),
                img2img=arguments.img2img,
                loras=tuple(Lora(file, scale) for file, scale in arguments.lora),
                precision=arguments.precision,
                target=arguments.target,
                hoist=not arguments.no_hoist,
                flops_per_byte=arguments.flops_per_byte,
                dump=arguments.dump,
                bounds=_bounds(arguments),
                memory_bytes=arguments.memory,
            )
        )
    except (SourceError, LatentcError) as error:
        print(f"export: error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_INPUT)
    except OSError as error:
        print(f"export: error: {error}", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        return 130
    num_bytes = sum(record.num_bytes for record in manifest.files.values())
    print(f"{arguments.output}: {manifest.pipeline}, {num_bytes / 1e6:.1f} MB, {len(manifest.tables)} tables")
    return 0


def parser() -> argparse.ArgumentParser:
    """All flags; tests/export/test_cli.py freezes them."""
    result = argparse.ArgumentParser(
        prog="python -m export",
        description="Compiles a diffusers pipeline directory into a verified bundle that latentc samples.",
    )
    result.add_argument("source", metavar="SOURCE", help="a diffusers pipeline directory, or a shipped model's name")
    result.add_argument("--output", metavar="BUNDLE", type=Path, required=True, help="where the bundle appears, whole")
    result.add_argument(
        "--solver",
        metavar="NAME",
        action="append",
        default=[],
        help="an alias such as dpmpp_2m, or a diffusers scheduler class; repeatable, the first is the default "
        "(without it: the source's own scheduler)",
    )
    result.add_argument(
        "--steps",
        metavar="N,N,…",
        type=_steps,
        default=(),
        help="step counts to make tables of (4,20,50 and the pipeline's own)",
    )
    result.add_argument(
        "--size",
        metavar="WxH",
        type=_size,
        action="append",
        default=[],
        help="the default size in pixels; repeatable, for solvers that depend on the size (FLUX) "
        "(without it: the pipeline's own size)",
    )
    result.add_argument(
        "--img2img", action="store_true", help="with the encoder, so that latentc sample takes --init-image"
    )
    result.add_argument(
        "--lora",
        metavar="FILE:SCALE",
        type=_lora,
        action="append",
        default=[],
        help="merge an adapter (safetensors, diffusers' keys) into the weights; repeatable; SCALE is 1 if left out",
    )
    result.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="fp16: of all graphs but prompt and schedule; int8: of the loop, for --target onnxruntime (fp32)",
    )
    result.add_argument(
        "--target", choices=TARGETS, default="onnxruntime", help="whose opset and operators are written (onnxruntime)"
    )
    result.add_argument("--no-hoist", action="store_true", help="keep everything in the loop, to compare")
    result.add_argument(
        "--flops-per-byte", metavar="F", type=_positive, default=200.0, help="machine balance of the cut (200)"
    )
    result.add_argument(
        "--dump", metavar="DIR", type=Path, help="write the graphs of every phase, and what was cut why"
    )
    result.add_argument(
        "--memory",
        metavar="SIZE",
        type=_memory,
        default=DEFAULT_MEMORY_BYTES,
        help="a model with more weights than this (in float32) is compared with torch once, without a trajectory; "
        "a larger number compares more and takes longer, not more memory (4GiB)",
    )
    result.add_argument(
        "--rtol",
        type=_positive,
        help="largest relative L2 error of a component (1e-5; 1e-2 for fp16, 5e-2 for the loop in int8)",
    )
    result.add_argument(
        "--min-psnr", metavar="DB", type=_positive, help="least PSNR of the image, in dB (60; 35 for fp16 and int8)"
    )
    return result


def _bounds(arguments: argparse.Namespace) -> "Bounds":
    """The bounds that were given, over those of the precision."""
    from export.verify import BOUNDS, Bounds

    usual: Bounds = BOUNDS[arguments.precision]
    return Bounds(
        relative_l2=usual.relative_l2 if arguments.rtol is None else arguments.rtol,
        psnr_db=usual.psnr_db if arguments.min_psnr is None else arguments.min_psnr,
    )


def _lora(text: str) -> tuple[Path, float]:
    file, colon, scale = text.rpartition(":")
    if not colon:
        return Path(text), 1.0
    try:
        return Path(file), float(scale)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; give FILE or FILE:SCALE, such as style.safetensors:0.8"
        ) from None


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def _memory(text: str) -> int:
    """Bytes of a size such as 4GiB, 500MB or 16G."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    if match is None or match[2] == "I":
        raise argparse.ArgumentTypeError(f"got {text!r}; give a number with a unit, such as 4GiB or 16GB")
    num_bytes = int(float(match[1]) * _UNITS[match[2]])
    if num_bytes < _LEAST_MEMORY:
        raise argparse.ArgumentTypeError(f"got {text!r}; give 256MiB or more, such as 4GiB")
    return num_bytes


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()) or len(text) > 11:
        raise argparse.ArgumentTypeError(f"got {text!r}; give width x height in pixels, such as 768x512")
    return int(width), int(height)


def _steps(text: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if not steps or min(steps) < 1 or max(steps) > 1000:
        raise argparse.ArgumentTypeError(f"got {text!r}; give numbers of 1 to 1000 with commas, such as 4,20,50")
    return steps
