"""scPlantFormer: consecutive genes of an Arabidopsis cell as patches."""

from scfm.adapters.scplantformer.adapter import ScPlantFormer

__all__ = ["ScPlantFormer"]
