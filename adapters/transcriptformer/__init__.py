"""TranscriptFormer: protein tokens in causal order, with attention biased by counts."""

from scfm.adapters.transcriptformer.adapter import TranscriptFormer

__all__ = ["TranscriptFormer"]
