"""From a graph to a plan: the builder's configuration, the profile, the build.

    network → config (flags, memory, level, timing cache, progress) → profile → serialized plan

TF32 is switched off: float32 in a bundle is an island that must not lose bits, and its products are few.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentc.backends.options import EngineOptions
from latentc.backends.tensorrt.complaints import builder_complaint
from latentc.backends.tensorrt.library import Library
from latentc.backends.tensorrt.network import Network, has_half, network_from_graph
from latentc.backends.tensorrt.profiles import Profile
from latentc.backends.tensorrt.progress import attach_progress
from latentc.backends.tensorrt.timing_cache import attach_timing_cache, keep_timing_cache
from latentc.bundle import GraphBytes
from latentc.errors import BackendError

# Options that are a flag of the builder: (option, the flags that it needs, since when they are there)
_FLAGS = (
    # Without EXCLUDE_LEAN_RUNTIME a plan brings host code with it, which we never allow a plan to run.
    ("version_compatible", ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"), "8.6"),
    ("strip_weights", ("STRIP_PLAN", "REFIT_IDENTICAL"), "10.0"),
    ("weight_streaming", ("WEIGHT_STREAMING",), "10.0"),
)

_PREVIEWS = (
    # Contexts for several shapes and several lanes share the one profile: 8.6 forbids it by default, 10 allows it, 11
    # has no such switch any more.
    "PROFILE_SHARING_0806",
    # Small shapes take little memory, though the profile allows large ones (10.10 and newer).
    "RUNTIME_ACTIVATION_RESIZE_10_10",
)


def plan_of(
    library: Library,
    graph: GraphBytes,
    profiles: Mapping[str, Profile],
    options: EngineOptions,
    timings: tuple[Path, str] | None,
) -> memoryview:
    """The plan of `graph`, in memory of TensorRT's.

    `timings` is the directory and target of the timing cache, None to do without one.
    """
    check_options(library, options)
    network = network_from_graph(library, graph)
    config = network.builder.create_builder_config()
    _configure(library, config, network, options)
    _add_profile(network, config, profiles)
    if timings is not None:
        attach_timing_cache(config, *timings)
    monitor = attach_progress(library, config, f"build {graph.name}")
    library.complaints()
    plan = network.builder.build_serialized_network(network.definition, config)
    del monitor
    if plan is None:
        raise BackendError(builder_complaint(library.complaints(), graph.name, network.onnx))
    if timings is not None:
        keep_timing_cache(config, *timings)
    return memoryview(plan)


def check_options(library: Library, options: EngineOptions) -> None:
    """Refuses what this TensorRT does not have, or what excludes each other, before minutes are spent."""
    if not library.can_build:
        raise BackendError(
            "the lean runtime cannot build engines; pip install tensorrt (on Jetson it comes with JetPack)"
        )
    for option, flags, since in _FLAGS:
        if getattr(options, option) and not all(library.has("BuilderFlag", flag) for flag in flags):
            flag = "--" + option.replace("_", "-")
            raise BackendError(f"{flag} needs TensorRT {since} or newer; this is {library.version}")
    if options.hardware_compatible and not library.has("HardwareCompatibilityLevel", "AMPERE_PLUS"):
        raise BackendError(f"--hardware-compatible needs TensorRT 8.6 or newer; this is {library.version}")
    if options.strip_weights and options.weight_streaming is not None:
        raise BackendError(
            "--strip-weights and --weight-streaming exclude each other: stripped weights cannot be streamed"
        )


def _configure(library: Library, config: Any, network: Network, options: EngineOptions) -> None:
    config.clear_flag(library.member("BuilderFlag", "TF32"))
    if not network.strongly_typed:
        if has_half(network.onnx):
            config.set_flag(library.member("BuilderFlag", "FP16"))
        config.set_flag(library.member("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS"))
    for feature in _PREVIEWS:
        if library.has("PreviewFeature", feature):
            config.set_preview_feature(library.member("PreviewFeature", feature), True)
    for option, flags, _ in _FLAGS:
        if getattr(options, option):
            for flag in flags:
                config.set_flag(library.member("BuilderFlag", flag))
    if options.hardware_compatible:
        config.hardware_compatibility_level = library.member("HardwareCompatibilityLevel", "AMPERE_PLUS")
    if options.workspace is not None:
        config.set_memory_pool_limit(library.member("MemoryPoolType", "WORKSPACE"), options.workspace)
    if options.opt_level is not None:
        config.builder_optimization_level = options.opt_level


def _add_profile(network: Network, config: Any, profiles: Mapping[str, Profile]) -> None:
    """One profile: a second one would be a second set of everything."""
    if not profiles:  # a graph without symbolic dims
        return
    profile = network.builder.create_optimization_profile()
    parsed = {network.definition.get_input(index).name for index in range(network.definition.num_inputs)}
    for name, shapes in profiles.items():
        if name in parsed:
            profile.set_shape(name, shapes.least, shapes.best, shapes.most)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError("TensorRT does not take the shapes of the profile")
