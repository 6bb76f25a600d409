"""scPlantLLM: expressed genes of plant cells with binned values, one ``<cls>`` token."""

from scfm.adapters.scplantllm.adapter import ScPlantLLM

__all__ = ["ScPlantLLM"]
