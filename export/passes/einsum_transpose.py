"""Einsum of one operand that only permutes its dims becomes Transpose, which every backend merges or makes free.

DiT's unpatchify is `nhwpqc->nchpwq`. Anything that sums, repeats or broadcasts is left to Einsum.
"""

import onnx_ir as ir


class EinsumToTranspose(ir.passes.InPlacePass):
    """Einsum(x, "abc->cab") -> Transpose(x, perm=[2, 0, 1])."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type != "Einsum" or node.domain != "" or len(node.inputs) != 1:
                continue
            source, arrow, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
            if not arrow or sorted(source) != sorted(result) or len(set(source)) < len(source) or "." in source:
                continue
            permutation = [source.index(letter) for letter in result]
            transpose = ir.node("Transpose", node.inputs, {"perm": permutation}, name=node.name)
            transpose.metadata_props.update(node.metadata_props)
            old, new = node.outputs[0], transpose.outputs[0]
            new.shape, new.type, new.name = old.shape, old.type, old.name
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [transpose], [old], [new])
            modified = True
        return ir.passes.PassResult(model, modified)
