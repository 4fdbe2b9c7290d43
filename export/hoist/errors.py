"""What makes a graph or its input classes unusable for hoisting; each message is one line."""

from latentc.errors import LatentcError


class HoistError(LatentcError):
    """A traced graph cannot be partitioned over the sampling loop."""


class UnknownInputError(HoistError):
    """The input classes and the inputs of the graph are not the same names."""


class UnusedInputError(HoistError):
    """An input is declared, and no node reads it."""


class NotALoopError(HoistError):
    """An output does not depend on the latents: there would be nothing to repeat."""


class UnsupportedNodeError(HoistError):
    """A node that cannot be moved safely: it has a subgraph, it is random, or it calls a function."""
