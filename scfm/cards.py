"""Model cards: what a model is, reads and may be used for. One TOML file a variant.

A fact that is not known is the string ``"unverified"``; it is never guessed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scfm.errors import CheckpointError

__all__ = ["UNVERIFIED", "InputContract", "ModelCard", "Parity", "Weights"]

UNVERIFIED = "unverified"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputContract(_Frozen):
    """What an encoder reads from an AnnData."""

    values: Literal["counts", "lognorm", "any"] = "counts"
    """Unit of the matrix: raw integer counts, log1p of counts per 10,000, or either."""
    genes: Literal["symbol", "ensembl", "locus", "region", "any"] = "symbol"
    """Kind of feature identifier the vocabulary holds."""
    obs: tuple[str, ...] = ()
    """Columns of `obs` the model can use, e.g. a batch key."""
    sees_other_cells: bool = False
    """Cells of one group legitimately influence each other (e.g. cells are the tokens)."""


class Weights(_Frozen):
    """Where the authors' files are."""

    repo: str | None = None
    revision: str | None = None
    folder: str | None = None
    """Folder of the repository that holds the files, if not its root."""
    files: dict[str, str] = Field(default_factory=dict)
    """File name, within `folder` -> sha256, or "unverified"."""
    package_data: str | None = None
    """Folder inside the adapter that ships the weights, for models small enough to embed."""
    elsewhere: str | None = None
    """Where to get the files by hand when no hub repository exists."""

    def digest(self, file: str) -> str | None:
        """sha256 of a file as the card states it, None where unverified."""
        value = self.files.get(file)
        return None if value in (None, UNVERIFIED) else value


class Parity(_Frozen):
    """How closely outputs of the original code are reproduced, as measured by tests/parity."""

    fixture: str
    max_abs_diff: dict[str, float] = Field(default_factory=dict)
    """Recorded array -> largest absolute difference."""


class ModelCard(_Frozen):
    """Facts about one model variant.

    Raises
    ------
    CheckpointError
        From `read`, when the file is not a valid card; the message names the field.
    """

    name: str
    title: str
    default: bool = False
    """Loaded when only the family is named."""
    aliases: tuple[str, ...] = ()
    """Other names the model is known by; `notes` say why."""
    paper: str = UNVERIFIED
    """DOI or arXiv id."""
    code: str = UNVERIFIED
    code_licence: str = UNVERIFIED
    weights_licence: str = UNVERIFIED
    restricted: str | None = None
    """A condition of use the user must know of when loading (copyleft, non-commercial)."""
    species: tuple[str, ...] = ()
    modality: tuple[str, ...] = ("rna",)
    parameters: int | None = None
    dim: int | None = None
    input: InputContract = InputContract()
    weights: Weights = Weights()
    parity: Parity | None = None
    notes: str = ""
    """What users should know, in Markdown."""

    @property
    def family(self) -> str:
        """The adapter the card belongs to: the name up to the first slash."""
        return self.name.partition("/")[0]

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """Read a card from TOML."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (ValidationError, tomllib.TOMLDecodeError) as error:
            raise CheckpointError(f"{path} is not a valid model card: {error}") from error
