"""Kills an export at random moments with SIGKILL, and runs it again until it is done.

    python -m benchmarks.kill_export SOURCE [--times 20] [--seed 0] [--work DIR] [-- FLAGS OF THE EXPORT …]

First the export runs undisturbed: its duration, and the hash of each of its files. Then it starts in a fresh place, is
killed at a moment drawn uniformly from that duration, and is run again to its end; every second time it is killed twice
before that, so that what was resumed is killed as well. After a kill the output must hold nothing, or a whole bundle
(latentc's own open_bundle); at the end it must hold what the undisturbed run wrote, byte by byte, and nothing may lie
beside it.

Writes benchmarks/results/kill_export.json; exits with 1 if anything was not so.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from latentc.bundle import open_bundle
from latentc.errors import BundleError

from benchmarks.export_at_size import run_export
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "kill_export.json"


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, and what it left."""

    round: int
    after_s: float
    found: str  # nothing, whole, or what is wrong with it
    ended_before: bool  # the export was done sooner


def state_of(output: Path) -> str:
    """What lies at the place of a bundle: nothing, whole, or one line that says what is wrong."""
    if not output.exists():
        return "nothing"
    try:
        open_bundle(output)
    except BundleError as error:
        return f"partial: {str(error).replace(str(output), 'BUNDLE')}"
    return "whole"


def hashes(directory: Path) -> dict[str, str]:
    """Path -> sha256 of every file below `directory`."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def moments(times: int, duration_s: float, seed: int) -> list[list[float]]:
    """`times` moments, uniform over the duration, in rounds of one and two."""
    generator = random.Random(seed)
    rounds: list[list[float]] = []
    while times:
        count = min(times, 1 + len(rounds) % 2)
        rounds.append([generator.uniform(0.0, duration_s) for _ in range(count)])
        times -= count
    return rounds


def finished(source: Path, output: Path, flags: Sequence[str]) -> float:
    """Runs the export to its end; its seconds."""
    run = run_export(source, output, flags)
    if run.status != 0:
        raise SystemExit(f"the export failed ({run.status}):\n" + "\n".join(run.said))
    return run.seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs, kills, compares, and prints one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_export")
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("--times", metavar="N", type=int, default=20)
    parser.add_argument("--seed", metavar="N", type=int, default=0)
    parser.add_argument("--work", metavar="DIR", type=Path, default=Path(tempfile.gettempdir()), help="a large disk")
    parser.add_argument("--results", metavar="FILE", type=Path, default=RESULTS)
    parser.add_argument("flags", metavar="FLAGS", nargs="*", default=["--steps", "4"], help="of the export, after --")
    given = parser.parse_args(arguments)
    kills: list[Kill] = []
    unequal: list[int] = []
    left: list[str] = []
    given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="latentc-kill-", dir=given.work) as directory:
        place = Path(directory) / "undisturbed"
        place.mkdir()
        duration = finished(given.source, place / "bundle", given.flags)
        wanted = hashes(place / "bundle")
        shutil.rmtree(place)
        rounds = moments(given.times, duration, given.seed)
        for number, after in enumerate(rounds):
            place = Path(directory) / "killed"
            place.mkdir()
            output = place / "bundle"
            for limit in after:
                run = run_export(given.source, output, given.flags, limit_s=limit)
                kills.append(Kill(number, round(limit, 2), state_of(output), run.stopped is None))
                print(json.dumps(asdict(kills[-1])), file=sys.stderr)
            finished(given.source, output, given.flags)
            if hashes(output) != wanted:
                unequal.append(number)
            left += [path.name for path in place.iterdir() if path != output]
            shutil.rmtree(place)
    partial = [kill for kill in kills if kill.found not in ("nothing", "whole")]
    document = {
        "command": f"python -m benchmarks.kill_export SOURCE --times {given.times} --seed {given.seed} -- "
        + " ".join(given.flags),
        "undisturbed_s": round(duration, 1),
        "files": len(wanted),
        "kills": [asdict(kill) for kill in kills],
        "killed_while_running": sum(not kill.ended_before for kill in kills),
        "partial_bundles": len(partial),
        "rounds": len(rounds),
        "rounds_with_other_hashes": unequal,
        "left_beside": left,
        "machine": machine(),
    }
    given.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))
    if partial or unequal or left:
        sys.exit(1)


if __name__ == "__main__":
    main()
