"""What `latentc build` can be told about the engines that it makes; every backend says which of it means something to it."""

from dataclasses import dataclass, fields

AUTOMATIC = -1  # weight_streaming: the budget is TensorRT's own choice


@dataclass(frozen=True)
class EngineOptions:
    """The options of a build. None, False and () are "not given"."""

    workspace: int | None = None  # bytes of scratch memory that a kernel may take
    opt_level: int | None = None  # 0 (quick build) to 5 (quick engine)
    version_compatible: bool = False  # newer TensorRT of the same major version, and the lean runtime, may run it
    hardware_compatible: bool = False  # every GPU from Ampere on may run it
    strip_weights: bool = False  # the plan holds no weights; they come from the bundle when it is loaded
    weight_streaming: int | None = None  # bytes of weights that stay on the GPU; the others come from the host
    batch: int | None = None  # the most pictures of one request
    sizes: tuple[tuple[int, int], ...] = ()  # width, height in pixels: the engines are for these and all between

    def given(self) -> list[str]:
        """The flags that were given, as the user wrote them."""
        return [
            "--" + {"sizes": "size"}.get(field.name, field.name).replace("_", "-")
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]

    def record(self) -> dict[str, str]:
        """What an engine depends on, for its record: the options that were given."""
        return {
            field.name: str(getattr(self, field.name))
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
