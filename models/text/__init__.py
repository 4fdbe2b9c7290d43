"""Text encoders of diffusers pipelines, as the compiler takes them.

One function for each kind reads a source's text_encoder* and tokenizer* folders into a TextEncoder:

    models.text.clip.clip_encoder          SD, SDXL, SD3, FLUX
    models.text.t5.t5_encoder              FLUX, SD3, PixArt
    models.text.gemma.gemma_encoder        SANA
    models.text.ldm_bert.ldm_bert_encoder  LDMTextToImagePipeline

Modules return what the encoder computes, under the names of the denoiser's inputs: what is done with it
afterwards (joining two encoders, padding channels, projecting) is the denoiser's own.
"""
