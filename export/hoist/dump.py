"""Writes a partition to a directory: the report, where every node went, and the graphs before and after.

The graphs are for reading (Netron shows them): weights of more than 1 KB are named by shape and dtype, and not written.
"""

from pathlib import Path

import onnx_ir as ir

from export.hoist.partition import Partition

INLINE_BYTES = 1024


def write_dump(directory: Path, partition: Partition) -> None:
    """Writes `partition.txt`, `partition.json`, `nodes.tsv` and one .onnx file for the whole and for every part."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "partition.txt").write_text(partition.report.table(), encoding="utf-8")
    (directory / "partition.json").write_text(partition.report.json() + "\n", encoding="utf-8")
    lines = ["node\toperator\tvalue\tclass\tparts\tweight bytes"]
    lines += [
        f"{p.node}\t{p.operator}\t{p.value}\t{p.value_class}\t{','.join(p.parts)}\t{p.weight_bytes}"
        for p in partition.placements
    ]
    (directory / "nodes.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    graphs = {
        "0-whole": partition.whole,
        "1-prompt": partition.prompt,
        "2-schedule": partition.schedule,
        "3-denoise": partition.denoise,
    }
    for name, model in graphs.items():
        if model is not None:
            ir.save(without_weights(model, name), directory / f"{name}.onnx")


def without_weights(model: ir.Model, name: str) -> ir.Model:
    """A copy whose large initializers point to a file that is not written."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > INLINE_BYTES:
            value.const_value = ir.ExternalTensor(
                f"{name}.weights", 0, tensor.nbytes, tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()), name=value.name or "", base_dir="",
            )  # fmt: skip
    return copy
