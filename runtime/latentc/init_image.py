"""Reads the initial image of a request: any format that Pillow reads, resized to what is drawn.

Pillow is the optional extra `image`: nothing else in the runtime reads pictures (docs/adr/0008-a-small-runtime.md).
"""

import importlib
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentc.errors import BackendError, RequestError


def pixels_from_file(path: Path, width: int, height: int) -> npt.NDArray[np.float32]:
    """float32 [1, 3, height, width] in [0, 1]; another size is resized (Lanczos), as diffusers' image processor does.

    Transparency is put on white. Raises RequestError for a file that is no picture.
    """
    if importlib.util.find_spec("PIL") is None:
        raise BackendError('--init-image needs Pillow, which is not installed; pip install "latentc[image]"')
    image_module, ops = importlib.import_module("PIL.Image"), importlib.import_module("PIL.ImageOps")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            with image_module.open(path) as opened:
                if opened.mode.startswith("I;16"):
                    raise ValueError("has 16 bits a channel; save it with 8")
                upright = ops.exif_transpose(opened)  # as diffusers' load_image
                image = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except OSError as error:
        reason = error.strerror or "is no picture that Pillow reads"
        raise RequestError(f"--init-image {path}: {reason}") from None
    except (
        image_module.DecompressionBombError,
        image_module.DecompressionBombWarning,
        ValueError,
        SyntaxError,
    ) as error:
        raise RequestError(f"--init-image {path}: {' '.join(str(error).split())[:120]}") from None
    if image.mode == "RGBA":
        white = image_module.new("RGBA", image.size, (255, 255, 255, 255))
        image = image_module.alpha_composite(white, image).convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), image_module.Resampling.LANCZOS)
    pixels = np.asarray(image, np.float32) / np.float32(255.0)  # [height, width, 3]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
