"""Constant folding that makes nothing large: onnxscript's folder, held to small inputs and small results."""

import onnx_ir as ir
from onnxscript.optimizer import _constant_folding

SMALL = 1024  # elements; sizes, axes, scalars, the frequencies of an embedding


def fold_constants() -> ir.passes.InPlacePass:
    """Folds what has at most SMALL elements at every input and every output.

    onnxscript folds a Transpose of a weight of any size, at once and under a new name (`val_119` for `to_q.weight`):
    that loads it, and a report can no longer name it. FoldWeightViews does those, lazily.
    """
    return _constant_folding.FoldConstantsPass(  # type: ignore[no-any-return]
        shape_inference=True, input_size_limit=SMALL, output_size_limit=SMALL, should_fold=_small
    )


def _small(node: ir.Node) -> bool | None:
    """False: leave it; None: onnxscript decides, by the same limits and its list of what is never folded."""
    for value in node.inputs:
        if value is not None and value.const_value is not None and value.const_value.size > SMALL:
            return False
    for value in node.outputs:
        # The limit on results holds after they were computed: an Expand to 4096 x 4096 would be made and thrown away.
        if value.shape is not None and value.shape.is_static() and _elements(value.shape) > SMALL:
            return False
    return None


def _elements(shape: ir.Shape) -> int:
    total = 1
    for dim in shape:
        assert isinstance(dim, int)
        total *= dim
    return total
