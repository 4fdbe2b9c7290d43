"""The text encoder of the latent diffusion paper's text-to-image model (arXiv 2112.10752): BERT's tokens, no mask.

Legend: texts = prompts encoded at once, tokens = 77, width = d_model.
"""

from pathlib import Path

from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
from torch import Tensor, nn

from models.latent_diffusion import SourceError, TextEncoder, TextRule
from models.text.loading import load_text_model
from models.text.tokenizer import load_tokenizer

LENGTH = 77  # LDMTextToImagePipeline.__call__ cuts and pads to it


def ldm_bert_encoder(
    source: Path, output: str, name: str = "bert", tokenizer: str = "tokenizer", length: int = LENGTH
) -> TextEncoder:
    """Reads SOURCE/name and SOURCE/tokenizer; raises SourceError."""
    loaded = load_tokenizer(source, tokenizer)
    model = load_text_model(LDMBertModel, source, name)
    if length > model.config.max_position_embeddings:
        raise SourceError(
            f"{source / name}: positions for {model.config.max_position_embeddings} tokens; the pipeline gives it "
            f"{length}"
        )
    rule = TextRule(length=length)
    return TextEncoder(
        name=name,
        module=LdmBertText(model),
        outputs=(output,),
        tokenizer=loaded.tokenizer,
        pad_id=loaded.pad_id,
        prompt=rule,
        negative=rule,
    )


class LdmBertText(nn.Module):
    """input_ids int64 [texts, tokens] -> last hidden state float32 [texts, tokens, width]."""

    def __init__(self, model: LDMBertModel) -> None:
        super().__init__()
        self.model = model.model  # without to_logits, which the pipeline does not use

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """LDMBertEncoder.forward."""
        result: Tensor = self.model(input_ids, return_dict=False)[0]
        return (result,)
