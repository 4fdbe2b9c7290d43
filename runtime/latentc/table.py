"""A solver at one step count, as numbers (docs/bundle-format.md; the runtime knows no solver).

    input_rows  float32 [calls, slots]   what the denoiser sees in call i: sum_k input_rows[i, k] * history[k]
    output_row  float32 [slots]          what the decoder sees
    timesteps   float32 [calls]

slots = 1 + calls + noise_draws: slot 0 is the unit noise, slot 1 + i what call i returned, the rest
the injected noise. A table for an initial image has one slot more, the last: the image's latents.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentc.bundle import Bundle
from latentc.errors import BundleError
from latentc.schema import Table
from latentc.tensors import tensor, tensors_from_bytes


@dataclass(frozen=True)
class SolverTable:
    """The numbers of one table; shapes as in the module's docstring."""

    input_rows: npt.NDArray[np.float32]
    output_row: npt.NDArray[np.float32]
    timesteps: npt.NDArray[np.float32]
    noise_draws: int

    @property
    def calls(self) -> int:
        """How often the denoiser is called: more than the steps for Heun and its like."""
        return len(self.timesteps)

    @property
    def slots(self) -> int:
        """How many latents the history holds."""
        return len(self.output_row)


def table_from_bundle(bundle: Bundle, table: Table, skipped: int | None = None) -> SolverTable:
    """Reads and checks the numbers of `table`; raises BundleError if a call would need its own future.

    `skipped` asks for the table of a request with an initial image, which stands for that many steps.
    """
    tensors = tensors_from_bytes(bundle.view(table.file), table.file)
    calls, draws, prefix = table.calls, table.noise_draws, ""
    if skipped is not None:
        prefix = f"img2img/{skipped}/"
        counts = tensors.get(f"{prefix}counts")
        if counts is None or counts.shape != (2,) or counts.dtype != np.int64:
            raise BundleError(f"{table.file} has no table for an image that stands for {skipped} steps")
        calls, draws = (int(number) for number in counts)
        if not (1 <= calls <= table.calls and 0 <= draws <= table.noise_draws):
            raise BundleError(f"{table.file}: {prefix}counts are out of range")
    slots = 1 + calls + draws + (skipped is not None)
    input_rows = tensor(tensors, f"{prefix}input_rows", (calls, slots), table.file)
    output_row = tensor(tensors, f"{prefix}output_row", (slots,), table.file)
    timesteps = tensor(tensors, f"{prefix}timesteps", (calls,), table.file)
    # row i may use the outputs of calls 0..i-1 only: columns 1..i
    future = np.triu(input_rows[:, 1 : 1 + calls])
    if future.any():
        call = int(np.flatnonzero(future.any(axis=1))[0])
        raise BundleError(f"{table.file}: call {call} uses an output that no call before it has made")
    return SolverTable(input_rows, output_row, timesteps, draws)
