"""Self-supervised training on pairs of views of the same cells.

The counts of a cell are split at random into two independent halves; a view is a half, thinned further and without some of its genes.
From the embedding of one view the other half is predicted, and the two views of a cell are to be more similar than views of different
cells (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748).
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from scfm.cells import Block
from scfm.encoder import CellEncoder, Request
from scfm.genes import Alignment, GeneReport
from scfm.recipes.pretrain_mini.config import StageConfig, TrainConfig
from scfm.recipes.pretrain_mini.corpus import Group
from scfm.recipes.pretrain_mini.views import split, thin
from scfm.tokenizers import Batch, Tokenizer

__all__ = ["Pair", "Pretraining", "draw_pair", "start_as_identity", "train"]

LOG = ("stage", "step", "group", "loss", "reconstruction", "contrast", "retrieved", "seconds")


@dataclass(frozen=True)
class Pair:
    """Two views of the same cells and what they are to predict.

    Parameters
    ----------
    views
        Tokens of the first and of the second view, b cells each.
    halves
        (b, n_panel) float32 counts of the half each view was made of.
    """

    views: tuple[Batch, Batch]
    halves: tuple[Tensor, Tensor]


def draw_pair(group: Group, tokenizer: Tokenizer, config: TrainConfig, cells: int, rng: np.random.Generator) -> Pair:
    """Split some cells of a group, chosen at random, and make a view of each half."""
    most = group.counts.shape[0]
    whole = group.counts[np.sort(rng.choice(most, min(cells, most), replace=False))]
    halves = split(whole, rng)
    views = tuple(_tokens(thin(half, config.view, rng), tokenizer) for half in halves)
    panels = tuple(torch.from_numpy(half[:, group.panel].toarray()) for half in halves)
    return Pair(views, panels)  # type: ignore[arg-type]


def _tokens(view: sparse.csr_matrix, tokenizer: Tokenizer) -> Batch:
    tokens = tokenizer.tokenize(Block(view, _identity(view.shape[1]), pd.DataFrame(index=range(view.shape[0]))))
    return tokens.collate(np.arange(len(tokens)))


def _identity(n: int) -> Alignment:
    """Column number = token id."""
    report = GeneReport(column="index", features=n, matched=n, duplicates=0, mapped=False)
    return Alignment(np.arange(n), np.empty(0, dtype=object), report)


class Pretraining(nn.Module):
    """The network with its training heads, which are not shipped."""

    def __init__(self, encoder: CellEncoder, groups: Iterable[Group], config: TrainConfig) -> None:
        super().__init__()
        self.network, self.config = encoder.network, config
        dim = encoder.dim
        self.decoder = nn.Linear(dim, dim)
        nn.init.zeros_(self.decoder.weight)  # begins with the usual shares
        nn.init.zeros_(self.decoder.bias)
        self.projector = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.panels = {group.name: torch.from_numpy(group.panel) for group in groups}
        self.usual = {group.name: _log_share(group) for group in groups}

    def forward(self, pair: Pair, group: str, layers: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean reconstruction loss, contrastive loss, and share of cells whose other view is the nearest."""
        request = Request(hidden_layer=layers)
        a, b = (self.network(view, request).cells for view in pair.views)  # (cells, dim)
        reconstruction = (self._reconstruct(a, pair.halves[1], group) + self._reconstruct(b, pair.halves[0], group)) / 2
        similarity = F.normalize(self.projector(a), dim=-1) @ F.normalize(self.projector(b), dim=-1).T
        logits, same = similarity / self.config.temperature, torch.arange(len(a))
        contrast = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        return reconstruction, contrast, (logits.argmax(dim=1) == same).float().mean()

    def _reconstruct(self, cells: Tensor, counts: Tensor, group: str) -> Tensor:
        """Cross-entropy between log1p counts of the other half and predicted shares of the genes, beyond the group's usual shares."""
        genes = self.network.genes(self.panels[group])  # type: ignore[operator]  # (n_panel, dim)
        usual = self.usual[group]
        logits = self.decoder(cells * math.sqrt(cells.shape[1])) @ genes.T + usual
        target = counts.log1p()
        target = target / target.sum(dim=1, keepdim=True).clamp(min=1e-6)
        gain = (target * (F.log_softmax(logits, dim=1) - usual.log_softmax(0))).sum(dim=1)
        return -gain.mean()


def _log_share(group: Group) -> Tensor:
    """log of each panel gene's share in the group (n_panel,)."""
    total = np.asarray(group.counts[:, group.panel].log1p().sum(axis=0)).ravel() + 1.0
    return torch.from_numpy(np.log(total / total.sum()).astype(np.float32))


def train(encoder: CellEncoder, groups: list[Group], config: TrainConfig, *, checkpoint: Path, log: Path) -> None:
    """Train an encoder in place.

    Parameters
    ----------
    checkpoint
        Folder that has its weights so far, in float32, every `checkpoint_every` steps.
    log
        CSV file with a row a step.
    """
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Pretraining(encoder, groups, config).train()
    start = time.monotonic()
    with log.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(LOG)
        for stage in range(len(config.stages)):
            for step, *row in _stage(model, encoder, groups, config, stage, rng):
                rows.writerow([stage, step, *row, f"{time.monotonic() - start:.0f}"])
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.stages[stage].steps:
                    encoder.save(checkpoint)
                    file.flush()
    encoder.network.eval()


def _stage(
    model: Pretraining,
    encoder: CellEncoder,
    groups: list[Group],
    config: TrainConfig,
    number: int,
    rng: np.random.Generator,
) -> Iterator[tuple[Any, ...]]:
    """One stage; yields the row of the log after each step."""
    stage = config.stages[number]
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, stage))
    tokenizer = encoder.with_options(context=stage.context).tokenizer
    shares = np.array([group.share for group in groups])
    for step in range(stage.steps):
        group = groups[rng.choice(len(groups), p=shares / shares.sum())]
        pair = draw_pair(group, tokenizer, config, stage.cells, rng)
        reconstruction, contrast, retrieved = model(pair, group.name, stage.layers)
        loss = reconstruction + config.contrast * contrast
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        yield step, group.name, *(f"{x.item():.4f}" for x in (loss, reconstruction, contrast, retrieved))


def _rate(step: int, stage: StageConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - stage.warmup) / max(stage.steps - stage.warmup, 1)))


def start_as_identity(network: nn.Module) -> None:
    """Zero the last Linear of every residual branch, so that layers begin by passing their input on."""
    for layer in network.layers:  # type: ignore[union-attr]
        for linear in (layer.attention.o, layer.ff2):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
