"""What was aimed at beside what was reached: computed from the results, one row for each aim and model.

A peer is a rival where it drew, and drew the picture: its distance from diffusers eager is known and small enough.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu.cases import (
    COLD_TIMES_FASTER,
    FP32_TIMES_FASTER,
    INT8_TIMES_FASTER,
    LEAST_PSNR_DB,
    MEMORY_SHARE,
    PEERS,
)
from benchmarks.cpu.rounds import ratio


@dataclass(frozen=True)
class Aim:
    """One aim of one model; `reached` is None where there was nothing to compare, and `note` says what."""

    name: str
    where: str
    bound: float
    at_most: bool
    reached: float | None
    interval: tuple[float, float] | None
    rival: str
    note: str = ""

    @property
    def holds(self) -> bool:
        """The bound, and no note that says otherwise."""
        if self.reached is None or self.note:
            return False
        return self.reached <= self.bound if self.at_most else self.reached >= self.bound

    @property
    def missed_by(self) -> str:
        """In percent of the bound; empty where it holds."""
        if self.holds:
            return ""
        if self.reached is None:
            return "not measured"
        off = self.reached / self.bound - 1 if self.at_most else 1 - self.reached / self.bound
        return self.note if off <= 0 else f"{100 * off:.0f} %" + (f"; {self.note}" if self.note else "")


def aims_of(document: Mapping[str, Any]) -> list[Aim]:
    """All of them, in the order of the page."""
    found: list[Aim] = []
    for variant, name, bound in (
        ("latentc", "fp32: times faster than the best peer", FP32_TIMES_FASTER),
        ("latentc-int8", f"int8: times faster than the best peer, at {LEAST_PSNR_DB:g} dB", INT8_TIMES_FASTER),
    ):
        found += [speed(model, result, variant, name, bound) for model, result in document["models"].items()]
    for key, case in document["cold"].items():
        found.append(cold(key, case))
    for key, case in document["cold"].items():
        if case["pages"] == "warm":
            found.append(memory(key, case))
    return found


def rivals(tools: Mapping[str, Any]) -> Iterator[str]:
    """The peers of one batch size that drew the picture."""
    for name, row in tools.items():
        if name in PEERS and "error" not in row and (row.get("psnr_db") or 0) >= LEAST_PSNR_DB:
            yield name


def speed(model: str, result: Mapping[str, Any], variant: str, name: str, bound: float) -> Aim:
    """At batch 1."""
    tools = result["batches"].get("1", {})
    best = min(rivals(tools), key=lambda peer: tools[peer]["request_ms"]["p50"], default=None)
    if best is None or "error" in tools.get(variant, {"error": ""}):
        return Aim(name, model, bound, False, None, None, best or "")
    own = tools[variant]
    found = ratio(own["requests_ms"], tools[best]["requests_ms"])
    psnr = own.get("psnr_db")
    note = "" if psnr is not None and psnr >= LEAST_PSNR_DB else f"its pictures are at {decibels(psnr)}"
    return Aim(name, model, bound, False, found["ratio"], (found["low"], found["high"]), best, note)


def cold(key: str, case: Mapping[str, Any]) -> Aim:
    """Medians of whole processes."""
    tools = case["tools"]
    on_torch = {
        name: row["median_s"]
        for name, row in tools.items()
        if name in PEERS and PEERS[name].on_torch and "error" not in row
    }
    best = min(on_torch, key=lambda name: on_torch[name], default=None)
    name = "cold start: times faster than any peer on torch"
    if best is None or "error" in tools.get("latentc", {"error": ""}):
        return Aim(name, key, COLD_TIMES_FASTER, False, None, None, best or "")
    found = ratio(tools["latentc"]["seconds"], tools[best]["seconds"])
    return Aim(name, key, COLD_TIMES_FASTER, False, found["ratio"], (found["low"], found["high"]), best)


def memory(key: str, case: Mapping[str, Any]) -> Aim:
    """Peaks of whole processes."""
    tools = case["tools"]
    peaks = {name: row["peak_bytes"] for name, row in tools.items() if name in PEERS and "error" not in row}
    best = min(peaks, key=lambda name: peaks[name], default=None)
    name = "peak memory, share of the best peer's"
    if best is None or "error" in tools.get("latentc", {"error": ""}):
        return Aim(name, key, MEMORY_SHARE, True, None, None, best or "")
    return Aim(name, key, MEMORY_SHARE, True, tools["latentc"]["peak_bytes"] / peaks[best], None, best)


def decibels(psnr: float | None) -> str:
    """As a cell of a table."""
    return "not comparable" if psnr is None else "identical" if psnr >= 200 else f"{psnr:.1f} dB"
