"""The passes in the order in which they run: a traced graph in, a clean one for a target out.

Existing passes (onnx_ir, onnxscript) do what they do well; our own do what is missing: weights that keep their names
and stay lazy, sizes with symbolic dims, and the operators and opset of a target. No step loads a weight: what is
computed here has at most SMALL elements.
"""

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    OutputFixPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

from export.passes.attention_keys import MergeReshapedTranspose
from export.passes.decompose import DecomposeFunctions
from export.passes.einsum_transpose import EinsumToTranspose
from export.passes.folding import SMALL, fold_constants
from export.passes.fuse_gelu import FuseTanhGelu
from export.passes.neutral import RemoveNeutralOperands
from export.passes.opset import ConvertOpset
from export.passes.sizes import FoldSizes
from export.passes.weights import FoldWeightViews
from export.targets.names import OPSETS, Target

# Of onnxscript's rules those that take nodes away; none makes a new weight or an operator that TensorRT 8.6 lacks.
_NO_OPS = (
    rules.dropout_zero_rule, rules.dropout_inference_rule,
    rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule,
    rules.cast_cast_rule, rules.reshape_reshape_rule, rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule, rules.collapse_slice_rule, rules.collapse_slice2_rule,
)  # fmt: skip


def clean_graph(model: ir.Model, target: Target) -> ir.Model:
    """Cleans `model` in place and returns it; doing it twice is doing it once.

    Raises LatentcError where the graph cannot be written in the target's opset, naming the node and what is possible.
    """
    # Phase 1: one graph of primitive operators, its constants in one place, its weights as they are read.
    ir.passes.Sequential(
        InlinePass(),
        DecomposeFunctions(target),
        InlinePass(),
        RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        TopologicalSortPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        FoldWeightViews(),
    )(model)

    # Phase 2: constants, sizes and no-ops uncover one another; until nothing changes.
    ir.passes.PassManager(
        [
            fold_constants(),
            FoldSizes(),
            EinsumToTranspose(),
            MergeReshapedTranspose(),
            RemoveNeutralOperands(),
            RewritePass(_NO_OPS),
            IdentityEliminationPass(),
            RemoveUnusedNodesPass(),
            LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        ],
        steps=8,
        early_stop=True,
    )(model)

    # Phase 3: one node for what is computed twice, the target's operators and opset, names and outputs in order.
    ir.passes.Sequential(
        DeduplicateInitializersPass(size_limit=SMALL),
        CommonSubexpressionEliminationPass(),
        FuseTanhGelu(target),
        ConvertOpset(OPSETS[target]),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
        OutputFixPass(),
        NameFixPass(),
    )(model)
    return model
