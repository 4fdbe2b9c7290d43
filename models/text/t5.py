"""The encoder of T5 v1.1 (arXiv 1910.10683), with or without a mask for padding.

FLUX and SD3 call it without, PixArt with one, and PixArt hands the mask on to its denoiser.

Legend: texts = prompts encoded at once, tokens = the pipeline's maximum sequence length, width = d_model.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel

from models.latent_diffusion import KnownOverflow, TextEncoder, TextRule
from models.text.loading import load_text_model
from models.text.masks import padding_mask
from models.text.tokenizer import load_tokenizer

# transformers clamps both in half precision, and a trace in float32 has no clamps. The paths are those of a trace.
T5_OVERFLOWS = (
    KnownOverflow(
        r"DenseReluDense\.wo\b", "T5: the feed-forward output passes 65504 (transformers keeps wo in float32)"
    ),
    KnownOverflow(r"\.layer\.\d+/add", "T5: the residual stream grows past 65504 from layer to layer"),
)


def t5_encoder(
    source: Path,
    name: str,
    tokenizer: str,
    output: str,
    length: int,
    mask_output: str | None = None,
    lower_strip: bool = False,
) -> TextEncoder:
    """Reads SOURCE/name and SOURCE/tokenizer; raises SourceError.

    With `mask_output` the encoder does not look at padding, and a second output of that name is the mask as float32
    [texts, tokens] (PixArt, with `lower_strip`). Without it, padding is read like any token (FLUX, SD3).
    """
    loaded = load_tokenizer(source, tokenizer)
    model = load_text_model(T5EncoderModel, source, name)
    rule = TextRule(length=length, lower_strip=lower_strip)
    return TextEncoder(
        name=name,
        module=T5Text(model, length) if mask_output is None else MaskedT5Text(model, length),
        outputs=(output,) if mask_output is None else (output, mask_output),
        tokenizer=loaded.tokenizer,
        pad_id=loaded.pad_id,
        prompt=rule,
        negative=rule,
        takes_mask=mask_output is not None,
    )


class _T5Encoder(nn.Module):
    """T5Stack.forward with ready masks and buckets."""

    def __init__(self, model: T5EncoderModel, tokens: int) -> None:
        super().__init__()
        self.model = model
        attention = model.encoder.block[0].layer[0].SelfAttention
        # T5Attention.compute_bias takes the integer part of a logarithm that is a whole number at distances of 16, 32
        # and 64: a backend that gives one unit less there would take another bucket. Stored, they are torch's own.
        distance = torch.arange(1 - tokens, tokens)  # key position - query position
        buckets = attention._relative_position_bucket(
            distance,
            bidirectional=True,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        position = torch.arange(tokens)
        self.buckets: Tensor
        index = position[None, :] - position[:, None] + tokens - 1
        self.register_buffer("buckets", buckets[index], persistent=False)  # [tokens, tokens]

    def position_bias(self) -> Tensor:
        """What is added to the attention scores of every layer: [1, heads, tokens, tokens]."""
        embedding = self.model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        bias: Tensor = embedding(self.buckets).permute(2, 0, 1)[None]
        return bias

    def encode(self, input_ids: Tensor, bias: Tensor) -> Tensor:
        """Blocks and the final norm: input_ids [texts, tokens], bias [1 or texts, heads, tokens, tokens]."""
        stack = self.model.encoder
        hidden = stack.embed_tokens(input_ids)  # [texts, tokens, width]
        for block in stack.block:
            hidden = block(hidden, position_bias=bias)[0]  # [texts, tokens, width]
        result: Tensor = stack.final_layer_norm(hidden)
        return result


class T5Text(_T5Encoder):
    """input_ids int64 [texts, tokens] -> last hidden state float32 [texts, tokens, width]."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Without a mask: padding is read like any token."""
        return (self.encode(input_ids, self.position_bias()),)


class MaskedT5Text(_T5Encoder):
    """(input_ids, attention_mask) int64 [texts, tokens] -> last hidden state, mask [texts, tokens]; both float32."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """With a mask over the keys."""
        bias = self.position_bias() + padding_mask(attention_mask)  # [texts, heads, tokens, tokens]
        return self.encode(input_ids, bias), attention_mask.float()
