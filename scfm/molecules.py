"""Molecules as vectors: Morgan fingerprints, a chemical language model, or a table of one's own.

A molecule is a SMILES string. It is made canonical first (RDKit), so that two spellings of one molecule have one vector; of a salt the
largest part is read, made neutral, and `canonical_smiles` says what was left out.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from scfm._lazy import optional
from scfm.errors import CheckpointError, InputError, listing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LanguageModel", "MoleculeEncoder", "MoleculeTable", "Morgan", "canonical_smiles", "molecules_from"]

PURPOSE = "reading molecules"


def canonical_smiles(smiles: Sequence[str], *, salts: Literal["strip", "keep"] = "strip") -> pd.DataFrame:
    """RDKit's canonical form of molecules.

    Parameters
    ----------
    smiles
        SMILES strings.
    salts
        "strip": of several parts the one with the most heavy atoms is kept (of equals the first in the alphabet), and made neutral by
        moving protons, so that a drug and its salts are one molecule. "keep": all parts, with their charges.

    Returns
    -------
    pd.DataFrame
        One row a molecule, in order: `smiles` as given, `canonical`, and `left_out`, the parts that were not kept ("" for none).

    Raises
    ------
    InputError
        Some are no molecules; they are named with their rows.
    """
    import pandas as pd

    chem = optional("rdkit.Chem", extra="drug", purpose=PURPOSE)
    standard = optional("rdkit.Chem.MolStandardize.rdMolStandardize", extra="drug", purpose=PURPOSE)
    if isinstance(smiles, str):
        raise InputError("one SMILES string was given; a list of them is needed.", f"Pass [{smiles!r}].")
    if salts not in ("strip", "keep"):
        raise InputError(f"salts={salts!r} is not known.", "Pass 'strip' or 'keep'.")
    rows, wrong = [], []
    with _quiet_rdkit():
        neutral = standard.Uncharger()
        for i, text in enumerate(smiles):
            molecule = chem.MolFromSmiles(text) if isinstance(text, str) and text.strip() else None
            if molecule is None or molecule.GetNumAtoms() == 0:
                wrong.append(f"row {i}: {text!r}")
                continue
            parts = sorted(chem.GetMolFrags(molecule, asMols=True), key=chem.MolToSmiles)
            best = max(parts, key=lambda part: part.GetNumHeavyAtoms()) if salts == "strip" else molecule
            others = [chem.MolToSmiles(part) for part in parts if salts == "strip" and part is not best]
            kept = neutral.uncharge(best) if salts == "strip" else best
            rows.append((text, chem.MolToSmiles(kept), ".".join(others)))
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(smiles)} SMILES are no molecules that RDKit reads: {'; '.join(wrong[:8])}"
            + (f" and {len(wrong) - 8} more." if len(wrong) > 8 else "."),
            "Correct them (PubChem gives the isomeric SMILES of a drug's name), or leave these drugs out.",
        )
    return pd.DataFrame(rows, columns=["smiles", "canonical", "left_out"])


@contextmanager
def _quiet_rdkit() -> Iterator[None]:
    """Without RDKit's own messages on stderr; the error says the same, with the rows."""
    block = optional("rdkit.rdBase", extra="drug", purpose=PURPOSE).BlockLogs()
    try:
        yield
    finally:
        del block


@dataclass(frozen=True, eq=False)
class MoleculeEncoder(ABC):
    """Gives each molecule a vector, which is not trained."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of a vector."""

    @abstractmethod
    def vectors(self, molecules: Sequence[str]) -> np.ndarray:
        """Vectors of molecules (n, dim) float32."""

    def record(self) -> dict[str, Any]:
        """Plain values that `molecules_from` reads."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, eq=False)
class Morgan(MoleculeEncoder):
    """Morgan fingerprints (Rogers and Hahn 2010, doi:10.1021/ci100050t), RDKit's `GetMorganGenerator`; radius 2 is ECFP4.

    Parameters
    ----------
    radius
        Bonds from an atom that its neighbourhood reaches.
    size
        Length of the vector, to which neighbourhoods are folded.
    counts
        How often a neighbourhood occurs, as log(1 + count), instead of whether.
    chirality
        Tell stereoisomers apart.
    salts
        As for `canonical_smiles`.
    """

    radius: int = 2
    size: int = 1024
    counts: bool = False
    chirality: bool = False
    salts: Literal["strip", "keep"] = "strip"

    kind: ClassVar[str] = "morgan"

    @property
    def dim(self) -> int:
        """The size."""
        return self.size

    def vectors(self, molecules: Sequence[str]) -> np.ndarray:
        """0 and 1, or log(1 + count), for SMILES (n, size) float32."""
        if self.radius < 0 or self.size < 1:
            raise InputError(f"radius={self.radius}, size={self.size}; radius must be 0 or more, size positive.")
        chem = optional("rdkit.Chem", extra="drug", purpose=PURPOSE)
        make = optional("rdkit.Chem.rdFingerprintGenerator", extra="drug", purpose=PURPOSE).GetMorganGenerator
        generator = make(radius=self.radius, fpSize=self.size, includeChirality=self.chirality)
        found = np.zeros((len(molecules), self.size), dtype=np.float32)
        for row, text in enumerate(canonical_smiles(molecules, salts=self.salts)["canonical"]):
            molecule = chem.MolFromSmiles(text)
            found[row] = (
                np.log1p(generator.GetCountFingerprintAsNumPy(molecule).astype(np.float64))
                if self.counts
                else generator.GetFingerprintAsNumPy(molecule)
            )
        return found


@dataclass(frozen=True, eq=False)
class LanguageModel(MoleculeEncoder):
    """A chemical language model by transformers, e.g. ChemBERTa (Chithrananda et al. 2020, arXiv:2010.09885); it is not trained.

    Parameters
    ----------
    source
        Folder with the files of a Hugging Face model and its tokenizer, or a name on the hub, e.g. "DeepChem/ChemBERTa-77M-MLM".
    revision
        On the hub.
    pooling
        "mean" of the last states of all tokens, or that of the first ("cls").
    salts
        As for `canonical_smiles`.
    sha256
        Of the model's tensors; other weights are refused. Empty: any.
    """

    source: str
    revision: str | None = None
    pooling: Literal["mean", "cls"] = "mean"
    salts: Literal["strip", "keep"] = "strip"
    sha256: str = ""

    kind: ClassVar[str] = "language_model"

    @property
    def dim(self) -> int:
        """Width of the model's states."""
        transformers = optional("transformers", extra="drug", purpose=PURPOSE)
        return int(transformers.AutoConfig.from_pretrained(self.source, revision=self.revision).hidden_size)

    def vectors(self, molecules: Sequence[str]) -> np.ndarray:
        """Pooled states for SMILES (n, dim) float32."""
        import torch

        if self.pooling not in ("mean", "cls"):
            raise InputError(f"pooling={self.pooling!r} is not known.", "Pass 'mean' or 'cls'.")
        smiles = canonical_smiles(molecules, salts=self.salts)["canonical"].tolist()
        tokenizer, model = self._load()
        found = np.zeros((len(smiles), model.config.hidden_size), dtype=np.float32)
        most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 10**9) - 2)
        for row, text in enumerate(
            smiles
        ):  # one at a time: no padding, the same numbers whatever is asked for together
            tokens = tokenizer(text, return_tensors="pt")
            if tokens["input_ids"].shape[1] > most:
                raise InputError(
                    f"{text!r} has {tokens['input_ids'].shape[1]} tokens; {self.source} reads {most}.",
                    "Leave this drug out, or use Morgan().",
                )
            with torch.inference_mode():
                states = model(**tokens).last_hidden_state[0]  # (t, dim)
            found[row] = (states.mean(dim=0) if self.pooling == "mean" else states[0]).float().numpy()
        return found

    def record(self) -> dict[str, Any]:
        """With the hash of the weights."""
        from scfm.tensors import fingerprint_of

        return {**super().record(), "sha256": self.sha256 or fingerprint_of(self._load()[1])}

    def _load(self) -> tuple[Any, Any]:
        import torch

        from scfm.tensors import fingerprint_of

        transformers = optional("transformers", extra="drug", purpose=PURPOSE)
        log = transformers.utils.logging
        level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
        try:
            log.disable_progress_bar()
            log.set_verbosity_error()  # a masked-language checkpoint has no pooler; it isn't used
            with torch.random.fork_rng([]):
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.source, revision=self.revision)
                model = transformers.AutoModel.from_pretrained(self.source, revision=self.revision).eval().float()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"no language model of molecules at {self.source!r}: {str(error).splitlines()[0]}",
                "Pass a folder with config.json, weights and tokenizer, or a name on the Hugging Face hub.",
            ) from error
        finally:
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()
        for name, parameter in list(model.named_parameters()):
            if name.startswith("pooler."):  # random where the checkpoint has none; never read, and no part of the hash
                parameter.data.zero_()
        if self.sha256 and (found := fingerprint_of(model)) != self.sha256:
            raise CheckpointError(
                f"the weights of {self.source!r} are others (sha256 {found[:12]}...) than those used before ({self.sha256[:12]}...).",
                "Pass the revision or folder that was used.",
            )
        return tokenizer, model


@dataclass(frozen=True, eq=False)
class MoleculeTable(MoleculeEncoder):
    """Vectors of one's own.

    Parameters
    ----------
    table
        Finite numbers, one row a molecule, indexed by SMILES or, with ``key="drug"``, by the drug's name.
    key
        What the index holds. SMILES are compared in their canonical form.
    """

    table: pd.DataFrame
    key: Literal["smiles", "drug"] = "smiles"

    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        if self.key not in ("smiles", "drug"):
            raise InputError(f"key={self.key!r} is not known.", "Pass 'smiles' or 'drug'.")
        values = self.table.to_numpy()
        if values.dtype.kind not in "iufb" or not np.isfinite(values).all() or values.size == 0:
            raise InputError(
                "the table of molecules must hold finite numbers in every row.", "Fill or drop the others."
            )
        if self.table.index.has_duplicates:
            twice = self.table.index[self.table.index.duplicated()].unique()
            raise InputError(f"the table of molecules has several rows for {listing(twice)}.", "Keep one row each.")

    @property
    def dim(self) -> int:
        """Columns of the table."""
        return int(self.table.shape[1])

    def vectors(self, molecules: Sequence[str]) -> np.ndarray:
        """Rows of the table (n, dim) float32."""
        names, wanted = self.table.index.astype(str).tolist(), list(map(str, molecules))
        if self.key == "smiles":
            names, wanted = (canonical_smiles(list(part))["canonical"].tolist() for part in (names, wanted))
        place = {name: row for row, name in enumerate(names)}
        if missing := sorted({given for given, name in zip(molecules, wanted, strict=True) if name not in place}):
            raise InputError(
                f"the table of molecules has no row for {listing(missing)}; it has {listing(self.table.index, 3)}.",
                "Add these rows, or use Morgan(), which reads any SMILES.",
            )
        return self.table.to_numpy(dtype=np.float32)[[place[name] for name in wanted]]

    def record(self) -> dict[str, Any]:
        """With the vectors themselves, as base64 of little-endian float32."""
        values = np.ascontiguousarray(self.table.to_numpy(dtype="<f4"))
        return {
            "kind": self.kind,
            "key": self.key,
            "index": self.table.index.astype(str).tolist(),
            "dim": self.dim,
            "values": base64.b64encode(values.tobytes()).decode("ascii"),
        }


def molecules_from(record: Mapping[str, Any]) -> MoleculeEncoder:
    """What `MoleculeEncoder.record` wrote."""
    settings = dict(record)
    kind = settings.pop("kind")
    if kind == MoleculeTable.kind:
        import pandas as pd

        values = np.frombuffer(base64.b64decode(settings["values"]), dtype="<f4").reshape(-1, settings["dim"])
        return MoleculeTable(pd.DataFrame(values, index=settings["index"]), key=settings["key"])
    return {Morgan.kind: Morgan, LanguageModel.kind: LanguageModel}[kind](**settings)


def molecules_of(given: MoleculeEncoder | str | pd.DataFrame | PathLike[str]) -> MoleculeEncoder:
    """An encoder as it is, "morgan", a table, or the source of a language model."""
    import pandas as pd

    if isinstance(given, MoleculeEncoder):
        return given
    if isinstance(given, pd.DataFrame):
        return MoleculeTable(given)
    return Morgan() if given == "morgan" else LanguageModel(str(given))
