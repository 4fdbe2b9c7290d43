"""The targets by name, and the opset that is written for each."""

from typing import Literal, get_args

Target = Literal["onnxruntime", "tensorrt-8.6", "tensorrt-10.3", "tensorrt-11"]

TARGETS: tuple[Target, ...] = get_args(Target)

# TensorRT 8.6 parses opset 17 and no later one (JetPack 6.0); 18 is what all others read, and what is traced.
OPSETS: dict[Target, int] = {"onnxruntime": 18, "tensorrt-8.6": 17, "tensorrt-10.3": 18, "tensorrt-11": 18}
