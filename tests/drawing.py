"""Draws with the runtime what a reference request asks for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from latentc.request import Asked, resolve
from latentc.session import open_session, trajectory_of_request

from models.latent_diffusion import ReferenceRequest


def draw(
    bundle_path: Path, solver: str, steps: int, request: ReferenceRequest, timesteps: Sequence[float] | None = None
) -> np.ndarray:
    """The runtime's own loop: float32 [batch, 3, height, width]; `timesteps` tells the denoiser others than the table.

    At least as many are given as calls are made.
    """
    session = open_session(bundle_path, "onnxruntime")
    label = {"label": str(request.labels[0])} if request.labels else {}
    asked = Asked(
        **label,
        prompts=request.prompts,
        negative_prompts=request.negative_prompts or (),
        width=request.width,
        height=request.height,
        steps=steps,
        solver=solver,
        cfg_scale=request.cfg_scale,
        guidance=request.guidance,
        init_image=request.init_image is not None,
        strength=request.strength if request.init_image is not None else None,
        count=len(request.labels) or None,
    )
    pixels = None if request.init_image is None else request.init_image.transpose(2, 0, 1)[None]
    resolved = resolve(session.bundle.manifest, asked)
    if request.labels:
        resolved = replace(resolved, labels=request.labels)
    trajectory = trajectory_of_request(session.bundle, resolved, request.seed, pixels=pixels)
    if timesteps is not None:
        shape = trajectory.per_call["timestep"].shape
        told = np.broadcast_to(np.float32(timesteps[: shape[0]])[:, None, None], shape)
        trajectory.per_call["timestep"] = np.ascontiguousarray(told)
    sampling = session.sampling(trajectory)
    for _ in sampling.steps():
        pass
    return sampling.decode()
