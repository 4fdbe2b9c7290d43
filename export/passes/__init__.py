"""Graph passes on `onnx_ir`, one a file, and the list in which they run (export/passes/pipeline.py)."""

from export.passes.pipeline import clean_graph

__all__ = ["clean_graph"]
