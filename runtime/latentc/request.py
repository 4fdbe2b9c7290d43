"""Turns what the user asked for into what the bundle can do, or into one line that says why not."""

import math
from dataclasses import dataclass

from latentc.errors import RequestError
from latentc.schema import Manifest, Table

MAX_IMAGES = 1024  # of one batch; more is a mistake, or a loop around this command
_MAX_LISTED = 12


@dataclass(frozen=True)
class Asked:
    """The options of one request as the user gave them; None is "not given"."""

    label: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    solver: str | None = None
    cfg_scale: float | None = None
    guidance: float | None = None
    count: int | None = None


@dataclass(frozen=True)
class Request:
    """What is to be drawn, all of it known to the bundle. `labels` has one number for each image."""

    label: str
    labels: tuple[int, ...]
    table: Table
    cfg_scale: float


def resolve(manifest: Manifest, asked: Asked, batch: int | None = None) -> Request:
    """The request, or RequestError. `batch` is the number of images that given latents ask for."""
    _refuse_unused(manifest, asked)
    label, number = _label(manifest, asked.label)
    count = asked.count if asked.count is not None else batch or 1
    if batch is not None and count != batch:
        raise RequestError(f"-b {count} does not fit --latents, which hold {batch}; leave -b away")
    if not 1 <= count <= MAX_IMAGES:
        raise RequestError(f"-b {count} is out of range; give 1 to {MAX_IMAGES}")
    cfg_scale = manifest.defaults.cfg_scale if asked.cfg_scale is None else asked.cfg_scale
    if not math.isfinite(cfg_scale) or cfg_scale < 0:
        raise RequestError(f"--cfg-scale {cfg_scale} is out of range; give 0 or more (1 and less is no guidance)")
    return Request(label, (number,) * count, _table(manifest, asked.solver, asked.steps), cfg_scale)


def _refuse_unused(manifest: Manifest, asked: Asked) -> None:
    """Options that mean nothing to a class-label model would be ignored in silence."""
    if asked.prompt is not None or asked.negative_prompt is not None:
        flag = "-p" if asked.prompt is not None else "-n"
        raise RequestError(f"{flag} is for text-to-image models; {manifest.name} draws classes: give --label NAME")
    if asked.guidance is not None:
        raise RequestError(f"--guidance is for guidance-distilled models; {manifest.name} has --cfg-scale")
    size, has = (asked.width, asked.height), (manifest.image.width, manifest.image.height)
    if any(given not in (None, own) for given, own in zip(size, has, strict=True)):
        given = "x".join(str(own if value is None else value) for value, own in zip(size, has, strict=True))
        raise RequestError(f"no size {given}; this bundle draws {has[0]}x{has[1]} only: export with --size {given}")


def _label(manifest: Manifest, given: str | None) -> tuple[str, int]:
    """The name and number of a label that is given by either; names come first."""
    labels = manifest.conditioning.labels
    names = sorted(labels, key=lambda name: labels[name])
    if given is None:
        raise RequestError(f"which one? give --label NAME: {_listed(names)}")
    if given in labels:
        return given, labels[given]
    numbers = {number: name for name, number in reversed(labels.items())}
    numbers.setdefault(manifest.conditioning.null_label, "unconditional")
    if given.isascii() and given.isdigit() and len(given) < 10:
        if int(given) in numbers:
            return numbers[int(given)], int(given)
        raise RequestError(f"no label {given}; numbers are {min(numbers)} to {max(numbers)}")
    raise RequestError(f"no label {given!r}; {_nearest(given, names)}")


def _table(manifest: Manifest, solver: str | None, steps: int | None) -> Table:
    """The table of a solver, by its short name or its diffusers class, and a step count."""
    by_class = {record.scheduler: name for name, record in manifest.solvers.items()}
    name = manifest.defaults.solver if solver is None else by_class.get(solver, solver)
    counts = sorted(table.steps for table in manifest.tables if table.solver == name)
    if not counts:
        known = sorted({table.solver for table in manifest.tables})
        raise RequestError(f"no solver {name!r}; {_nearest(name, known)}; export with --solver adds others")
    wanted = manifest.defaults.steps if steps is None else steps
    for table in manifest.tables:
        if (table.solver, table.steps) == (name, wanted):
            return table
    todo = f"export with --steps {wanted}" if wanted > 0 else "give one of these"
    raise RequestError(f"no table for {wanted} steps of {name}; this bundle has {_listed(counts)}: {todo}")


def _nearest(given: str, known: list[str]) -> str:
    """Did you mean this one, and what there is."""
    import difflib  # 7 ms that only a mistake has to pay

    near = difflib.get_close_matches(given.lower(), known, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"this bundle has {_listed(known)}"


def _listed(values: list[str] | list[int]) -> str:
    shown = ", ".join(str(value) for value in values[:_MAX_LISTED])
    return shown if len(values) <= _MAX_LISTED else f"{shown}, … ({len(values)} in all; latentc inspect lists them)"
