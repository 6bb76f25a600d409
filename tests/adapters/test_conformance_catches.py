"""The conformance kit sees every fault it is there for: one broken encoder for each check, and an intact one that passes all."""

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from anndata import AnnData
from torch import nn

from scfm import registry
from scfm.cards import InputContract, ModelCard
from scfm.encoder import Capability, CellEncoder, Encoded, Network, Request
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.nn import NormedEmbedding, TransformerLayer, TransformerStack, ValueMLP
from scfm.testing import CHECKS, ConformanceError, applicable, check_encoder, example_data
from scfm.tokenizers import BinTokenizer

GENES = 40


# An intact encoder


@dataclass(frozen=True)
class ToyConfig:
    tokens: int = GENES + 2
    dim: int = 16


class ToyNetwork(Network):
    """Genes + values, two transformer layers; the cell is the first state."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.dim, self.depth = config.dim, 2
        self.heads = frozenset({"expression"})
        self.genes = NormedEmbedding(config.tokens, config.dim)
        self.values = ValueMLP(config.dim)
        self.layers = TransformerStack(TransformerLayer(config.dim, 2, 16) for _ in range(2))
        self.decoder = nn.Linear(config.dim, 1)

    def forward(self, batch, request=Request()):
        x = self.genes(batch["ids"]) + self.values(batch["values"])
        wanted = range(2) if request.attention_layers is None else request.attention_layers
        layers = self.depth if request.hidden_layer is None else request.hidden_layer
        run = self.layers.run(x, batch.pad, layers=layers, attention=wanted if request.wants("attention") else ())
        heads = {"expression": self.decoder(run.states).squeeze(-1)} if request.wants("expression") else {}
        return Encoded(cells=run.states[:, 0], tokens=run.states, attention=run.attention, heads=heads)


class Toy(CellEncoder):
    Config = ToyConfig
    capabilities = frozenset(
        {Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION, Capability.EXPRESSION}
    )
    network_class: ClassVar[type[Network]] = ToyNetwork
    tokenizer_class: ClassVar[type[BinTokenizer]] = BinTokenizer

    @classmethod
    def build(cls, config, vocabulary, card):
        return cls(
            config=config,
            network=cls.network_class(config),
            tokenizer=cls.tokenizer_class(vocabulary, bins=5, context=30),
            card=card,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint):
        raise NotImplementedError

    def gene_vectors(self, kind):
        return self.network.genes.table.weight


def toy(cls: type[Toy] = Toy, *, installed: pytest.MonkeyPatch, **contract: Any) -> Toy:
    """An encoder with random weights, whose adapter counts as installed."""
    vocabulary = Vocabulary(
        ("<pad>", "<cls>", *(f"GENE{i}" for i in range(GENES))),
        ids="symbol",
        special={"pad": "<pad>", "cls": "<cls>"},
    )
    card = ModelCard(name="toy", title="Toy", input=InputContract(**contract))

    class Installed(registry.Adapter):
        def load_class(self):
            return cls

    known = {"toy": Installed("toy", EntryPoint("toy", "nowhere:Toy", registry.GROUP), Path(), (card,))}
    installed.setattr(registry, "adapters", lambda: known)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls.build(ToyConfig(), vocabulary, card)


def test_intact_encoder_passes_all_checks(monkeypatch):
    check_encoder(toy(installed=monkeypatch))


# Faults


FAULTS: list[tuple[str, type[Toy], str]] = []


def fault(check: str, found: str = "(?!raised)") -> Callable[[type], type]:
    """Register a broken encoder, or one with this broken network or tokenizer, that a check must refuse; it does not raise by itself."""

    def register(cls: type) -> type:
        part = "network_class" if issubclass(cls, Network) else "tokenizer_class"
        whole = cls if issubclass(cls, Toy) else type(cls.__name__, (Toy,), {part: cls})
        FAULTS.append((check, whole, found))
        return cls

    return register


class AnyCells(ToyNetwork):
    """A network that passes its cell embeddings through `changed`."""

    def changed(self, cells, batch):
        raise NotImplementedError

    def forward(self, batch, request=Request()):
        out = super().forward(batch, request)
        return replace(out, cells=self.changed(out.cells, batch))


class AnyCall(Toy):
    """An encoder that passes every call of `embed` through `called`."""

    def called(self, data, options):
        raise NotImplementedError

    def plain(self, data, options):
        return super().embed(data, **options)

    def embed(self, data, **options):
        return self.called(data, options)


@fault("determinism")
class NoisyNetwork(AnyCells):
    noise = torch.Generator()

    def changed(self, cells, batch):
        return cells + 1e-4 * torch.rand(cells.shape, generator=self.noise)


@fault("batch_mates")
class BatchStatistics(AnyCells):
    def changed(self, cells, batch):
        return cells - cells.mean(dim=0)


@fault("cell_order")
class PositionInTheBatch(AnyCells):
    def changed(self, cells, batch):
        return cells + 1e-4 * torch.arange(len(cells))[:, None]


@fault("chunking")
class ScalesByTheBlock(BinTokenizer):
    def stream(self, seed=0):
        plain = super().stream(seed)

        def tokenize(block):
            tokens = plain(block)
            values = tokens.fields["values"] * np.float32(1 + len(block) / 100)
            return replace(tokens, fields={**tokens.fields, "values": values})

        return tokenize


@fault("batch_size")
class SizeOfTheBatch(AnyCells):
    def changed(self, cells, batch):
        return cells * (1 + 1e-4 * len(batch))


@fault("padding")
class AttendsToPadding(ToyNetwork):
    def forward(self, batch, request=Request()):
        return super().forward(replace(batch, pad=None), request)


@fault("padding")
class PoolsPadding(ToyNetwork):
    def forward(self, batch, request=Request()):
        out = super().forward(batch, request)
        return replace(out, cells=out.tokens.mean(dim=1))


@fault("group_mates")
class SaysThatCellsSeeEachOther(Toy):
    """Without groups."""


@fault("group_mates")
class MixesGroups(Toy):
    """Cells see each other across batches of one run and the next."""

    class Grouped(BinTokenizer):
        grouped = True
        group_key = "sample"

    class Network(AnyCells):
        before = torch.zeros(16)

        def changed(self, cells, batch):
            mixed = cells + 0.1 * type(self).before
            type(self).before = cells.mean(dim=0)
            return mixed

    network_class = Network
    tokenizer_class = Grouped


@fault("seed")
class UndocumentedSeed(BinTokenizer):
    random = False


@fault("callers_data")
class SortsTheCallersMatrix(AnyCall):
    def called(self, data, options):
        data.X.sort_indices()
        return self.plain(data, options)


@fault("callers_data")
class LeavesColumns(AnyCall):
    def called(self, data, options):
        data.obs["n_genes"] = 1
        return self.plain(data, options)


def _leaves(name: str, change: Callable[[], object]) -> None:
    class Leaves(AnyCall):
        def called(self, data, options):
            change()
            return self.plain(data, options)

    Leaves.__name__ = f"Leaves{name}"
    fault("process_state")(Leaves)


_leaves("NumpySeed", lambda: np.random.seed(0))  # noqa: NPY002
_leaves("TorchSeed", lambda: torch.manual_seed(0))
_leaves("PythonSeed", lambda: random.seed(0))
_leaves("RootHandler", lambda: logging.getLogger().addHandler(logging.NullHandler()))
_leaves("LoggerLevel", lambda: logging.getLogger("scfm").setLevel(logging.DEBUG))
_leaves("WarningFilter", lambda: warnings.simplefilter("ignore"))
_leaves("ThreadCount", lambda: torch.set_num_threads(torch.get_num_threads() + 1))
_leaves("GradMode", lambda: torch.set_grad_enabled(False))
_leaves("DefaultType", lambda: torch.set_default_dtype(torch.float64))
_leaves("Environment", lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))
_leaves("ErrorState", lambda: np.seterr(over="ignore"))


@fault("network_state")
class LeavesEvalMode(AnyCall):
    def called(self, data, options):
        self.network.eval()
        return self.plain(data, options)


@fault("network_state")
class CountsItsCalls(AnyCells):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("calls", torch.zeros(()))

    def changed(self, cells, batch):
        self.calls += 1
        return cells


@fault("network_state")
class StaysInTrainingMode(AnyCells):
    def changed(self, cells, batch):
        return F.dropout(cells, 0.5, training=getattr(self, "was_training", False))

    def train(self, mode=True):
        self.was_training = getattr(self, "was_training", False) or mode
        return super().train(mode)


@fault("no_cells")
class NeedsACell(AnyCall):
    def called(self, data, options):
        return self.plain(data, options) if len(data) else np.zeros(0, np.float32)


@fault("one_cell")
class Squeezes(AnyCall):
    def called(self, data, options):
        return self.plain(data, options).squeeze()


class CountsItsOwnToken(BinTokenizer):
    """So that no cell is empty."""

    def _tokens(self, *arguments):
        tokens = super()._tokens(*arguments)
        return replace(tokens, expressed=tokens.expressed + 1)


fault("empty_cells")(CountsItsOwnToken)


@fault("empty_cells_embedded")
class DropsEmptyCells(Toy):
    def encode(self, data, **options):
        for cells, tokens, encoded in super().encode(data, **options):
            yield cells[tokens.expressed > 0], tokens, encoded


@fault("empty_cells_embedded")
class DividesByTheShortest(AnyCells):
    def changed(self, cells, batch):
        if batch.pad is None:
            return cells
        return cells / (batch.pad.logical_not().sum(dim=1).min() - 1)


@fault("matrix_formats")
class ReadsDenseOnly(AnyCall):
    def called(self, data, options):
        if isinstance(data, AnnData) and not isinstance(data.X, np.ndarray):
            return self.plain(data, options) + np.float32(1e-3)
        return self.plain(data, options)


@fault("matrix_formats", "raised AttributeError")
class ReadsMemoryOnly(AnyCall):
    def called(self, data, options):
        data.X  # noqa: B018
        return self.plain(data, options)


@fault("several_data_sets")
class LastDataSetFirst(AnyCall):
    def called(self, data, options):
        return self.plain(data[::-1] if isinstance(data, list) else data, options)


@fault("number_types")
class ReadsFloat32Only(AnyCall):
    def called(self, data, options):
        return self.plain(data, options) + np.float32(1e-3 * (data.X.dtype != np.float32))


@fault("layers_and_columns", "raised InputWarning")
class IgnoresLayer(AnyCall):
    def called(self, data, options):
        return self.plain(data, options | {"layer": None})


@fault("layers_and_columns", "raised GeneMatchError")
class IgnoresGeneColumn(AnyCall):
    def called(self, data, options):
        return self.plain(data, options | {"gene_column": None})


@fault("wrong_values")
class ReadsAnything(AnyCall):
    def called(self, data, options):
        return self.plain(data, options | {"values": "any"})


@fault("save_and_load")
class UnsavedWeights(AnyCells):
    def __init__(self, config):
        super().__init__(config)
        self.unsaved = torch.rand(config.dim, generator=UnsavedWeights.generator)

    generator = torch.Generator()

    def changed(self, cells, batch):
        return cells + self.unsaved


@fault("save_and_load")
class ForgetsSettings(BinTokenizer):
    def settings(self):
        return {name: value for name, value in super().settings().items() if name != "context"} | {"context": 20}


@fault("out_files")
class RoundsFiles(AnyCall):
    def called(self, data, options):
        result = self.plain(data, options)
        if options.get("out") is not None:
            result[:] = result.round(2)
        return result


@fault("out_files")
class StoresElsewhere(AnyCall):
    def called(self, data, options):
        result = self.plain(data, options | {"key_added": None})
        if options.get("key_added"):
            data.obsm[options["key_added"]] = result
        return result


@fault("embedding_form")
class DoublePrecision(AnyCall):
    def called(self, data, options):
        return self.plain(data, options).astype(np.float64)


@fault("embedding_form")
class Collapsed(AnyCells):
    def changed(self, cells, batch):
        return torch.zeros_like(cells)


@fault("embedding_form")
class AcceptsAnyPooling(AnyCall):
    def called(self, data, options):
        return self.plain(data, options | {"pooling": None})


@fault("network_outputs")
class DeclaresWhatItLacks(ToyNetwork):
    def __init__(self, config):
        super().__init__(config)
        self.heads = self.heads | {"logits"}


@fault("network_outputs")
class OtherCellsBesideTokens(ToyNetwork):
    def forward(self, batch, request=Request()):
        out = super().forward(batch, request)
        return replace(out, cells=out.cells + 1) if request.wants("tokens") else out


@fault("gene_embeddings")
class EmptyGeneVectors(Toy):
    def gene_vectors(self, kind):
        return super().gene_vectors(kind) * torch.nan


@fault("gene_embeddings")
class TooFewGenes(Toy):
    def gene_embeddings(self, genes=None, *, kind=None):
        return super().gene_embeddings(genes, kind=kind).head(GENES - 1)


@fault("attention")
class LogitsAsAttention(ToyNetwork):
    def forward(self, batch, request=Request()):
        out = super().forward(batch, request)
        return replace(out, attention={layer: a.log() for layer, a in out.attention.items()})


@fault("attention")
class AttentionToPadding(ToyNetwork):
    def forward(self, batch, request=Request()):
        return super().forward(replace(batch, pad=None), request)


@fault("undeclared_capabilities")
class AttendsWithoutSayingSo(Toy):
    capabilities = Toy.capabilities - {Capability.ATTENTION}

    def attention(self, data, **options):
        return np.zeros((1, 1))


@fault("undeclared_capabilities")
class GivesExpressionWithoutSayingSo(Toy):
    capabilities = Toy.capabilities - {Capability.EXPRESSION}


@fault("low_rank_weights")
class ReadsRawWeights(ToyNetwork):
    def __init__(self, config):
        super().__init__(config)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, batch, request=Request()):
        out = super().forward(batch, request)
        return replace(out, cells=F.linear(out.cells, self.out.weight, self.out.bias))


@fault("low_rank_weights")
class ComputesInVain(AnyCells):
    def changed(self, cells, batch):
        self.decoder(cells)
        return cells


@fault("low_rank_weights")
class FusedLayers(AnyCells):
    def __init__(self, config):
        super().__init__(config)
        self.fused = nn.TransformerEncoderLayer(config.dim, 2, 16, batch_first=True)

    def changed(self, cells, batch):
        return self.fused(cells[:, None])[:, 0]


@contextlib.contextmanager
def everything_put_back():
    """Undo what broken encoders do to this process."""
    states = np.random.get_state(), torch.get_rng_state(), random.getstate(), np.geterr()  # noqa: NPY002
    handlers, level, threads = list(logging.root.handlers), logging.getLogger("scfm").level, torch.get_num_threads()
    try:
        with warnings.catch_warnings(), torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
            patch.delenv("TOKENIZERS_PARALLELISM", raising=False)
            yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM", None)
        np.random.set_state(states[0])  # noqa: NPY002
        torch.set_rng_state(states[1])
        random.setstate(states[2])
        np.seterr(**states[3])
        logging.root.handlers[:] = handlers
        logging.getLogger("scfm").setLevel(level)
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("check", "cls", "found"), FAULTS, ids=[f"{check}-{cls.__name__}" for check, cls, _ in FAULTS])
def test_fault_is_caught(check, cls, found, monkeypatch):
    encoder = toy(cls, installed=monkeypatch, sees_other_cells=check == "group_mates")
    assert check in applicable(encoder)
    with everything_put_back(), pytest.raises(ConformanceError, match=rf"(?m)^  {check}: {found}"):
        check_encoder(encoder, checks=[check])


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS} == set(CHECKS)


# The kit itself


def test_all_failures_are_listed(monkeypatch):
    encoder = toy(type("Broken", (Toy,), {"network_class": BatchStatistics}), installed=monkeypatch)
    with pytest.raises(
        ConformanceError, match=r"(?s)toy fails \d checks\..*\n  batch_mates: .*\n  cell_order: |batch_size: "
    ):
        check_encoder(encoder)


def test_checks_can_be_called_one_by_one(monkeypatch):
    encoder = toy(installed=monkeypatch)
    CHECKS["cell_order"](encoder, example_data(encoder))


def test_unknown_check_is_refused(monkeypatch):
    with pytest.raises(InputError, match="'cell_ordre'"):
        check_encoder(toy(installed=monkeypatch), checks=["cell_ordre"])


def test_example_data_are_the_same_for_a_seed_and_never_empty(monkeypatch):
    encoder = toy(installed=monkeypatch)
    first, again, other = example_data(encoder), example_data(encoder), example_data(encoder, seed=1)
    assert (first.X != again.X).nnz == 0
    assert (first.X != other.X).nnz > 0
    assert first.X.sum(axis=1).min() > 0
    assert sum(name not in encoder.vocabulary for name in first.var_names) == 3
    assert example_data(encoder, n_cells=3).n_obs == 3


def test_low_rank_weights_agree_with_peft(monkeypatch):
    peft = pytest.importorskip("peft")
    encoder = toy(installed=monkeypatch)
    data = example_data(encoder)
    before = encoder.embed(data)
    config = peft.LoraConfig(target_modules=["q", "k", "v", "o", "ff1", "ff2"], r=4, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder.network = peft.inject_adapter_in_model(config, encoder.network)
    assert np.abs(encoder.embed(data) - before).max() > 1e-2
