"""The kind of recipe "pretrain_mini" and its settings; unknown keys are refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from scfm.errors import InputError, listing
from scfm.plans import Plan, Recipe
from scfm.plans import Strict as _Frozen

__all__ = [
    "Config",
    "PretrainMini",
    "CorpusConfig",
    "NetworkConfig",
    "SetConfig",
    "StageConfig",
    "TrainConfig",
    "ViewConfig",
]


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
    """All that decides the outcome; in the recipe `pretrain_mini.yaml` beside what is not."""

    corpus: CorpusConfig
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig


class PretrainMini(Recipe):
    """The kind of recipe that trains mini, or an encoder of its architecture on other cells.

    Raises
    ------
    InputError
        Files of the corpus are missing, or hold no cells.
    """

    kind: Literal["pretrain_mini"]
    data: Path | None = None
    """Folder the paths of the corpus are below."""
    corpus: CorpusConfig
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig

    @property
    def config(self) -> Config:
        """What decides the outcome."""
        return Config(corpus=self.corpus, network=self.network, train=self.train)

    def _data(self) -> Path:
        if self.data is None:
            raise InputError("data is not set: the folder with the training sets.", "Add data=FOLDER.")
        paths = [self.data / name for of in self.corpus.sets for name in (of.path, of.leave_out) if name is not None]
        if missing := [str(path) for path in paths if not path.is_file()]:
            raise InputError(
                f"there is no file {listing(missing)}.", "Set data= to the folder that corpus.sets is below."
            )
        return self.data

    def plan(self) -> Plan:
        """What `run` would do."""
        from scfm.recipes.pretrain_mini import recipe

        return recipe.planned(self.title, self.config, self._data(), self.out)

    def run(self, *, progress: bool | None = None) -> Mapping[str, Any]:
        """Train, and write weights, log.csv and loss.png to `out`."""
        from scfm.recipes.pretrain_mini import recipe

        data, out = self._data(), self.folder()
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError(
                "pretrain_mini trains in one process.", "Start it without torchrun; pretrain_masked trains in several."
            )
        encoder = recipe.pretrain(self.config, data, weights=out, results=out)
        self.write(out)
        return {"out": str(out), "model": encoder.name, "metrics": recipe.last_losses(out)}
