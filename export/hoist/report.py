"""What was cut where and why: figures of the graph by class and by part, as data and as a table to read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ClassFigures:
    """The work of one class in the whole graph, for one step."""

    nodes: int
    parameters: int
    weight_bytes: int
    flops: int


@dataclass(frozen=True)
class PartFigures:
    """One graph of the partition: what it holds, and the FLOPs of one run of it (the schedule's: all steps)."""

    runs_once_per: str
    nodes: int
    parameters: int
    weight_bytes: int
    flops: int


@dataclass(frozen=True)
class CrossingFigures:
    """A value that one part hands to another."""

    value: str
    label: str
    source: str
    targets: tuple[str, ...]
    num_bytes: int  # a step, or a request where the loop does not read it
    weight_bytes_behind: int  # of the weights that it is computed from: what the reader need not have


@dataclass(frozen=True)
class Declined:
    """A value that could leave the loop by its class and stays, and why; it speaks for those that depend on it."""

    value: str
    reason: str


@dataclass(frozen=True)
class Cheaper:
    """A node with weights that could leave the loop, and costs less there."""

    value: str
    label: str
    value_class: str
    weight_bytes: int


@dataclass(frozen=True)
class Placement:
    """Where a node of the whole step went; constants and sizes go to every part that needs them."""

    node: str
    operator: str
    value: str
    value_class: str
    parts: tuple[str, ...]
    weight_bytes: int


@dataclass(frozen=True)
class Report:
    """The account of one partition at the dims and the step count of its cost model."""

    dims: Mapping[str, int]
    steps: int
    whole: PartFigures
    classes: Mapping[str, ClassFigures]
    parts: Mapping[str, PartFigures]
    row_bytes: int  # of one step
    table_bytes: int  # of all steps
    bytes_read_per_step_before: int  # weights and inputs
    bytes_read_per_step_after: int  # weights, inputs, row and prompt tensors
    cost: float  # of the cut, of no cut, and of hoisting all that is legal, in bytes of the cost model
    cost_of_nothing: float
    cost_of_all: float
    rows_checked: str
    crossings: tuple[CrossingFigures, ...]
    cheaper: tuple[Cheaper, ...]
    declined: tuple[Declined, ...]

    def json(self) -> str:
        """The report as one JSON document."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """The report for a person."""
        lines = ["what runs          nodes     parameters    weight bytes          FLOPs   once per", ""]
        rows = [("whole step", self.whole), *self.parts.items()]
        lines += [
            f"{name:<14}{f.nodes:>10,}{f.parameters:>15,}{f.weight_bytes:>16,}{f.flops:>15,}   {f.runs_once_per}"
            for name, f in rows
        ]
        lines += ["", "class of the whole step's values", ""]
        lines += [
            f"{name:<14}{f.nodes:>10,}{f.parameters:>15,}{f.weight_bytes:>16,}{f.flops:>15,}"
            for name, f in self.classes.items()
        ]
        before, after = self.whole.parameters, self.parts["denoise"].parameters
        change = after / before - 1 if before else 0.0
        lines += [
            "",
            f"parameters in the loop     {before:,} -> {after:,} ({change:+.1%})",
            f"bytes read a step          {self.bytes_read_per_step_before:,} -> {self.bytes_read_per_step_after:,}",
            f"row of one step            {self.row_bytes:,} bytes; {self.table_bytes:,} for {self.steps} steps",
            f"cost of the cut            {self.cost:,.0f} (all in the loop {self.cost_of_nothing:,.0f}, "
            f"all that is legal out {self.cost_of_all:,.0f})",
            f"dims                       {', '.join(f'{name}={size}' for name, size in self.dims.items())}",
            f"steps kept apart           proven {self.rows_checked}",
            "",
            "what crosses                             from      to                      bytes    weight bytes behind",
            "",
        ]
        lines += [
            f"{c.label[-40:]:<41}{c.source:<10}{', '.join(c.targets):<19}{c.num_bytes:>10,}{c.weight_bytes_behind:>23,}"
            for c in self.crossings
        ]
        lines += ["", "what could leave by its class, and is cheaper in the loop (with weights)", ""]
        lines += [f"{k.label[-40:]:<41}{k.value_class:<29}{k.weight_bytes:>10,}" for k in self.cheaper] or ["nothing"]
        lines += ["", "what must stay, though its class would let it leave", ""]
        lines += [f"{d.value}: {d.reason}" for d in self.declined] or ["nothing"]
        return "\n".join(lines) + "\n"
