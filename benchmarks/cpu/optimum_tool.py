"""optimum's pipelines: ONNX Runtime's (optimum-onnx) and OpenVINO's (optimum-intel), exported by their own command."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cpu.diffusers_tool import drawing
from benchmarks.cpu.worker import Draw, Job

EXPORTS = {"optimum-onnx": "onnx", "optimum-intel": "openvino"}


def convert(tool: str, job: Job) -> None:
    """`optimum-cli export onnx` or `openvino`, in float32; RuntimeError with its last error."""
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", EXPORTS[tool]]
    command += ["--model", job["source"], "--task", "text-to-image"]
    command += ["--weight-format", "fp32"] if tool == "optimum-intel" else []
    done = subprocess.run([*command, job["converted"]], capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line.partition(":")[0]]
        raise RuntimeError(f"optimum-cli: {(errors or lines or ['no word'])[-1]}")


def load_onnx(job: Job) -> tuple[str, Draw]:
    """ORTDiffusionPipeline on the CPU."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTDiffusionPipeline

    torch.set_num_threads(job["threads"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    pipeline: Any = ORTDiffusionPipeline.from_pretrained(job["converted"], session_options=options)
    return f"optimum-onnx, onnxruntime {onnxruntime.__version__}", drawing(job, pipeline)


def load_intel(job: Job) -> tuple[str, Draw]:
    """OVDiffusionPipeline, compiled for the size that is drawn where it can be."""
    import openvino
    import torch
    from optimum.intel import OVDiffusionPipeline

    torch.set_num_threads(job["threads"])
    settings = {
        "INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
        "CACHE_DIR": str(Path(job["converted"]) / "cache"),
    }  # fmt: skip
    pipeline: Any = OVDiffusionPipeline.from_pretrained(job["converted"], ov_config=settings)
    return f"optimum-intel, openvino {openvino.__version__}", drawing(job, pipeline)
