"""Compares this machine's computations with the outputs that torch left in the bundle.

Twice for each component: the graphs, run node by node without optimisation, so that a difference
is the export's; and the engines, as `latentc sample` would run them, so that a difference is the backend's. Engines
that are no graphs any more (TensorRT's) are compared with the graphs in ONNX Runtime, too.
Then the whole loop. The bounds are the export's own, from parity.json.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from latentc.backends.protocol import Array, Backend, Engine
from latentc.bundle import Bundle
from latentc.engines import LOOP, load_engines
from latentc.errors import BundleError
from latentc.memory import Memory
from latentc.parity import psnr_db, relative_l2
from latentc.request import Request
from latentc.sampler import run_once, sample
from latentc.schema import Figure, Parity
from latentc.stages import OneAtATime
from latentc.table import table_from_bundle
from latentc.tensors import tensor, tensors_from_bytes
from latentc.text import Tokenizers
from latentc.trajectory import Noise, latent_shape, noise_from_seed, trajectory_of

TRAJECTORY = "trajectory"
OVER_IMAGE = "over_image"  # the trajectory that begins with an image
TORCHS = "torch's pipeline"
OF_FP32 = "image_of_fp32"  # the same trajectory as `image`, of the graphs before they were int8


def measured(
    bundle: Bundle, backend: Backend, memory: Memory = "normal", graphs: Backend | None = None, prologue: str = ""
) -> Iterator[Figure]:
    """The figures of parity.json, measured again here; each is yielded when it is known.

    `graphs` is the backend that runs the graphs as they are written, where `backend` cannot (TensorRT): then its
    engines, and its loop, are compared with these as well. Without any, engines are compared with torch alone.
    """
    if graphs is None and not backend.needs_engines:
        graphs = backend
    parity = bundle.parity()
    references = tensors_from_bytes(bundle.view(parity.references), parity.references)
    compared = {figure.tensor.partition("/")[0] for figure in parity.figures}
    left_out = {item.tensor for item in parity.unverified}
    expected = {*bundle.manifest.graphs, TRAJECTORY} - (left_out & {TRAJECTORY})
    if compared != expected:  # a report that leaves something out would pass by silence
        odd = ", ".join(sorted(compared ^ expected))
        raise BundleError(f"{bundle.root}: parity.json must compare every graph and the trajectory; look at {odd}")

    def load_plain(name: str) -> Engine:
        assert graphs is not None
        return graphs.load_graph(bundle.graph(name), optimise=False, mapped=memory == "low")

    made: dict[str, Array] = {}
    if graphs is not None:
        plain, runner = OneAtATime(tuple(bundle.manifest.graphs), load_plain), graphs
        against = "torch and the graph, run node by node"
        yield from _components(parity, references, lambda _: runner, plain, against, made)
        plain.close()
    loaded = load_engines(bundle, backend, memory, graphs if prologue == "cpu" else None)
    how = "built engine" if loaded.built else "optimised graph"

    def runs(component: str) -> Backend:
        return backend if component in LOOP else loaded.prologue

    built: dict[str, Array] = {}
    yield from _components(parity, references, runs, loaded.engines, f"torch and the {how}", built)
    if graphs is not None and graphs is not backend:
        for figure in parity.figures:
            if figure.tensor in built:
                against = f"the graph in {graphs.name} and the engine of {backend.name}"
                yield _measured(figure, built[figure.tensor], made[figure.tensor], against)
    loop = _Loop(backend, loaded.engines, loaded.prologue)
    yield from _trajectory(bundle, parity, references, loop, f"{TORCHS} and the loop, {how}")
    if graphs is not None and graphs is not backend:
        engines = load_engines(bundle, graphs, memory).engines
        against = f"the loop in {graphs.name} and in {backend.name}"
        yield from _trajectory(bundle, parity, references, loop, against, _Loop(graphs, engines, graphs))


@dataclass(frozen=True)
class _Loop:
    """Engines that draw."""

    backend: Backend
    engines: Mapping[str, Engine]
    prologue: Backend


def _components(
    parity: Parity,
    references: dict[str, Array],
    backend_of: Callable[[str], Backend],
    engines: Mapping[str, Engine],
    against: str,
    made: dict[str, Array],
) -> Iterator[Figure]:
    """Compares every engine with torch, and keeps what it made under the figure's name."""
    for component, engine in engines.items():
        backend = backend_of(component)
        figures = [figure for figure in parity.figures if figure.tensor.partition("/")[0] == component]
        inputs = _tensors_below(references, f"{component}/input/")
        expected = _tensors_below(references, f"{component}/output/")
        missing = [figure.tensor for figure in figures if figure.tensor.partition("/")[2] not in expected]
        if missing:
            raise BundleError(f"{parity.references} has no output {', '.join(missing)}")
        actual = run_once(backend, engine, inputs, {name: values.shape for name, values in expected.items()})
        for figure in figures:
            name = figure.tensor.partition("/")[2]
            made[figure.tensor] = actual[name]
            yield _measured(figure, actual[name], expected[name], against)


def _tensors_below(references: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {key.removeprefix(prefix): value for key, value in references.items() if key.startswith(prefix)}


def _trajectory(
    bundle: Bundle,
    parity: Parity,
    references: dict[str, Array],
    loop: _Loop,
    against: str,
    other: _Loop | None = None,
) -> Iterator[Figure]:
    """The pictures of a loop, against torch's or against those of another loop."""
    figures = [figure for figure in parity.figures if figure.tensor.startswith(f"{TRAJECTORY}/")]
    tokenizers = Tokenizers(bundle.tokenizers())
    for figure in figures:
        name = figure.tensor.partition("/")[2]
        over_image = name == OVER_IMAGE
        request = request_of(bundle, parity, over_image)
        table = table_from_bundle(bundle, request.table, request.skipped)
        shape = latent_shape(bundle.manifest, request)
        key = f"{TRAJECTORY}/{f'{OVER_IMAGE}_' if over_image else ''}"
        draws = tensor(references, f"{key}noise", (1 + table.noise_draws, *shape), parity.references)
        expected = _reference(references, figure.tensor, parity.references)
        if name == "noise" and other is not None:
            continue
        if name == "noise":
            drawn = noise_from_seed(parity.seed, shape, table.noise_draws).draws
            yield _measured(figure, drawn, expected, "torch's generator")
            continue
        encoder, pixels = None, None
        if over_image:
            encoder = tensor(references, f"{key}encoder_noise", (1, *shape[1:]), parity.references)
            size = (1, bundle.manifest.image.channels, parity.height, parity.width)
            pixels = tensor(references, f"{key}pixels", size, parity.references)
        trajectory = trajectory_of(
            bundle.manifest.conditioning,
            bundle.manifest.latent.multiple,
            request,
            table,
            Noise(draws, encoder),
            tokenizers,
            pixels,
        )
        image = sample(loop.backend, loop.engines, bundle.manifest, trajectory, loop.prologue)
        if other is not None:
            expected = sample(other.backend, other.engines, bundle.manifest, trajectory, other.prologue)
        told = against.replace(TORCHS, "the fp32 graphs' picture") if name == OF_FP32 else against
        yield _measured(figure, image, expected, told)


def request_of(bundle: Bundle, parity: Parity, over_image: bool = False) -> Request:
    """The request that parity.json speaks of, or the one that draws over an image."""
    size = (parity.width, parity.height)
    for table in bundle.manifest.tables:
        if (table.solver, table.steps) == (parity.solver, parity.steps) and table.size in (None, size):
            break
    else:
        raise BundleError(f"{bundle.root}: parity.json is of {parity.solver} {parity.steps}, which has no table")
    skipped = parity.skipped if over_image else None
    if over_image and skipped is None:
        raise BundleError(f"{bundle.root}: parity.json does not say where drawing over an image begins")
    return Request(
        table=table,
        cfg_scale=parity.cfg_scale,
        width=parity.width,
        height=parity.height,
        labels=parity.labels,
        prompts=parity.prompts,
        negative_prompts=parity.negative_prompts,
        guidance=parity.guidance,
        skipped=skipped,
    )


def _reference(references: dict[str, Array], key: str, file: str) -> Array:
    if key not in references:
        raise BundleError(f"{file} has no tensor {key}")
    return references[key]


def _measured(figure: Figure, actual: Array, expected: Array, against: str) -> Figure:
    if actual.shape != expected.shape:
        raise BundleError(
            f"{figure.tensor} is {list(actual.shape)} here and {list(expected.shape)} in torch's reference"
        )
    got, want = actual.astype(np.float64), expected.astype(np.float64)
    value = relative_l2(got, want) if figure.measure == "relative_l2" else psnr_db(got, want)
    return msgspec.structs.replace(figure, value=value, against=against)
