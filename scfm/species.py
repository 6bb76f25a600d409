"""Names of species: the common one that cards, errors and `species=` use, and the scientific one that file names carry.

Common names are those of `scfm.gene_tables.species_of`, so that a model's species and the species of data can be compared.
"""

from __future__ import annotations

import re

__all__ = ["SCIENTIFIC", "common_name"]

SCIENTIFIC = {
    "human": "Homo sapiens",
    "mouse": "Mus musculus",
    "rat": "Rattus norvegicus",
    "macaque": "Macaca mulatta",
    "crab-eating macaque": "Macaca fascicularis",
    "marmoset": "Callithrix jacchus",
    "chimpanzee": "Pan troglodytes",
    "mouse lemur": "Microcebus murinus",
    "pig": "Sus scrofa",
    "cow": "Bos taurus",
    "sheep": "Ovis aries",
    "rabbit": "Oryctolagus cuniculus",
    "dog": "Canis lupus familiaris",
    "chicken": "Gallus gallus",
    "frog": "Xenopus tropicalis",
    "clawed frog": "Xenopus laevis",
    "zebrafish": "Danio rerio",
    "sea urchin": "Lytechinus variegatus",
    "fruit fly": "Drosophila melanogaster",
    "roundworm": "Caenorhabditis elegans",
    "sponge": "Spongilla lacustris",
    "yeast": "Saccharomyces cerevisiae",
    "malaria parasite": "Plasmodium falciparum",
}
"""Common name -> scientific name."""

_OTHER_NAMES = {"fly": "fruit fly", "drosophila": "fruit fly", "worm": "roundworm", "c elegans": "roundworm"}
_BY_SCIENTIFIC = {scientific.lower(): common for common, scientific in SCIENTIFIC.items()}


def common_name(name: str) -> str:
    """The common name of a species, however it is written; an unknown one in lower case with blanks.

    Examples
    --------
    >>> common_name("Homo_sapiens"), common_name("mouse_lemur"), common_name("fly"), common_name("Axolotl")
    ('human', 'mouse lemur', 'fruit fly', 'axolotl')
    """
    plain = re.sub(r"[\s_]+", " ", name).strip().lower()
    return _BY_SCIENTIFIC.get(plain) or _OTHER_NAMES.get(plain, plain)
