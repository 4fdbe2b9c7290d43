"""Reshape, Transpose, Reshape around the keys of an attention become one Transpose.

torch.onnx.export writes the transposition of the keys in scaled_dot_product_attention (onnxscript's
`aten_scaled_dot_product_attention`) as: flatten the leading dims, swap the last two, restore the leading dims. One
Transpose says the same, merges with the one before it, and is what backends look for when they fuse attention.
"""

import onnx_ir as ir


class MergeReshapedTranspose(ir.passes.InPlacePass):
    """x [*lead, m, n] -> Reshape [k, m, n] -> Transpose(0, 2, 1) -> Reshape [*lead, n, m] is one Transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.declined: list[tuple[str, str]] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.declined = []
        modified = False
        for node in list(model.graph):
            if node.op_type == "Transpose" and _permutation(node) == [0, 2, 1]:
                modified |= self._merge(model.graph, node)
        return ir.passes.PassResult(model, modified)

    def _merge(self, graph: ir.Graph, transpose: ir.Node) -> bool:
        flattened = transpose.inputs[0]
        assert flattened is not None
        flatten, users = flattened.producer(), list(transpose.outputs[0].consumers())
        if flatten is None or flatten.op_type != "Reshape" or not users or users[0].op_type != "Reshape":
            return False
        if len(users) > 1 or transpose.outputs[0].is_graph_output():
            return self._decline(transpose, "the transposed value is read by others too")
        source, result = flatten.inputs[0], users[0].outputs[0]
        assert source is not None
        if source.shape is None or flattened.shape is None or result.shape is None:
            return self._decline(transpose, "a shape around it is unknown")
        before, flat, after = list(source.shape), list(flattened.shape), list(result.shape)
        if len(before) < 3 or len(after) != len(before):
            return self._decline(transpose, f"{before} to {after} is no swap of the two last dims")
        if flat[-2:] != before[-2:] or after[-2:] != [before[-1], before[-2]]:
            return self._decline(transpose, f"{before} through {flat} to {after} regroups elements")
        # The leading dims are restored one by one; a size that is unknown on either side is not proven equal, and two
        # sizes that may be one number would be swapped unseen.
        if after[:-2] != before[:-2] or ir.SymbolicDim(None) in before:
            return self._decline(transpose, f"the leading dims {after[:-2]} are not proven to be {before[:-2]}")
        rank = len(before)
        merged = ir.node("Transpose", [source], {"perm": [*range(rank - 2), rank - 1, rank - 2]}, name=transpose.name)
        merged.metadata_props.update(transpose.metadata_props)
        merged.outputs[0].shape, merged.outputs[0].type = result.shape, result.type
        ir.convenience.replace_nodes_and_values(graph, users[0], [users[0]], [merged], [result], merged.outputs)
        graph.remove(transpose, safe=True)
        return True

    def _decline(self, node: ir.Node, why: str) -> bool:
        self.declined.append((node.name or "", why))
        return False


def _permutation(node: ir.Node) -> list[int] | None:
    given = node.attributes.get("perm")
    return list(given.as_ints()) if given is not None else None
