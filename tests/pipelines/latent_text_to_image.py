"""LDMTextToImagePipeline with random weights, in the layout of CompVis/ldm-text2im-large-256."""

import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, LDMTextToImagePipeline, VQModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import BertTokenizer

from tests.pipelines.stable_diffusion import BETAS, random_unet
from tests.pipelines.text_encoders import random_ldm_bert
from tests.pipelines.tokenizers import make_bert_tokenizer
from tests.pipelines.vae import random_vae


def random_vqvae(levels: int = 4) -> VQModel:
    """16 codes of 4 channels that lie among scaled latents of deviation 1."""
    torch.manual_seed(0)
    vae = VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(*[16] * (levels - 1), 32),
        norm_num_groups=8,
        latent_channels=4,
        num_vq_embeddings=16,
        scaling_factor=0.5,
    ).eval()
    with torch.no_grad():
        vae.quantize.embedding.weight.normal_(0.0, 2.0)
        vae.decoder.conv_out.weight *= 2.0
    return vae


def make_latent_text_to_image(
    directory: Path,
    *,
    quantised: bool = False,
    scheduler: SchedulerMixin | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
) -> Path:
    """Writes a pipeline of 8×8 latents, 64×64 pixels, with a KL autoencoder or a quantised one."""
    tokenizer = make_bert_tokenizer(directory / "tokenizer")
    pipeline = LDMTextToImagePipeline(
        vqvae=random_vqvae() if quantised else random_vae(levels=4),
        bert=random_ldm_bert(tokenizer),
        tokenizer=BertTokenizer.from_pretrained(tokenizer),
        unet=random_unet(),
        scheduler=scheduler or DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    )
    pipeline.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    shutil.rmtree(directory / "tokenizer")
    make_bert_tokenizer(directory / "tokenizer")
    return directory
