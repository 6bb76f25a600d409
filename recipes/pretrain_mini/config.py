"""Settings of the recipe, read from YAML; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scfm.errors import InputError

__all__ = ["Config", "CorpusConfig", "NetworkConfig", "SetConfig", "StageConfig", "TrainConfig", "ViewConfig"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SetConfig(_Frozen):
    """One training set."""

    path: str
    """.h5ad below the data folder."""
    share: float = Field(gt=0)
    """Weight in the choice of the set of each batch."""
    leave_out: str | None = None
    """.h5ad whose cells (by barcode) are left out."""
    keep: dict[str, str] = {}
    """obs column -> the only value kept."""
    components: int = 0
    """Dimensions of the gene table that start from this set's components, shared out among its groups."""
    groups: str | None = None
    """obs column; a batch holds cells of one group (a study, a platform), so that telling them apart is no help."""


class CorpusConfig(_Frozen):
    """What is learned from."""

    sets: tuple[SetConfig, ...]
    min_cells: int = 3
    """A gene is in the vocabulary when it is seen in so many training cells."""
    random_share: float = 0.25
    """Variance over cells of a dimension of the gene table that starts at random, beside that of a component."""


class NetworkConfig(_Frozen):
    """Sizes of the network."""

    dim: int = 128
    heads: int = 4
    hidden: int = 256
    layers: int = 3


class StageConfig(_Frozen):
    """One stage of training."""

    steps: int
    layers: int | None = None
    """Layers that take part; None is all, 0 leaves the mean of gene vectors weighted by their values, which learns fast."""
    cells: int = 96
    """Cells of a batch."""
    context: int = 192
    """Most tokens of a view."""
    learning_rate: float = 2e-3
    warmup: int = 50
    """Steps of linear warm-up, before a cosine decay to zero."""


class ViewConfig(_Frozen):
    """What a view shows of a half of a cell's counts."""

    min_depth: float = 200.0
    """It is thinned to a total drawn log-uniformly from here to all of the half (all, where that is less)."""
    min_genes: float = 0.4
    """Share of the genes it can see, drawn uniformly from here to 1."""


class TrainConfig(_Frozen):
    """How it is learned."""

    view: ViewConfig = ViewConfig()
    stages: tuple[StageConfig, ...]
    contrast: float = 0.2
    """Weight of the contrastive loss beside the reconstruction."""
    temperature: float = 0.2
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient."""
    checkpoint_every: int = 100
    seed: int = 0


class Config(_Frozen):
    """The whole recipe.

    Raises
    ------
    InputError
        From `read`, when the file has an unknown key or a value of the wrong kind.
    """

    corpus: CorpusConfig
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read YAML."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (ValidationError, yaml.YAMLError) as error:
            raise InputError(f"{path} is not a configuration of pretrain_mini: {error}") from error
