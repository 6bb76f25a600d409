"""Gene names across conventions and species: Ensembl ids and symbols.

The tables are shipped with scfm (`scfm/data/README.md` has their origin); nothing is downloaded.

Policies, in one place
----------------------
- A symbol shared by several Ensembl ids stands for the protein-coding one; if that leaves several, for the one with
  the lowest accession, which is the oldest: the one in earlier references and in most model vocabularies, and the X
  copy of a pseudoautosomal gene.
- A gene that GENCODE has not named carries its Ensembl id as symbol, as in CELLxGENE and 10x files.
- Names are case sensitive: TP53 is human, Trp53 is mouse. There is no table of aliases or previous symbols.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfm.errors import InputError, listing

if TYPE_CHECKING:
    pass

__all__ = [
    "Species",
    "gene_table",
    "read_table",
    "id_kind",
    "species_of",
    "strip_version",
    "to_ensembl",
    "to_symbols",
    "with_table",
]


SPECIES = ("human", "mouse")  # those with a gene table

# Stable gene ids and what their prefix says; www.ensembl.org/info/genome/stable_ids/prefixes.html
ID_PREFIXES = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSMMUG": "macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSCJAG": "marmoset",
    "ENSPTRG": "chimpanzee",
    "ENSSSCG": "pig",
    "ENSBTAG": "cow",
    "ENSOARG": "sheep",
    "ENSOCUG": "rabbit",
    "ENSCAFG": "dog",
    "ENSGALG": "chicken",
    "ENSXETG": "frog",
    "ENSDARG": "zebrafish",
    "FBgn": "fruit fly",
    "WBGene": "roundworm",
    "AT": "arabidopsis",
    "Os": "rice",
    "Zm": "maize",
}
STABLE_ID = re.compile(
    r"(?:(ENS[A-Z]*G)\d{11}|(FBgn)\d{7}|(WBGene)\d{8}|(AT)[1-5CM]G\d{5}|(Os)\d\dg\d{7}|(Zm)\d{5}[a-z]+\d{6})"
    r"(?:\.\d+)?(?:_PAR_Y)?"
)
ENSEMBL_ID = re.compile(r"ENS[A-Z]*G\d{11}(?:\.\d+)?(?:_PAR_Y)?")
VERSIONED = re.compile(r"(ENS[A-Z]*G\d{11})\.\d+(_PAR_Y)?")
CLONE = re.compile(
    r"(?!ENS)[A-Z]{2,3}\d*-?[A-Z0-9]*\.\d+"
)  # names of unnamed genes in older references: RP11-34P13.7, AC012345.1

SAMPLE = 1000  # names that `id_kind` looks at
FEWEST_KNOWN = 10  # names `species_of` must know,
LEAST_KNOWN = 0.05  # and as a share of all: a fly has some 2 % of its symbols in common with mouse
CLEAR_SHARE = 0.9  # of the known names, for the leading species


@dataclass(frozen=True)
class Species:
    """The species that a list of gene names speaks for."""

    name: str | None  # "human", "mouse", "rat", ...; an Ensembl prefix we have no name for; None: can't be told
    share: float  # share of the known names that speak for the leading species, 0 if none is known
    votes: Mapping[str, int] = field(default_factory=dict)  # names per species; names in use in both don't vote
    n_names: int = 0

    @property
    def evidence(self) -> str:
        """The votes in words, for messages."""
        votes = ", ".join(f"{name} {count:,}" for name, count in self.votes.items()) or "none known"
        return f"{sum(self.votes.values()):,} of {self.n_names:,} names tell: {votes}"


def gene_table(species: str) -> pd.DataFrame:
    """Genes of a species, from GENCODE as used by CELLxGENE.

    Parameters
    ----------
    species
        "human" (78,894 genes) or "mouse" (78,317).

    Returns
    -------
    DataFrame
        Index `ensembl_id` (unique, no version, sorted), columns `symbol` and `biotype` (both str); yours to change.
        A gene without a name has its Ensembl id as symbol.
    """
    return _gene_table(with_table(species)).copy()


def strip_version(ids: Iterable[Any]) -> np.ndarray:
    """Remove the version from Ensembl gene ids.

    Symbols that contain a dot (`RP11-34P13.7`, `AC012345.1`) and anything else are left alone. The Y copy of a
    pseudoautosomal gene keeps its mark, so that it does not become a duplicate of the X copy.

    Returns
    -------
    ndarray of object, (n,)

    Examples
    --------
    >>> strip_version(["ENSG00000141510.12", "ENSG00000182378.15_PAR_Y", "RP11-34P13.7"]).tolist()
    ['ENSG00000141510', 'ENSG00000182378_PAR_Y', 'RP11-34P13.7']
    """
    return _objects(_strip(name) for name in _names(ids))


def id_kind(names: Iterable[Any]) -> Literal["ensembl", "symbol", "unknown"]:
    """Say whether names are Ensembl gene ids or gene symbols, by the majority of up to 1,000 of them, evenly spaced.

    Symbols are those of the human and mouse tables in any case, and clone names (`RP11-34P13.7`), which older
    references use. Symbols of distant species, Entrez ids, peaks and transcripts are "unknown".

    Examples
    --------
    >>> id_kind(["ENSG00000141510.12", "ENSG00000111640"]), id_kind(["TP53", "GAPDH"]), id_kind(["gene_1", "gene_2"])
    ('ensembl', 'symbol', 'unknown')
    """
    everything = _names(names)
    spaced = np.linspace(0, len(everything) - 1, min(SAMPLE, len(everything))).astype(int)
    sample = [str(everything[i]) for i in spaced]
    if 2 * sum(ENSEMBL_ID.fullmatch(name) is not None for name in sample) > len(sample):
        return "ensembl"
    known = _lowercase_symbols()
    if 2 * sum(name.lower() in known or CLONE.fullmatch(name) is not None for name in sample) > len(sample):
        return "symbol"
    return "unknown"


def species_of(names: Iterable[Any]) -> Species:
    """Tell the species from gene names: stable ids by their prefix, symbols by the human and mouse tables.

    Symbols are case sensitive (TP53 is human, Trp53 mouse); the few in use in both species (F5, C3) say nothing.
    `name` is None unless 10 names and 5 % of all names are known, and 90 % of the known ones agree: mixtures of two
    species have no answer. Symbols of rat are read as mouse and those of other primates as human, since they are
    the same words; only their Ensembl ids tell them apart.

    Returns
    -------
    Species
        `name`, `share`, `votes` and, in words, `evidence`.
    """
    everything = _names(names)
    symbols = _species_of_symbol()
    counts: Counter[str] = Counter()
    species: str | None
    for name in everything:
        if isinstance(name, str):
            if found := STABLE_ID.fullmatch(name):
                prefix = found[found.lastindex or 0]
                species = ID_PREFIXES.get(prefix, prefix)
            else:
                species = symbols.get(name)
            if species:
                counts[species] += 1
    votes = dict(counts.most_common())
    known = sum(votes.values())
    if known == 0:
        return Species(name=None, share=0.0, n_names=len(everything))
    leading = next(iter(votes))
    share = votes[leading] / known
    clear = share >= CLEAR_SHARE and known >= max(FEWEST_KNOWN, LEAST_KNOWN * len(everything))
    return Species(name=leading if clear else None, share=share, votes=votes, n_names=len(everything))


def to_ensembl(symbols: Iterable[Any], species: str = "human") -> np.ndarray:
    """Ensembl ids of gene symbols.

    A symbol shared by several ids stands for the protein-coding one, then for the lowest accession. An Ensembl id
    of the table is returned as it is, without version: files often mix ids among symbols.

    Returns
    -------
    ndarray of object, (n,)
        Ensembl id without version, or None where the table has no such gene.

    Examples
    --------
    >>> to_ensembl(["TP53", "Trp53"]).tolist()
    ['ENSG00000141510', None]
    """
    lookup = _ensembl_of_name(with_table(species))
    return _objects(lookup.get(_strip(name)) for name in _names(symbols))


def to_symbols(ensembl_ids: Iterable[Any], species: str = "human") -> np.ndarray:
    """Gene symbols of Ensembl ids, with or without version.

    Several ids may have the same symbol, and a gene without a name has its id as symbol.

    Returns
    -------
    ndarray of object, (n,)
        Symbol, or None where the table has no such id.

    Examples
    --------
    >>> to_symbols(["ENSMUSG00000059552.14", "ENSG00000141510"], species="mouse").tolist()
    ['Trp53', None]
    """
    lookup = _symbol_of_ensembl(with_table(species))
    return _objects(lookup.get(_strip(name)) for name in _names(ensembl_ids))


def with_table(species: str) -> str:
    if species not in SPECIES:
        raise InputError(f"no gene table for species {species!r}.", f"Pass one of {listing(SPECIES)}.")
    return species


def _names(names: Iterable[Any]) -> list[Any]:
    if isinstance(names, str):
        raise InputError(f"{names!r} is one name; needed is a list of names.", f"Pass [{names!r}].")
    return list(names)


def _strip(name: Any) -> Any:
    if isinstance(name, str) and name.startswith("ENS") and (found := VERSIONED.fullmatch(name)):
        return found[1] + (found[2] or "")
    return name


def _objects(values: Iterable[Any]) -> np.ndarray:
    return np.fromiter(values, dtype=object)


def read_table(name: str) -> pd.DataFrame:
    with (files("scfm.data") / name).open("rb") as file:
        return pd.read_csv(file, sep="\t", compression="gzip", dtype=str, keep_default_na=False)


# What follows is loaded once and never handed out: a caller can't change it.


@cache
def _gene_table(species: str) -> pd.DataFrame:
    table = read_table(f"{species}_genes.tsv.gz")
    table["symbol"] = table["symbol"].where(table["symbol"] != "", table["ensembl_id"])
    return table.set_index("ensembl_id")


@cache
def _symbol_of_ensembl(species: str) -> dict[str, str]:
    symbols = _gene_table(species)["symbol"]
    return dict(zip(symbols.index, symbols, strict=True))


@cache
def _ensembl_of_name(species: str) -> dict[str, str]:
    table = _gene_table(species).reset_index()  # sorted by accession
    coding_first = table.sort_values("biotype", key=lambda biotype: biotype != "protein_coding", kind="stable")
    chosen = coding_first.drop_duplicates("symbol")
    itself = dict(zip(table["ensembl_id"], table["ensembl_id"], strict=True))
    return itself | dict(zip(chosen["symbol"], chosen["ensembl_id"], strict=True))


@cache
def _species_of_symbol() -> dict[str, str]:
    human, mouse = (set(_gene_table(species)["symbol"]) for species in SPECIES)
    return dict.fromkeys(human - mouse, "human") | dict.fromkeys(mouse - human, "mouse")


@cache
def _lowercase_symbols() -> frozenset[str]:
    return frozenset(symbol.lower() for species in SPECIES for symbol in _gene_table(species)["symbol"])
