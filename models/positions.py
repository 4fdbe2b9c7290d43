"""The sine and cosine table of diffusers' `PatchEmbed`, computed in the graph for any grid.

Legend: gh, gw = rows and columns of patches, D = the transformer's width.

`PatchEmbed` computes a table for another size than the checkpoint's in Python, in float64, from the shape of the
latents: a tracer would store the table of the example. Here it is a function of the grid's coordinates, which are
inputs, so the table leaves the loop and follows the size. Float32 throughout (TensorRT has no float64): coordinates
stay below 64 in the published models, so an angle is exact to 4e-6, and so is the table.
"""

import torch
from diffusers.models.embeddings import PatchEmbed
from torch import Tensor, nn

MAX_PERIOD = 10000  # get_1d_sincos_pos_embed_from_grid's, which PatchEmbed does not change


class SincosPositions(nn.Module):
    """Positions of a grid: coordinates [gh] and [gw] -> table [1, gh·gw, D], columns before rows."""

    def __init__(self, patches: PatchEmbed) -> None:
        super().__init__()
        quarter = patches.proj.out_channels // 4  # sine and cosine, of rows and of columns
        exponents = torch.arange(quarter, dtype=torch.float64) / quarter
        self.frequencies: Tensor
        self.register_buffer("frequencies", (1.0 / MAX_PERIOD**exponents).float(), persistent=False)  # [D/4]
        self.base_size: int = patches.base_size
        self.interpolation_scale: float = patches.interpolation_scale

    def forward(self, grid_rows: Tensor, grid_columns: Tensor) -> Tensor:
        """grid_rows [gh] and grid_columns [gw], each 0, 1, 2, …; arXiv 1706.03762, section 3.5, for either axis."""
        rows, columns = self._axis(grid_rows), self._axis(grid_columns)  # [gh, D/2], [gw, D/2]
        shape = (grid_rows.shape[0], grid_columns.shape[0], rows.shape[1])
        table = torch.cat([columns[None].expand(shape), rows[:, None].expand(shape)], dim=-1)  # [gh, gw, D]
        return table.flatten(0, 1)[None]  # [1, gh·gw, D]

    def _axis(self, coordinates: Tensor) -> Tensor:
        size = coordinates[-1:] + 1  # [1]; every picture spans the same interval, whatever its size
        scaled = coordinates / (size / self.base_size) / self.interpolation_scale
        angles = scaled[:, None] * self.frequencies  # [size, D/4]
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)
