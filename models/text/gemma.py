"""Gemma 2 (arXiv 2408.00118) as SANA's text encoder: its last hidden state at a choice of positions.

SANA puts an instruction before the prompt, and then keeps the first position and the last ones, so that the text
is as long as without it (arXiv 2410.10629, section 2.3). The negative prompt gets no instruction.

Legend: texts = prompts encoded at once, tokens = ids of each, kept = the pipeline's maximum sequence length,
width = hidden size.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Gemma2Model

from models.latent_diffusion import TextEncoder, TextRule
from models.text.loading import load_text_model
from models.text.masks import HIDDEN
from models.text.tokenizer import load_tokenizer


def gemma_encoder(
    source: Path,
    name: str,
    tokenizer: str,
    output: str,
    mask_output: str,
    length: int,
    instruction: str = "",
) -> TextEncoder:
    """Reads SOURCE/name and SOURCE/tokenizer; raises SourceError.

    `length` is SanaPipeline's max_sequence_length; `instruction` its complex_human_instruction, joined by newlines.
    """
    loaded = load_tokenizer(source, tokenizer)
    model = load_text_model(Gemma2Model, source, name)
    negative = TextRule(length=length, lower_strip=True)
    prompt = negative
    if instruction:
        # SanaPipeline's own count: the instruction with its <bos>, less that and one more.
        num_tokens = len(loaded.tokenizer.encode(instruction).ids)
        prompt = TextRule(length=num_tokens + length - 2, prefix=instruction, lower_strip=True)
    return TextEncoder(
        name=name,
        module=GemmaText(model, length),
        outputs=(output, mask_output),
        tokenizer=loaded.tokenizer,
        pad_id=loaded.pad_id,
        prompt=prompt,
        negative=negative,
        takes_mask=True,
        symbolic_length=prompt.length != length,
    )


class GemmaText(nn.Module):
    """(input_ids, attention_mask) int64 [texts, tokens] -> hidden [texts, kept, width], mask [texts, kept], float32.

    Kept are the first position and the last kept - 1; tokens >= kept.
    """

    def __init__(self, model: Gemma2Model, kept: int) -> None:
        super().__init__()
        self.model = model
        self.kept = kept
        self.window: int = model.config.sliding_window

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Gemma2Model.forward with masks of its own."""
        tokens = input_ids.shape[1]
        position = torch.arange(tokens)
        distance = position[:, None] - position[None, :]  # [tokens, tokens]: how far back the key is
        seen = (attention_mask > 0)[:, None, None, :] & (distance >= 0)  # [texts, 1, tokens, tokens]
        masks = {
            "full_attention": torch.where(seen, 0.0, HIDDEN),
            "sliding_attention": torch.where(seen & (distance < self.window), 0.0, HIDDEN),
        }
        hidden = self.model.embed_tokens(input_ids)  # [texts, tokens, width]
        rotation = self.model.rotary_emb(hidden, position[None])  # two of [1, tokens, head]
        for layer, kind in zip(self.model.layers, self.model.config.layer_types, strict=True):
            hidden = layer(hidden, attention_mask=masks[kind], position_embeddings=rotation)
        hidden = self.model.norm(hidden)  # [texts, tokens, width]
        # Slices from the end would hold the tracer to tokens > kept; places in the sequence hold it to nothing.
        place = torch.arange(self.kept)
        place = torch.where(place > 0, place + (tokens - self.kept), 0)  # [kept]: 0, tokens - kept + 1, …, tokens - 1
        return hidden.index_select(1, place), attention_mask.index_select(1, place).float()
