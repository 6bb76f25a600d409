import itertools
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch import nn

from scfm import inference, sinks
from scfm.cards import InputContract, ModelCard
from scfm.cells import BLOCK_ROWS
from scfm.encoder import Capability, CellEncoder, Encoded, Network, Request
from scfm.engine import plan_batches
from scfm.errors import CapabilityError, GeneMatchError, InputError, ResumeError
from scfm.genes import Vocabulary
from scfm.reading import InputWarning
from scfm.tokenizers import ContinuousTokenizer

GENES = 12
N = 2 * BLOCK_ROWS + 100


@dataclass(frozen=True)
class StubConfig:
    dim: int = 5


class StubNetwork(Network):
    """A weighted sum of gene vectors; one layer."""

    def __init__(self, config):
        super().__init__()
        self.dim, self.depth, self.heads = config.dim, 1, frozenset({"total"})
        self.genes = nn.Embedding(GENES, config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.fails_at: float | None = None

    def forward(self, batch, request=Request()):
        if self.fails_at is not None and bool((batch["values"] == self.fails_at).any()):
            raise FloatingPointError("the network broke")
        tokens = self.genes(batch["ids"]) * batch["values"].unsqueeze(-1)
        pooled = tokens.sum(dim=1)
        cells = pooled if request.hidden_layer == 0 else self.out(pooled)
        return Encoded(cells=cells, tokens=tokens, heads={"total": batch["values"].sum(dim=1)})


class Stub(CellEncoder):
    Config = StubConfig
    poolings = ("sum",)

    @classmethod
    def build(cls, config, vocabulary, card):
        tokenizer = ContinuousTokenizer(vocabulary, target_sum=None, log1p=False)
        return cls(config=config, network=StubNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint):
        raise NotImplementedError


@pytest.fixture
def encoder() -> Stub:
    vocabulary = Vocabulary(tuple(f"GENE{i}" for i in range(GENES)), ids="symbol")
    card = ModelCard(name="stub", title="Stub", input=InputContract(values="counts"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Stub.build(StubConfig(), vocabulary, card)


def cells(n=N, seed=0) -> AnnData:
    rng = np.random.default_rng(seed)
    x = rng.poisson(2.0, (n, GENES)) * (rng.random((n, GENES)) < 0.7)
    x[:, 0] += 1  # no cell is empty
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    return AnnData(
        sparse.csr_matrix(x, dtype=np.float32), obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(GENES)])
    )


def expected(encoder: Stub, data: AnnData) -> np.ndarray:
    """The stub's formula in numpy."""
    x = np.asarray(data.X.todense(), np.float64)
    with torch.no_grad():
        out = encoder.network.out
        return (
            x @ encoder.network.genes.weight.double().numpy() @ out.weight.double().numpy().T
            + out.bias.double().numpy()
        )


# Batches


@given(
    lengths=st.lists(st.integers(0, 300), max_size=80),
    budget=st.integers(1, 2000),
    most=st.integers(1, 40),
)
def test_batches_hold_every_cell_once_within_the_budget(lengths, budget, most):
    lengths = np.array(lengths, dtype=np.int64)
    plan = plan_batches(lengths, budget=budget, most_cells=most)
    assert sorted(np.concatenate(plan).tolist() if plan else []) == list(range(len(lengths)))
    for batch in plan:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
    longest = [lengths[batch].max() for batch in plan]
    assert longest == sorted(longest, reverse=True)  # cells of similar length, the costly ones first


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=80), budget=st.integers(1, 2000))
def test_batches_are_as_full_as_the_budget_allows(lengths, budget):
    lengths = np.array(lengths)
    plan = plan_batches(lengths, budget=budget, most_cells=1000)
    for batch, following in itertools.pairwise(plan):
        assert (len(batch) + 1) * lengths[batch].max() > budget or lengths[following[0]] > lengths[batch].max()


# Sources


def test_embedding_is_the_formula_in_the_order_of_the_data(encoder):
    data = cells()
    np.testing.assert_allclose(encoder.embed(data), expected(encoder, data), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_streaming_from_disk_equals_memory(encoder, tmp_path, ending):
    data = cells()
    path = tmp_path / f"x.{ending}"
    getattr(data, f"write_{ending}")(path)
    np.testing.assert_array_equal(encoder.embed(path), encoder.embed(data))


def test_several_data_sets_are_embedded_one_behind_another(encoder, tmp_path):
    parts = [cells(BLOCK_ROWS + 3, seed=1), cells(7, seed=2), cells(0), cells(40, seed=3)]
    parts[1] = parts[1][:, ::-1].copy()  # features in another order
    parts[3].write_h5ad(tmp_path / "last.h5ad")
    found = encoder.embed([*parts[:3], tmp_path / "last.h5ad"])
    np.testing.assert_array_equal(found, np.concatenate([encoder.embed(part) for part in parts]))


def test_blocks_are_read_as_they_are_needed(encoder, monkeypatch):
    """Memory does not grow with the number of cells: reading is never more than a few blocks ahead."""
    read, most = [], 0
    take = inference.Source.take
    monkeypatch.setattr(inference.Source, "take", lambda self, rows: read.append(rows) or take(self, rows))
    results = encoder.encode(cells(12 * BLOCK_ROWS), outputs=("cells",))
    sampled = len(read)
    seen = 0
    for batch, _, _ in results:
        seen += len(batch)
        most = max(most, (len(read) - sampled) * BLOCK_ROWS - seen)
    assert seen == 12 * BLOCK_ROWS
    assert most <= 5 * BLOCK_ROWS  # the block computed, two ready, one waiting to be, one being read


# Refusals come before work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "big"}, "batch_size='big'"),
        ({"batch_size": 2.5}, r"batch_size=2\.5"),
        ({"precision": "float8"}, "precision='float8'"),
        ({"pooling": "max"}, r"pooling='max' is not offered by stub.\n.*'sum'"),
        ({"hidden_layer": 2}, "hidden_layer=2; stub has 1 layers"),
        ({"hidden_layer": -1}, "hidden_layer=-1"),
        ({"layer": "umi"}, "layer='umi'"),
    ],
)
def test_wrong_options_leave_no_output_behind(encoder, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        encoder.embed(cells(5), out=tmp_path / "z.npy", **options)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=message):
        encoder.encode(cells(5), **options)  # at once, not when iterated


def test_wrong_way_to_treat_empty_cells_is_refused(encoder):
    with pytest.raises(InputError, match="empty_cells='drop'"):
        encoder.embed(cells(5), empty_cells="drop")


def test_unknown_output_is_refused_at_once(encoder):
    with pytest.raises(CapabilityError, match="stub has no output 'logits'"):
        encoder.encode(cells(5), outputs=("logits",))


def test_missing_capability_is_refused_also_when_an_adapter_is_broken(encoder, monkeypatch):
    from scfm import registry

    def broken(self):
        raise registry.ScfmError("broken plugin")

    monkeypatch.setattr(registry.Adapter, "load_class", broken)
    with pytest.raises(CapabilityError, match=r"stub has no attention\.\n.*none installed"):
        encoder.attention(cells(5))
    with pytest.raises(CapabilityError, match="stub has no gene_embeddings"):
        encoder.require(Capability.EMBED, Capability.GENE_EMBEDDINGS)


def test_bad_value_is_found_and_its_cell_named_wherever_it_is(encoder):
    data = cells(6 * BLOCK_ROWS)
    for cell in (0, BLOCK_ROWS + 5, 4 * BLOCK_ROWS + 9, 6 * BLOCK_ROWS - 1):  # in the sample and beside it
        x = data.X.copy()
        x[cell, 0] = 1.5
        with pytest.raises(InputError, match=rf"first: 1\.5 in cell 'cell{cell}', gene 'GENE0'"):
            encoder.embed(AnnData(x, obs=data.obs, var=data.var))


def test_refused_files_are_closed(encoder, tmp_path):
    data = cells(5)
    data.var_names = [f"other{i}" for i in range(GENES)]
    data.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(GeneMatchError) as caught:
        encoder.embed(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+"):
        assert caught.value.__traceback__ is not None  # which would keep the file alive


def test_files_are_closed_when_done(encoder, tmp_path):
    cells(5).write_h5ad(tmp_path / "x.h5ad")
    list(encoder.tokenize(tmp_path / "x.h5ad"))
    encoder.embed(tmp_path / "x.h5ad")
    encoder.check(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+"):
        pass


# Empty cells


@pytest.fixture
def holed() -> AnnData:
    data = cells(BLOCK_ROWS + 10)
    x = data.X.tolil()
    x[[3, BLOCK_ROWS + 4]] = 0
    return AnnData(x.tocsr(), obs=data.obs, var=data.var)


def test_empty_cells_are_nan_and_warned_of(encoder, holed):
    with pytest.warns(InputWarning, match="2 of 522 cells have no expressed gene that stub knows") as caught:
        found = encoder.embed(holed)
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [3, BLOCK_ROWS + 4]
    assert Path(caught[0].filename) == Path(__file__)  # blames the caller's line


def test_empty_cells_are_an_error_on_request(encoder, holed):
    with pytest.raises(InputError, match=r"cell number 3 has no expressed gene"):
        encoder.embed(holed, empty_cells="error")


def test_empty_cells_are_embedded_on_request(encoder, holed):
    found = encoder.embed(holed, empty_cells="embed")
    np.testing.assert_allclose(found[3], encoder.network.out.bias.detach().numpy())


def test_only_empty_cells(encoder):
    data = cells(4)
    data.X = sparse.csr_matrix(data.shape, dtype=np.float32)
    with pytest.warns(InputWarning, match="4 of 4"):
        assert np.isnan(encoder.embed(data)).all()


# Threads


def test_errors_of_the_reader_thread_reach_the_caller(encoder, monkeypatch):
    class Breaks(ContinuousTokenizer):
        def tokenize(self, block, seed=0):
            if block.obs.index[0] != "cell0":
                raise ZeroDivisionError("the tokenizer broke")
            return super().tokenize(block, seed)

    encoder.tokenizer = Breaks(encoder.vocabulary, target_sum=None, log1p=False)
    with pytest.raises(ZeroDivisionError, match="the tokenizer broke"):
        encoder.embed(cells())
    assert reader_threads() == []


def test_errors_of_the_network_reach_the_caller_and_end_the_threads(encoder):
    data = cells()
    data.X[BLOCK_ROWS + 1, 0] = 999
    encoder.network.fails_at = 999.0
    with pytest.raises(FloatingPointError, match="the network broke") as caught:
        encoder.embed(data)
    assert reader_threads() == []
    assert caught.value.__traceback__ is not None


def test_errors_of_the_output_end_the_threads(encoder, monkeypatch, tmp_path):
    def full(self, cells, rows):
        raise OSError("no space left on device")

    monkeypatch.setattr(sinks.NpySink, "write", full)
    threads = torch.get_num_threads()
    with pytest.raises(OSError, match="no space left") as caught:
        encoder.embed(cells(), out=tmp_path / "z.npy")
    assert reader_threads() == []
    assert torch.get_num_threads() == threads
    assert caught.value.__traceback__ is not None


def test_a_run_that_is_dropped_ends_its_threads(encoder):
    batches = encoder.encode(cells(), outputs=("cells",))
    next(batches)
    batches.close()
    assert reader_threads() == []


def reader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("scfm")]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_of_torch_are_put_back(encoder, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = encoder.embed(cells())
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found, encoder.embed(cells()), rtol=1e-6, atol=1e-6)


def test_modes_of_all_modules_are_put_back(encoder):
    encoder.network.train()
    encoder.network.out.eval()
    encoder.embed(cells(5))
    assert [m.training for m in encoder.network.modules()] == [True, True, False]


# Interrupted and continued


def interrupted(encoder, data, monkeypatch, after: int, **options) -> None:
    """Run until `after` blocks are written, then press Ctrl-C."""
    for sink in (sinks.NpySink, sinks.ZarrSink):
        write = sink.write

        def stops(self, block, rows, write=write):
            write(self, block, rows)
            if len(self.done) >= after:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(sink, "write", stops)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a process in the background is started without it
    try:
        with pytest.raises(KeyboardInterrupt):
            encoder.embed(data, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("ending", ["npy", "zarr", "h5ad"])
def test_ctrl_c_leaves_rows_that_a_second_run_continues(encoder, tmp_path, monkeypatch, ending, after):
    data, out = cells(), tmp_path / f"z.{ending}"
    whole = encoder.embed(data)
    interrupted(encoder, data, monkeypatch, after, out=out)
    assert reader_threads() == []
    half = {"npy": out, "h5ad": tmp_path / "z.h5ad.part.npy"}.get(ending)
    rows = np.load(half) if half else np.asarray(ad.read_zarr(out).obsm["X_stub"])
    np.testing.assert_array_equal(rows[: after * BLOCK_ROWS], whole[: after * BLOCK_ROWS])
    assert np.isnan(rows[after * BLOCK_ROWS :]).all()

    seen = []
    forward = StubNetwork.forward
    monkeypatch.setattr(StubNetwork, "forward", lambda self, b, r=Request(): seen.append(len(b)) or forward(self, b, r))
    np.testing.assert_array_equal(encoder.embed(data, out=out), whole)
    assert sum(seen) == N - after * BLOCK_ROWS  # what was done is not done again


def test_another_run_does_not_continue(encoder, tmp_path, monkeypatch):
    data, out = cells(), tmp_path / "z.npy"
    interrupted(encoder, data, monkeypatch, 1, out=out)
    other = cells(seed=5)
    renamed = data.copy()
    renamed.obs_names = [f"other{i}" for i in range(N)]
    for changed, options in [
        (other, {}),
        (renamed, {}),
        (data[:-1], {}),
        (data, {"hidden_layer": 0}),
        (data, {"seed": 1}),
    ]:
        with pytest.raises(ResumeError, match=r"another run.*\n.*resume=False"):
            encoder.embed(changed, out=out, **options)
    np.testing.assert_array_equal(encoder.embed(other, out=out, resume=False), encoder.embed(other))


def test_a_finished_run_is_not_computed_again(encoder, tmp_path, monkeypatch):
    data, out = cells(20), tmp_path / "z.npy"
    first = np.array(encoder.embed(data, out=out))
    monkeypatch.setattr(StubNetwork, "forward", None)
    np.testing.assert_array_equal(encoder.embed(data, out=out), first)


# Storing


def test_key_added_stores_in_each_adata_and_nothing_else(encoder):
    first, second = cells(5, seed=1), cells(6, seed=2)
    found = encoder.embed([first, second], key_added="X_mine")
    np.testing.assert_array_equal(first.obsm["X_mine"], found[:5])
    np.testing.assert_array_equal(second.obsm["X_mine"], found[5:])
    assert '"model": "stub"' in second.uns["scfm"]["X_mine"]
    first.obsm["X_mine"][:] = 0
    assert (found[:5] != 0).any()


def test_key_added_needs_data_in_memory(encoder, tmp_path):
    cells(5).write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(InputError, match=r"key_added="):
        encoder.embed(tmp_path / "x.h5ad", key_added="X_mine")


# Other outputs


def test_encode_gives_each_cell_its_outputs(encoder):
    data = cells(30)
    x = np.asarray(data.X.todense())
    seen = []
    for at, tokens, encoded in encoder.encode(data, outputs=("cells", "tokens", "total"), batch_size=7):
        seen += at.tolist()
        np.testing.assert_allclose(encoded.heads["total"], x[at].sum(axis=1))
        assert encoded.tokens.shape == (len(at), tokens.lengths.max(), 5)
        assert (tokens.lengths == (x[at] > 0).sum(axis=1)).all()
    assert sorted(seen) == list(range(30))


def test_output_is_in_the_order_of_the_data(encoder):
    data = cells(30)
    x = np.asarray(data.X.todense())
    np.testing.assert_allclose(encoder.output(data, "total", batch_size=7), x.sum(axis=1))
    np.testing.assert_array_equal(encoder.output(data, "cells"), encoder.embed(data, empty_cells="embed"))
    assert len(encoder.output(data[:0], "total")) == 0
    with pytest.raises(InputError, match="different lengths"):
        encoder.output(data, "tokens", batch_size=1)
    with pytest.raises(CapabilityError, match="total"):
        encoder.output(data, "logits")


def test_check_reports_what_embed_will_meet(encoder, holed):
    report = encoder.check(holed)
    assert (report.cells, report.cells_read, report.found, report.empty_cells) == (522, 522, "counts", 2)
    assert report.genes.matched == GENES
    assert "NaN rows" in report.warnings[0]
    assert "fits stub" in str(report)


def test_check_reads_the_columns_of_the_cells_it_samples(encoder):
    """Batch labels belong to the sampled cells, not to the first ones."""

    class Labelled(ContinuousTokenizer):
        @property
        def obs_columns(self):
            return ("donor",)

        def tokenize(self, block, seed=0):
            assert (block.obs["donor"].to_numpy() == block.matrix[:, [0]].toarray().ravel()).all()
            return super().tokenize(block, seed)

    data = cells(6 * BLOCK_ROWS)
    data.obs["donor"] = data.X[:, [0]].toarray().ravel()
    encoder.tokenizer = Labelled(encoder.vocabulary, target_sum=None, log1p=False)
    encoder.check(data)
    encoder.embed(data)
    with pytest.raises(InputError, match="has no column 'donor'"):
        encoder.embed(cells(3))


# Precision


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_is_near(encoder, precision):
    data = cells(50)
    exact, low = encoder.embed(data), encoder.embed(data, precision=precision)
    assert low.dtype == np.float32
    scale = np.abs(exact).max()
    assert 0 < np.abs(low - exact).max() < 0.02 * scale


def test_options_of_the_tokenizer_give_another_encoder_of_the_same_network(encoder):
    other = encoder.with_options(log1p=True)
    assert other.network is encoder.network
    assert not encoder.tokenizer.log1p
    assert np.abs(other.embed(cells(5)) - encoder.embed(cells(5))).max() > 0
    with pytest.raises(InputError, match=r"no tokenizer option 'logp'.\n.*'log1p'"):
        encoder.with_options(logp=True)
