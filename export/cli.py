"""The command line of the compiler: flags to ExportOptions, errors to one line and an exit code."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_INPUT = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Exports; returns 0, 1 for the user's input, 3 for a parity bound (argparse exits with 2 by itself)."""
    arguments = parser().parse_args(argv)
    # diffusers and transformers announce at import what they will not be asked for here (torchvision).
    for name in ("transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Imported late: --help and usage errors answer at once, without torch.
    from latentc.errors import LatentcError

    from export.pipeline import ExportOptions, export_bundle
    from export.verify import Bounds
    from models.latent_diffusion import SourceError

    try:
        manifest = export_bundle(
            ExportOptions(
                source=arguments.source,
                output=arguments.output,
                solvers=tuple(arguments.solver),
                steps=arguments.steps,
                bounds=Bounds(relative_l2=arguments.rtol, psnr_db=arguments.min_psnr),
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
        "--steps", metavar="N,N,…", type=_steps, default=(4, 20, 50), help="step counts to make tables of (4,20,50)"
    )
    result.add_argument(
        "--rtol", type=float, default=1e-5, help="largest relative L2 error of a component (default 1e-5)"
    )
    result.add_argument(
        "--min-psnr", metavar="DB", type=float, default=60.0, help="least PSNR of the image, in dB (default 60)"
    )
    return result


def _steps(text: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if not steps or min(steps) < 1 or max(steps) > 1000:
        raise argparse.ArgumentTypeError(f"got {text!r}; give numbers of 1 to 1000 with commas, such as 4,20,50")
    return steps
