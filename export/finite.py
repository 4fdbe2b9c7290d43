"""Finds NaN and infinity in a tensor that passes by in blocks, by the bits of its elements and without a copy of it.

Of an IEEE 754 number without its sign, taken as an unsigned integer, the order of integers is the order of magnitudes;
infinity is all exponent bits, and NaN is what lies above. So one maximum says all that a finite block has to say.
"""

import numpy as np
import onnx_ir as ir

from models.latent_diffusion import SourceError

# Unsigned type of the same width, magnitude of infinity.
_INFINITY: dict[ir.DataType, tuple[type[np.unsignedinteger], int]] = {
    ir.DataType.FLOAT16: (np.uint16, 0x7C00),
    ir.DataType.BFLOAT16: (np.uint16, 0x7F80),
    ir.DataType.FLOAT: (np.uint32, 0x7F80_0000),
    ir.DataType.DOUBLE: (np.uint64, 0x7FF0_0000_0000_0000),
}


class FiniteCheck:
    """Fed with all blocks of one tensor, says what is wrong with its values."""

    def __init__(self, dtype: ir.DataType) -> None:
        self._bits = _INFINITY.get(dtype)  # integers and strings are always right
        self._size = self._nan = self._infinite = self._positive_infinite = 0
        self._room = np.empty(0, np.uint8)  # for the magnitudes of a block
        self._other = False  # whether anything but 0 and infinity is in it

    def feed(self, block: np.ndarray) -> None:
        """block: one dim, contiguous, of the tensor's dtype."""
        if self._bits is None or not block.size:
            return
        unsigned, infinity = self._bits
        bits = block.view(unsigned)
        if self._room.size < bits.size or self._room.dtype != unsigned:
            self._room = np.empty(bits.size, unsigned)
        magnitude = np.bitwise_and(bits, unsigned(2 ** (8 * bits.itemsize - 1) - 1), out=self._room[: bits.size])
        self._size += magnitude.size
        largest = int(magnitude.max())
        if largest < infinity:
            self._other |= largest > 0
            return
        self._nan += int(np.count_nonzero(magnitude > infinity))
        is_infinite = magnitude == infinity
        self._infinite += int(np.count_nonzero(is_infinite))
        self._positive_infinite += int(np.count_nonzero(bits == infinity))
        self._other |= bool(np.any((magnitude > 0) & (magnitude < infinity)))

    def require(self, name: str) -> None:
        """Raises SourceError, which calls the tensor `name`, unless all of it can be computed with."""
        if self.problem is not None:
            raise SourceError(f"{name} holds {self.problem}; nothing can be drawn with that: fetch the source again")

    @property
    def problem(self) -> str | None:
        """Counts for a person; None if all is finite, or if it is an attention mask (0 and -inf, nothing else)."""
        is_mask = not (self._nan or self._positive_infinite or self._other)
        if not (self._nan or self._infinite) or is_mask:
            return None
        counts = [f"{count} {what}" for count, what in ((self._nan, "NaN"), (self._infinite, "infinite")) if count]
        return f"{' and '.join(counts)} of {self._size} elements"
