"""The errors that a user can cause, each with the exit code that the command line gives it.

A message is one line: what was given, what is possible, what to do. Anything else that is raised
in latentc is a bug of ours and keeps its traceback.
"""

EXIT_INPUT = 1
EXIT_USAGE = 2
EXIT_PARITY = 3


class LatentcError(ValueError):
    """Something that the user gave cannot be used; `str(error)` is the one line that says so."""

    exit_code = EXIT_INPUT


class BundleError(LatentcError):
    """A bundle is missing, incomplete, damaged, or of a schema that this version does not read."""


class RequestError(LatentcError):
    """A request asks for what the bundle does not hold: a label, solver, step count or size."""


class BackendError(LatentcError):
    """A backend is not installed or cannot run a graph on this machine."""


class ParityError(LatentcError):
    """Two computations that must agree do not: names the tensor, the measure and the bound."""

    exit_code = EXIT_PARITY
