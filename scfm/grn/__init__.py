"""Gene regulatory networks: relations between genes read from attention, plain rivals, and nulls; `scfm.tasks.grn` puts them together."""

from scfm.grn.genes import read_edges, transcription_factors
from scfm.grn.readout import Labels, Readout, read_out

__all__ = ["Labels", "Readout", "read_edges", "read_out", "transcription_factors"]
