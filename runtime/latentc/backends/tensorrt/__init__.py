"""TensorRT 8.6 to 11, through its Python binding or that of the lean runtime. Imported only when it is asked for.

library        which TensorRT is there, and what it can do
onnx_file      node names, types and weights of an ONNX model
profiles       the shapes that an engine is built for
network, build from a graph to a plan
timing_cache, progress, complaints      what a build keeps, shows and says
plan_record    what a plan was built for, and whether it may run here
refit          weights for a plan that has none
engine         a plan in use
backend        all of it, as latentc.backends.protocol wants it
"""

from typing import TYPE_CHECKING

from latentc.backends.options import EngineOptions

if TYPE_CHECKING:
    from latentc.backends.tensorrt.backend import TensorRTBackend


def open_backend(threads: int, options: EngineOptions) -> "TensorRTBackend":
    """TensorRT on the first GPU; `threads` means nothing to it. BackendError says what is missing."""
    from latentc.backends.cuda.runtime import open_cuda
    from latentc.backends.tensorrt.backend import TensorRTBackend
    from latentc.backends.tensorrt.library import open_library

    library, cuda = open_library(), open_cuda()
    cuda.device()  # TensorRT ends the process where there is no GPU (11.4: Runtime's constructor)
    return TensorRTBackend(library, cuda, options)
