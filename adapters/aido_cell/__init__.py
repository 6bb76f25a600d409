"""AIDO.Cell: every gene of the transcriptome as a token, expressed or not."""

from scfm.adapters.aido_cell.adapter import AIDOCell

__all__ = ["AIDOCell"]
