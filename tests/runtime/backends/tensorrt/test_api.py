"""What is called exists: in the real bindings of 8.6, 10.3, 10.13 and 11.4, of the lean runtime, and of cuda-bindings.

api/*.json were read off the real wheels (record_api.py, record_cuda.py). The fake refuses what a version does not have,
so the tests beside this one call nothing else; here it is held that the fake itself invents nothing.
"""

import ast
import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path

import latentc
import pytest

from tests.runtime.backends.tensorrt import fake_cuda, fake_tensorrt, record_cuda

API = fake_tensorrt.API
FULL = sorted(API.glob("tensorrt-*.json"))
LEAN = sorted(API.glob("tensorrt_lean-*.json"))
CUDA = sorted(API.glob("cuda-bindings-*.json"))

# What is called without asking whether it is there, by what a device needs and what a build needs.
RUNS = {
    "Runtime": ["deserialize_cuda_engine", "engine_host_code_allowed"],
    "ICudaEngine": [
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "num_io_tensors",
    ],
    "IExecutionContext": [
        "active_optimization_profile",
        "set_optimization_profile_async",
        "execute_async_v3",
        "get_tensor_shape",
        "set_input_shape",
        "set_tensor_address",
    ],
    "ILogger": ["Severity", "log"],
    "Refitter": ["get_missing_weights", "refit_cuda_engine", "set_named_weights"],
}
BUILDS = {
    "Builder": [
        "build_serialized_network", "create_builder_config", "create_network", "create_optimization_profile",
    ],
    "IBuilderConfig": [
        "add_optimization_profile", "builder_optimization_level", "clear_flag", "create_timing_cache",
        "get_timing_cache", "hardware_compatibility_level", "set_flag", "set_memory_pool_limit", "set_preview_feature",
        "set_timing_cache",
    ],
    "INetworkDefinition": ["get_input", "get_layer", "num_inputs", "num_layers"],
    "OnnxParser": ["get_error", "num_errors", "parse"],
    "ParserError": ["desc", "node"],
    "IOptimizationProfile": ["set_shape"],
    "ITimingCache": ["serialize"],
}  # fmt: skip


def table(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    return json.loads(path.read_text())


def test_the_tables_are_there() -> None:
    assert [path.stem for path in FULL] == [
        "tensorrt-10.13.3.9",
        "tensorrt-10.3.0",
        "tensorrt-11.4.0.106",
        "tensorrt-8.6.1",
    ]
    assert [path.stem for path in LEAN] == ["tensorrt_lean-10.3.0", "tensorrt_lean-11.4.0.106"]
    assert len(CUDA) == 2


@pytest.mark.parametrize("path", FULL + LEAN, ids=lambda path: path.stem)
def test_what_is_always_called_is_in_every_version(path: Path) -> None:
    classes = table(path)["classes"]
    for name, members in {**RUNS, **({} if "lean" in path.stem else BUILDS)}.items():
        missing = [member for member in members if member not in classes[name]]
        assert not missing, f"{path.stem}: {name} has no {missing}"


def test_what_is_asked_for_by_feature_is_in_some_versions_and_not_in_others() -> None:
    """If this fails, a `hasattr` of ours asks for what all versions have, or none."""
    found = {path.stem.partition("-")[2]: table(path) for path in FULL}

    def having(kind: str, owner: str, member: str) -> list[str]:
        return sorted(
            (v for v, t in found.items() if member in t[kind].get(owner, ())), key=lambda v: int(v.split(".")[0])
        )

    new = ["10.13.3.9", "10.3.0", "11.4.0.106"]
    assert having("enums", "NetworkDefinitionCreationFlag", "STRONGLY_TYPED") == new
    assert having("enums", "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH") == ["8.6.1", "10.13.3.9", "10.3.0"]
    assert having("enums", "ExecutionContextAllocationStrategy", "USER_MANAGED") == new
    assert having("classes", "IExecutionContext", "update_device_memory_size_for_shapes") == new
    assert having("classes", "IExecutionContext", "set_device_memory") == new
    assert having("classes", "IBuilderConfig", "progress_monitor") == new
    assert having("classes", "OnnxParserRefitter", "refit_from_bytes") == new
    assert having("classes", "ICudaEngine", "weight_streaming_budget_v2") == new
    for flag in ("STRIP_PLAN", "REFIT_IDENTICAL", "WEIGHT_STREAMING"):
        assert having("enums", "BuilderFlag", flag) == new
    assert having("enums", "BuilderFlag", "FP16") == ["8.6.1", "10.13.3.9", "10.3.0"]
    assert "OnnxParserRefitter" not in table(LEAN[0])["classes"]
    assert "8.6.1" in having("classes", "ICudaEngine", "create_execution_context_without_device_memory")
    for flag in ("TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"):
        assert len(having("enums", "BuilderFlag", flag)) == 4


def test_the_fake_has_nothing_that_no_version_has() -> None:
    real: dict[str, set[str]] = {}
    for path in FULL + LEAN:
        for name, members in table(path)["classes"].items():
            real.setdefault(name, set()).update(members)
    for name, cls in fake_tensorrt.CLASSES.items():
        public = {member for member in vars(cls) if member[0] != "_"}
        assert not public - real[name], name


def test_nothing_of_tensorrt_is_named_that_no_version_has() -> None:
    """Every attribute that the backend's source asks of anything, if it looks like TensorRT's, is TensorRT's."""
    known: set[str] = set()
    for path in FULL + LEAN:
        for members in table(path)["classes"].values():
            known |= members.keys()
    folder = Path(latentc.__file__).parent / "backends/tensorrt"
    names = {
        node.attr
        for source in folder.glob("*.py")
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith(("get_", "set_", "create_", "execute_", "deserialize_"))
    }
    own = {"set_address", "create_context"}
    assert len(names) > 15
    assert not {name for name in names if name not in known and name not in own}


@pytest.mark.parametrize("path", CUDA, ids=lambda path: path.stem)
def test_calls_of_cuda_are_in_the_real_binding_with_as_many_arguments(path: Path) -> None:
    recorded = json.loads(path.read_text())
    assert sorted(recorded) == record_cuda.names(), f"run record_cuda.py again for {path.stem}"
    for name, signature in recorded.items():
        if "(" not in signature:
            continue
        inside = signature[signature.index("(") + 1 : signature.rindex(")")]
        real = len([part for part in inside.split(",") if part.strip()])
        fake = getattr(fake_cuda.FakeCuda, name, None)
        assert fake is not None, name
        assert len(inspect.signature(fake).parameters) - 1 == real, signature


def test_the_lean_binding_that_is_installed_has_what_is_called() -> None:
    if importlib.util.find_spec("tensorrt_lean") is None:
        pytest.skip("tensorrt_lean is not installed: 46 MB, looked at in api/*.json instead")
    # In a process of its own: a Runtime must never be made where there is no GPU, and nothing here may try.
    check = "for c, ms in names.items():\n for m in ms: assert hasattr(getattr(t, c), m), (c, m)"
    script = f"import tensorrt_lean as t\nnames = {RUNS!r}\n{check}"
    subprocess.run([sys.executable, "-c", script], check=True)
