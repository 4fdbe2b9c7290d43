"""OpenVINO around diffusers: denoiser and decoder by openvino.convert_model, all else the pipeline's own.

A model is converted once, with symbolic shapes, and compiled for the shapes that it meets, which is what runs fastest;
what was compiled is kept in `converted` (CACHE_DIR), so that a later process starts faster.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.cpu.diffusers_tool import call, drawing, pipeline_of
from benchmarks.cpu.worker import Draw, Job

DENOISER, DECODER, NAMES = "denoiser.xml", "decoder.xml", "names.json"


def convert_openvino(job: Job) -> None:
    """Traces both as the pipeline calls them, in one step of one picture, and writes two IRs and the inputs' names."""
    import openvino
    import torch

    class Positional(torch.nn.Module):
        """The denoiser with the tensors of its call in a row, and its output alone."""

        def __init__(self, denoiser: torch.nn.Module, names: list[str]) -> None:
            super().__init__()
            self.denoiser, self.names = denoiser, names

        def forward(self, *tensors: Any) -> Any:
            return self.denoiser(**dict(zip(self.names, tensors, strict=True)), return_dict=False)[0]

    class Decoder(torch.nn.Module):
        def __init__(self, vae: torch.nn.Module) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, latents: Any) -> Any:
            return self.vae.decode(latents, return_dict=False)[0]

    pipeline = pipeline_of(job)
    pipeline.set_progress_bar_config(disable=True)
    seen: dict[str, Any] = {}
    denoise, decode = pipeline.transformer.forward, pipeline.vae.decode

    def denoised(hidden_states: Any, **named: Any) -> Any:
        seen["inputs"] = {"hidden_states": hidden_states, **{k: v for k, v in named.items() if torch.is_tensor(v)}}
        return denoise(hidden_states, **named)

    def decoded(latents: Any, **named: Any) -> Any:
        seen["latents"] = latents
        return decode(latents, **named)

    pipeline.transformer.forward, pipeline.vae.decode = denoised, decoded
    call(pipeline, job["request"], seed=0, count=1, steps=1)
    pipeline.transformer.forward, pipeline.vae.decode = denoise, decode
    inputs = seen["inputs"]
    folder = Path(job["converted"])
    folder.mkdir(parents=True)
    with torch.no_grad():
        whole = Positional(pipeline.transformer, list(inputs)).eval()
        ir = openvino.convert_model(whole, example_input=tuple(inputs.values()))
        openvino.save_model(ir, folder / DENOISER, compress_to_fp16=False)
        ir = openvino.convert_model(Decoder(pipeline.vae).eval(), example_input=(seen["latents"],))
        openvino.save_model(ir, folder / DECODER, compress_to_fp16=False)
    (folder / NAMES).write_text(json.dumps(list(inputs)))


def load_openvino(job: Job) -> tuple[str, Draw]:
    """The pipeline with stand-ins for both; torch's own weights of them are never read."""
    import diffusers
    import openvino

    folder = Path(job["converted"])
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
        "CACHE_DIR": str(folder / "cache"),
    }  # fmt: skip
    pipeline = pipeline_of(job, transformer=None, vae=None)
    source = Path(job["source"])
    index = json.loads((source / "model_index.json").read_text())
    configs = {
        part: getattr(diffusers, index[part][1]).load_config(source / part) for part in ("transformer", "vae")
    }  # fmt: skip
    denoiser = Denoiser(Compiled(core, folder / DENOISER, settings), configs["transformer"])
    denoiser.names = json.loads((folder / NAMES).read_text())
    # Past the pipeline's own __setattr__, which records what it knows the class of.
    pipeline.__dict__["transformer"] = denoiser
    pipeline.__dict__["vae"] = Decoded(Compiled(core, folder / DECODER, settings), configs["vae"])
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    if hasattr(pipeline, "vae_scale_factor"):  # what the pipeline's __init__ has read of a VAE that was not there
        pipeline.vae_scale_factor = factor
        doubled = 2 if job["request"]["kind"] == "flux" else 1
        pipeline.image_processor = diffusers.image_processor.VaeImageProcessor(vae_scale_factor=factor * doubled)
    return f"openvino {openvino.__version__}, diffusers {diffusers.__version__}", drawing(job, pipeline)


class Compiled:
    """An IR, compiled once for each set of shapes that it is called with."""

    def __init__(self, core: Any, path: Path, settings: dict[str, Any]) -> None:
        self._core, self._path, self._settings = core, path, settings
        self._requests: dict[tuple[tuple[int, ...], ...], Any] = {}

    def __call__(self, tensors: list[Any]) -> Any:
        """torch tensors to one torch tensor."""
        import torch

        arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
        shapes = tuple(array.shape for array in arrays)
        if shapes not in self._requests:
            model = self._core.read_model(self._path)
            model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
            self._requests[shapes] = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        result = self._requests[shapes].infer(arrays, share_inputs=True)
        return torch.from_numpy(result[0])


class StandIn:
    """What a pipeline asks of a part: its configuration, and where and in what it computes."""

    def __init__(self, compiled: Compiled, config: dict[str, Any]) -> None:
        import torch

        self._compiled, self.config = compiled, SimpleNamespace(**config)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def modules(self) -> Iterator[Any]:
        """diffusers looks for hooks in them."""
        return iter(())

    def run(self, tensors: list[Any], return_dict: bool) -> Any:
        """The one output in either of the forms that pipelines ask for."""
        sample = self._compiled(tensors)
        return SimpleNamespace(sample=sample) if return_dict else (sample,)


class Denoiser(StandIn):
    """In place of a transformer; `names` are its inputs in the IR's order."""

    names: Sequence[str] = ()

    def __call__(self, hidden_states: Any, return_dict: bool = True, **named: Any) -> Any:
        named["hidden_states"] = hidden_states
        return self.run([named[name] for name in self.names], return_dict)

    def cache_context(self, _name: str) -> Any:
        """diffusers' caches are not asked for."""
        return nullcontext()


class Decoded(StandIn):
    """In place of a VAE."""

    def decode(self, latents: Any, return_dict: bool = True, **_: Any) -> Any:
        """Latents to pictures in [-1, 1]."""
        return self.run([latents], return_dict)
