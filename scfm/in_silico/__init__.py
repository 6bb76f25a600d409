"""In silico perturbation: the same cells with genes removed, weakened, raised or switched on, through an encoder's own tokenizer.

Every perturbed cell is a row beside its original: rows are repeated, changed as they are tokenized, and encoded by the core's inference
like any other cells, block by block in bounded memory. Effects are cosines between what the network says of a cell before and after.

A change is made where the model reads the gene: in the values, before they are ranked, binned or normalised; or, for rank tokenizers, in
the ranked list (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9): a deleted gene's token goes, an activated one moves to the front.
The two differ for cells with more genes than the model takes: in the list no gene moves up from behind the cut.
"""

from scfm.in_silico.changes import FACTORS, KINDS, Change, Kind, Level, changed_ranks, changed_values, level_of
from scfm.in_silico.effects import Effects, changed_cells, effects_of, expressed_changes, genes_in
from scfm.in_silico.generation import ExpressionGenerator

__all__ = [
    "FACTORS",
    "KINDS",
    "Change",
    "Effects",
    "ExpressionGenerator",
    "Kind",
    "Level",
    "changed_cells",
    "changed_ranks",
    "changed_values",
    "effects_of",
    "expressed_changes",
    "genes_in",
    "level_of",
]
