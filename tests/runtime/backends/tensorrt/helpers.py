"""What the tests of this folder do again and again."""

from pathlib import Path

from latentc.backends import open_backend
from latentc.backends.options import EngineOptions
from latentc.bundle import open_bundle
from latentc.engines import build_engines, load_engines
from latentc.request import Asked, Request, resolve
from latentc.session import Session


def built(path: Path, **options: object) -> Session:
    """A session on the engines of TensorRT, which are built here."""
    bundle = open_bundle(path)
    backend = open_backend("tensorrt", options=EngineOptions(**options))
    build_engines(bundle, backend)
    loaded = load_engines(bundle, backend)
    return Session(bundle, backend, loaded.engines, prologue=loaded.prologue)


def reference(path: Path) -> Session:
    """A session on the graphs, on the CPU."""
    bundle, backend = open_bundle(path), open_backend("onnxruntime", threads=1)
    return Session(bundle, backend, load_engines(bundle, backend).engines)


def request_for(session: Session, count: int = 2, steps: int = 4, **asked: object) -> Request:
    """The first label of a class-label bundle, a prompt for others."""
    labels = getattr(session.bundle.manifest.conditioning, "labels", None)
    what = {"label": min(labels)} if labels else {"prompts": ["a red heart"]}
    return resolve(session.bundle.manifest, Asked(count=count, steps=steps, **what, **asked))
