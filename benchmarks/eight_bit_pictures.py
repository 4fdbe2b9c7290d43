"""int8 beyond the one picture that its gate looks at: PSNR against the fp32 bundle over many draws.

    python -m export emoji-dit --output build/emoji-dit
    python -m export emoji-dit --precision int8 --output build/emoji-dit-int8
    python -m benchmarks.eight_bit_pictures build/emoji-dit build/emoji-dit-int8 [--draws 64] [--threads 2]

Each draw has a seed and a label (or prompt) of its own, at the bundle's defaults; both bundles draw the same. Writes
what it prints to benchmarks/results/eight_bit_pictures.json under the model's name: PSNR in dB of each draw, sorted.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from latentc.parity import psnr_db
from latentc.request import Asked, resolve
from latentc.schema import LabelConditioning
from latentc.session import Session, open_session

from benchmarks.cache_curve import PROMPTS
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "eight_bit_pictures.json"
GATE_DB = 35.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws, and adds the model to the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wide", type=Path, metavar="FP32_BUNDLE")
    parser.add_argument("narrow", type=Path, metavar="INT8_BUNDLE")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    wide, narrow = (open_session(root, "onnxruntime", given.threads) for root in (given.wide, given.narrow))
    if (wide.bundle.manifest.precision, narrow.bundle.manifest.precision) != ("fp32", "int8"):
        sys.exit("error: give a bundle in fp32, then one in int8, of the same model")
    found = spread([psnr_db(*pictures) for pictures in drawn(wide, narrow, given.draws)])
    document: dict[str, Any] = json.loads(given.results.read_text()) if given.results.is_file() else {"models": {}}
    document["machine"] = machine()
    document["models"][wide.bundle.manifest.name] = found
    given.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


def drawn(wide: Session, narrow: Session, draws: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of pictures, float32 [1, 3, H, W]."""
    conditioning = wide.bundle.manifest.conditioning
    pairs = []
    for seed in range(draws):
        if isinstance(conditioning, LabelConditioning):
            labels = list(conditioning.labels)
            asked = Asked(label=labels[seed * 37 % len(labels)])
        else:
            asked = Asked(prompts=(PROMPTS[seed % len(PROMPTS)],))
        pictures = [session.draw(resolve(session.bundle.manifest, asked), seed) for session in (wide, narrow)]
        pairs.append((pictures[1], pictures[0]))
    return pairs


def spread(psnr: Sequence[float]) -> dict[str, Any]:
    """The draws in order of quality, and what they say in three numbers."""
    ordered = sorted(psnr)
    return {
        "median_db": float(np.median(ordered)),
        "least_db": ordered[0],
        "share_at_35_db": float(np.mean([value >= GATE_DB for value in ordered])),
        "psnr_db": [round(value, 2) for value in ordered],
    }


if __name__ == "__main__":
    main()
