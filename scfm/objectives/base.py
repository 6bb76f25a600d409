"""What training is for: `Objective`, what a user asks for, and `Target`, what it becomes on the training cells.

How an objective is added: see `scfm.objectives`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from scfm.encoder import CellEncoder, Encoded, Network, Request
from scfm.errors import CapabilityError, InputError, listing
from scfm.examples import Cells, Labelled, batch_of, embeddings, spread
from scfm.heads import PredictionHead
from scfm.tokenizers.base import Batch, Tokens

if TYPE_CHECKING:
    import pandas as pd

    from scfm.adaptation import Method

__all__ = ["Objective", "Target", "complete"]


class Objective(ABC):
    """What to train for; `target` fits it to the training cells."""

    reads_matrix: ClassVar[bool] = False
    """Whether the cells' values are kept in memory, as `Labelled.matrices`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `obs` it reads."""
        return ()

    @abstractmethod
    def target(self, obs: pd.DataFrame) -> Target:
        """The target for these training cells; labels that cannot be learned are refused."""


class Target(ABC):
    """An objective on certain data. All but `encode`, `loss` and `scores` has a meaning by default: a head that reads embeddings.

    A target is a frozen dataclass of plain values, so that `record` can be stored and read again.
    """

    kind: ClassVar[str]
    metrics: ClassVar[Mapping[str, bool]]
    """Held-out scores -> whether higher is better; the first decides which epoch is best, unless the user names another."""
    needs_network: ClassVar[bool] = False
    """Whether the network itself must be trained: the objective gives a frozen one nothing ("head" is refused)."""
    predicts: ClassVar[bool] = True
    """Whether there is an answer for new cells (`FineTuned.predict`)."""

    # The labels

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `obs` it reads."""
        return ()

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """Labels of cells: (n_cells,) int64 classes, -1 for one not trained on; or float32. Without labels, zeros."""
        return np.zeros(len(obs), dtype=np.int64)

    @property
    def strata(self) -> bool:
        """Whether labels are classes, which a split keeps in proportion and `balanced=True` draws alike."""
        return False

    # The network and what is trained along with it

    def ready(self, encoder: CellEncoder) -> CellEncoder:
        """An encoder with the parts and tokenizer settings that the objective needs; its shared tensors are those of the one given.

        Called before training and again by `scfm.load`. Tensors that the given network has not are stored with the fine-tuned encoder.

        Raises
        ------
        CapabilityError
            The model lacks what the objective needs.
        """
        return encoder

    def conditioned(self, encoder: CellEncoder, cells: Labelled) -> Labelled:
        """Examples whose tokens carry what else the network reads of them; `encoder` is the one that `ready` gave."""
        return cells

    def fits(self, method: Method, encoder: CellEncoder) -> None:
        """Refuse a method that cannot serve the objective."""
        return

    def request(self, network: Network) -> Request:
        """The outputs of the network that `step` reads: what does not take part in them is not trained."""
        return Request()

    @property
    def outputs(self) -> int:
        """Numbers that `answer` gives for a cell."""
        return 0

    def head(self, encoder: CellEncoder, dropout: float) -> nn.Module:
        """What is trained along with the network; of the same shape when the fine-tuned encoder is loaded."""
        return PredictionHead(encoder.dim, self.outputs, dropout=dropout)

    def start(self, head: nn.Module, encoder: CellEncoder, cells: Labelled) -> None:
        """Fit the head's constants to training cells before training; what the encoder cannot learn from them is refused."""
        if isinstance(head, PredictionHead):
            head.standardise(embeddings(encoder, spread(cells)))

    # Training

    def examples(self, encoder: CellEncoder, cells: Labelled, inputs: Tokens | np.ndarray, *, seed: int) -> Cells:
        """The data set of training or held-out cells; `inputs` are their tokens, or embeddings where the network is frozen."""
        return Cells(inputs, self.encode(cells.obs), cells.groups if isinstance(inputs, Tokens) else None)

    def step(self, network: Network | None, head: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """The loss () and outputs (b, ...) that `scores` reads, for a batch of `examples`; network is None where it is frozen."""
        if network is None:
            batch, encoded = None, Encoded(cells=inputs["embedding"])
        else:
            batch = batch_of(inputs)
            encoded = network(batch, self.request(network))
        outputs = self.answer(head, encoded, batch).float()
        return {"loss": self.loss(outputs, inputs["labels"]), "outputs": outputs}

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean over the cells of a batch: (b, outputs), (b, ...) -> ()."""
        raise NotImplementedError

    @abstractmethod
    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Scores of held-out cells, by the names in `metrics`."""

    # The answer

    def answer(self, head: nn.Module, encoded: Encoded, batch: Batch | None) -> Tensor:
        """The prediction (b, outputs) from what `request` asked for."""
        return head(encoded.cells)

    def frame(self, outputs: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """The answer for cells, NaN where outputs are."""
        raise CapabilityError(f"an encoder fine-tuned for {self.kind} predicts nothing.", "Use embed().")

    def record(self) -> dict[str, Any]:
        """Plain values that `target_from` reads."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


def complete(obs: pd.DataFrame, column: str) -> pd.Series:
    """A column without missing values."""
    if column not in obs.columns:
        raise InputError(
            f"obs has no column {column!r} (columns: {listing(map(str, obs.columns))}).",
            "Name the column to predict as the objective.",
        )
    values = obs[column]
    if missing := int(values.isna().sum()):
        raise InputError(
            f"obs[{column!r}] has no value for {missing:,} of {len(values):,} cells; every cell needs one.",
            f"Leave them out: adata[adata.obs[{column!r}].notna()].",
        )
    return values
