"""latentc sample --stdin: a JSON request a line in, a JSON answer a line out, in order, on warm engines.

A line that cannot be answered with a picture is answered with an error, and the next line is read; what ends the
process is the end of stdin, a reader of stdout that has gone, a signal, or a bug of ours. The protocol is in
docs/low-latency.md.
"""

import sys
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from latentc.commands.drawing import Report, draw
from latentc.commands.job import Wanted, job_of
from latentc.errors import EXIT_INPUT, LatentcError, RequestError
from latentc.memory import Memory
from latentc.progress import Stopwatch
from latentc.session import Session

MAX_LINE_BYTES = 2**20  # texts and paths need far less; a stream without line ends must not fill the memory

Id: TypeAlias = str | int | msgspec.UnsetType


class LineRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of stdin: the flags of `latentc sample`, by their long names; exactly one of `output` and `png`."""

    id: Id = msgspec.UNSET  # comes back in the answer
    prompt: str | list[str] = []
    negative_prompt: str | list[str] = []
    label: str | int | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    solver: str | None = None
    cfg_scale: float | None = None
    guidance: float | None = None
    seed: int | None = None
    batch: int | None = None
    output: str | None = None  # the path of a .png
    png: Literal["base64"] | None = None  # the pictures come in the answer
    separate: bool = False
    latents: str | None = None
    init_image: str | None = None
    strength: float | None = None
    tile: int | None = None
    no_metadata: bool = False


class Answer(Report, frozen=True, kw_only=True):
    """The report of --json, with the request's id."""

    id: Id = msgspec.UNSET


class Failure(msgspec.Struct, frozen=True):
    """Why there is no picture, in one line, and the exit code that the command would have had."""

    error: str
    exit_code: int
    id: Id = msgspec.UNSET


class _Named(msgspec.Struct):
    """The id alone, of a line that is wrong elsewhere."""

    id: Id = msgspec.UNSET


_REQUEST = msgspec.json.Decoder(LineRequest)
_NAMED = msgspec.json.Decoder(_Named)


def serve(session: Session, built: bool, memory: Memory) -> None:
    """Answers every line of stdin on stdout, and returns at its end. An empty line is no request."""
    while line := sys.stdin.buffer.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            _skip_to_line_end()
            answer: Answer | Failure = Failure(f"the line is longer than {MAX_LINE_BYTES} bytes", EXIT_INPUT)
        elif line.strip():
            answer = answer_to(line, session, built, memory)
        else:
            continue
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


def answer_to(line: bytes, session: Session, built: bool, memory: Memory) -> Answer | Failure:
    """Draws what one line asks for, or says in one line why not; nothing that the line can say raises."""
    stopwatch = Stopwatch()
    given: Id = msgspec.UNSET
    try:
        request = _request_from_json(line)
        given = request.id
        job = job_of(session.bundle, _wanted(request))
        report = draw(session, job, stopwatch, built, memory, watched=False)
        return Answer(**{name: getattr(report, name) for name in report.__struct_fields__}, id=given)
    except LatentcError as error:
        return Failure(" ".join(str(error).split()), error.exit_code, _id_of(line) if given is msgspec.UNSET else given)
    except MemoryError:
        return Failure("not enough memory for this request; try a smaller batch, or tile", EXIT_INPUT, given)
    except OSError as error:  # of a path that the system refuses in a way of its own, such as one that is too long
        return Failure(" ".join(str(error).split()), EXIT_INPUT, given)


def _request_from_json(line: bytes) -> LineRequest:
    try:
        request = _REQUEST.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the line is no request: {error}; docs/low-latency.md lists the fields") from None
    for field in request.__struct_fields__:
        value = getattr(request, field)
        # No path may hold a zero byte, and no PNG text; no command line can either.
        if any(isinstance(text, str) and "\0" in text for text in (value if isinstance(value, list) else [value])):
            raise RequestError(f"{field} holds a zero byte; leave it out")
    return request


def _id_of(line: bytes) -> Id:
    """The id of a line that is JSON, whatever else is wrong with it."""
    try:
        return _NAMED.decode(line).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.UNSET


def _wanted(request: LineRequest) -> Wanted:
    """The same request as the command line would have made it."""
    if (request.output is None) == (request.png is None):
        raise RequestError('give output (the path of a .png) or "png": "base64", one of them')
    return Wanted(
        output=_path(request.output),
        prompts=_texts(request.prompt),
        negative_prompts=_texts(request.negative_prompt),
        label=None if request.label is None else str(request.label),
        width=request.width,
        height=request.height,
        steps=request.steps,
        solver=request.solver,
        cfg_scale=request.cfg_scale,
        guidance=request.guidance,
        seed=request.seed,
        batch=request.batch,
        separate=request.separate,
        latents=_path(request.latents),
        init_image=_path(request.init_image),
        strength=request.strength,
        tile=request.tile,
        no_metadata=request.no_metadata,
    )


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)


def _texts(given: str | list[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _skip_to_line_end() -> None:
    while (rest := sys.stdin.buffer.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass
