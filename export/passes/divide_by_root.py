"""x · Reciprocal(Sqrt(v)) becomes x / Sqrt(v): the form in which ONNX Runtime finds an RMS normalisation.

torch.rsqrt is traced as Sqrt and Reciprocal. At load ONNX Runtime 1.31 makes one SimplifiedLayerNormalization of Pow,
ReduceMean, Add, Sqrt, Div and Mul, and leaves the seven nodes of the other form. FLUX and SD3.5 have two such
normalisations in each attention and stream (of queries and keys).
"""

import onnx_ir as ir


class DivideByRoot(ir.passes.InPlacePass):
    """Where the reciprocal is read by products only; a result may change by its last bit."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type != "Reciprocal" or node.domain or node.outputs[0].is_graph_output():
                continue
            root = node.inputs[0].producer() if node.inputs[0] is not None else None
            readers = list(node.outputs[0].consumers())
            if root is None or root.op_type != "Sqrt" or not all(_is_product(reader) for reader in readers):
                continue
            for product in readers:
                _divide(model.graph, product, node.outputs[0], root.outputs[0])
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def _is_product(node: ir.Node) -> bool:
    left, right = (*node.inputs, None)[:2]
    return node.op_type == "Mul" and not node.domain and left is not right


def _divide(graph: ir.Graph, product: ir.Node, reciprocal: ir.Value, root: ir.Value) -> None:
    (dividend,) = (value for value in product.inputs if value is not reciprocal)
    node = ir.node("Div", [dividend, root], name=product.name)
    node.metadata_props.update(product.metadata_props)
    old = product.outputs[0]
    node.outputs[0].shape, node.outputs[0].type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, product, [product], [node], [old], node.outputs)
