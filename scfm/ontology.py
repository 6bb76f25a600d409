"""Cell Ontology: terms for cell types, from labels as people write them; ancestors and distances. Works offline.

The shipped slice is the release of 2026-03-26 (CC BY 4.0; scfm/data/README.md has its origin). It has is_a ancestors, no other relations.
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING

from scfm.data import shared_table
from scfm.errors import InputError, listing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Harmonised", "Ontology", "Term", "cell_ontology", "normalised"]

RELEASE = "2026-03-26"
_ID = re.compile(r"^CL[:_](\d{7})$")
_GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "κ": "kappa", "λ": "lambda", "μ": "mu"}
_MISSING = frozenset({"", "nan", "none", "na", "n/a"})


@dataclass(frozen=True)
class Term:
    """A cell type.

    Attributes
    ----------
    id, label
        E.g. "CL:0000084", "T cell".
    synonyms
        Other names.
    ancestors
        Ids of all more general terms with the least number of is_a steps to them.
    deprecated
        No longer to be used.
    """

    id: str
    label: str
    synonyms: tuple[str, ...]
    ancestors: Mapping[str, int]
    deprecated: bool


@dataclass(frozen=True)
class Harmonised:
    """Labels and the terms found for them.

    Attributes
    ----------
    table
        One row a label: `term` (id, or None), `name`, `how` it was found ("id", "given", "label", "synonym", "spelling"; or why not:
        "ambiguous", "deprecated", "unknown") and `candidates`, terms that a person might choose from.
    """

    table: pd.DataFrame

    @property
    def terms(self) -> dict[str, str]:
        """Label -> id, of the labels that have one."""
        found = self.table["term"].dropna()
        return {str(label): str(term) for label, term in found.items()}

    @property
    def unmatched(self) -> list[str]:
        """Labels without a term."""
        return [str(label) for label in self.table.index[self.table["term"].isna()]]

    def __str__(self) -> str:
        """What matched, and what a person has to decide."""
        lines = [f"{len(self.terms)} of {len(self.table)} labels have a Cell Ontology term."]
        for label, row in self.table.iterrows():
            if row["term"] is not None:
                lines.append(f"  {label!r} -> {row['term']} {row['name']} ({row['how']})")
            else:
                hint = f"; near: {row['candidates']}" if row["candidates"] else ""
                lines.append(f"  {label!r}: {row['how']}{hint}")
        return "\n".join(lines)


def normalised(text: str) -> str:
    """A label without what people write differently: case, Greek letters, hyphens, plurals, + and -, "cell" at the end.

    >>> normalised("CD8+ T-cells") == normalised("CD8-positive T cell")
    True
    >>> normalised("αβ T") == normalised("alpha-beta T cell")
    True
    """
    text = unicodedata.normalize("NFKC", text)
    for letter, name in _GREEK.items():
        text = text.replace(letter, f" {name} ")
    text = re.sub(r"(?<=\w)(\+|\bpos\b)", " positive ", text)
    text = re.sub(r"(?<=\w)-(?=\s|$|,)", " negative ", text)  # CD8- T
    text = re.sub(r"(?<=\w)'s\b", "", text.lower())
    words = re.sub(r"[^a-z0-9]+", " ", text).split()
    words = [_singular(word) for word in words]
    if len(words) > 1 and words[-1] == "cell":
        words = words[:-1]
    return " ".join(words)


def _singular(word: str) -> str:
    """Without the s of a plural; the same rule is applied to both sides, so that "plus" and "gas" do no harm."""
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


class Ontology:
    """Terms and how they descend from each other.

    Parameters
    ----------
    terms
        Id -> term.
    release
        For provenance.
    """

    def __init__(self, terms: Mapping[str, Term], release: str) -> None:
        self.terms = dict(terms)
        self.release = release
        self._by: dict[str, dict[str, set[str]]] = {kind: defaultdict(set) for kind in ("label", "synonym", "spelling")}
        self._words = {term.id: frozenset(normalised(term.label).split()) for term in self.terms.values()}
        for term in self.terms.values():
            self._by["label"][term.label.lower()].add(term.id)
            for name in term.synonyms:
                self._by["synonym"][name.lower()].add(term.id)
            for name in (term.label, *term.synonyms):
                self._by["spelling"][normalised(name)].add(term.id)

    def __len__(self) -> int:
        return len(self.terms)

    def __getitem__(self, term: str) -> Term:
        """A term by its id.

        Raises
        ------
        InputError
            There is none.
        """
        match = _ID.match(term)
        found = self.terms.get(f"CL:{match[1]}") if match else None
        if found is None:
            raise InputError(
                f"{term!r} is no term of the Cell Ontology {self.release}.", "Pass an id such as 'CL:0000084'."
            )
        return found

    def lineage(self, term: str) -> dict[str, int]:
        """The term and all its ancestors, with the least number of is_a steps."""
        own = self[term]
        return {own.id: 0, **own.ancestors}

    def is_a(self, term: str, general: str) -> bool:
        """Whether a term is another one, or descends from it."""
        return self[general].id in self.lineage(term)

    def distance(self, a: str, b: str) -> float:
        """Steps from a up to a common ancestor and down to b, along the shortest such way (edge counting, Rada et al. 1989,
        doi:10.1109/21.24528); infinite without a common ancestor."""
        one, two = self.lineage(a), self.lineage(b)
        return float(min((one[t] + two[t] for t in one.keys() & two.keys()), default=float("inf")))

    def common_ancestor(self, terms: Iterable[str]) -> str | None:
        """The most specific term that all of these are or descend from.

        Of several, none of which descends from another, the one with the fewest steps to all; of equal ones the lower id. None for no
        terms, or without a common ancestor.
        """
        lineages = [self.lineage(term) for term in terms]
        if not lineages:
            return None
        common = set(lineages[0]).intersection(*lineages[1:])
        lowest = common - {up for term in common for up in self.terms[term].ancestors}
        return min(lowest, key=lambda t: (sum(line[t] for line in lineages), t), default=None)

    def harmonise(self, labels: Iterable[str], given: Mapping[str, str] | None = None) -> Harmonised:
        """Find the term of each label.

        In this order: an id; what is `given`; a term's label; a synonym, both in any case; label or synonym in another spelling
        (`normalised`). A name of more than one term that is in use is ambiguous, and a label that fits nothing is unknown: neither
        is guessed.

        Parameters
        ----------
        labels
            As people write them; repeats are answered once.
        given
            Label -> id, for those that only you can know, e.g. ``{"DC": "CL:0000451"}``.

        Raises
        ------
        InputError
            A given id does not exist.
        """
        import pandas as pd

        given = {label: self[term].id for label, term in (given or {}).items()}
        names = list(dict.fromkeys(str(label) for label in labels))
        if unused := sorted(set(given) - set(names)):
            raise InputError(
                f"terms are given for {listing(unused)}, which are no labels.", f"Labels: {listing(names)}."
            )
        rows = [self._find(label, given) for label in names]
        frame = pd.DataFrame(
            rows, columns=["term", "how", "candidates"], index=pd.Index(names, name="label"), dtype=object
        )
        frame.insert(1, "name", [None if term is None else self.terms[term].label for term in frame["term"]])
        return Harmonised(frame)

    def _find(self, label: str, given: Mapping[str, str]) -> tuple[str | None, str, str]:
        if label in given:
            return given[label], "given", ""
        text = label.strip()
        if match := _ID.match(text):
            term = self.terms.get(f"CL:{match[1]}")
            if term is None:
                return None, "unknown", ""
            return (None, "deprecated", self._named([term.id])) if term.deprecated else (term.id, "id", "")
        if text.lower() in _MISSING:
            return None, "unknown", ""
        for how, key in (("label", text.lower()), ("synonym", text.lower()), ("spelling", normalised(text))):
            found = self._by[how].get(key, set())
            used = sorted(term for term in found if not self.terms[term].deprecated)
            if len(used) == 1:
                return used[0], how, ""
            if used:
                return None, "ambiguous", self._named(used)
            if found:
                return None, "deprecated", self._named(sorted(found))
        return None, "unknown", self._named(self._near(normalised(text)))

    def _near(self, key: str) -> list[str]:
        """Terms for a person to choose from: those named with all words of the label, the shortest first, then names of similar letters."""
        words = set(key.split())
        longer = [term for term in self.terms.values() if words and words <= self._words[term.id]]
        close = [term.id for term in sorted(longer, key=lambda term: (len(term.label), term.id))]
        for name in get_close_matches(key, self._by["spelling"], n=3, cutoff=0.75):
            close += sorted(self._by["spelling"][name])
        return [term for term in dict.fromkeys(close) if not self.terms[term].deprecated][:3]

    def _named(self, terms: Sequence[str]) -> str:
        return "; ".join(f"{term} {self.terms[term].label}" for term in terms)


@cache
def cell_ontology() -> Ontology:
    """The shipped Cell Ontology."""
    with gzip.open(shared_table("cell_ontology.json.gz"), "rt", encoding="utf-8") as file:
        content = json.load(file)
    terms = {
        key: Term(key, row["label"], tuple(row["synonyms"]), row["ancestors"], row["deprecated"])
        for key, row in content.items()
    }
    return Ontology(terms, RELEASE)
