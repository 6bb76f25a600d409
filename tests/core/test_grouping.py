"""Encoders whose cells see each other: the stated groups decide the result, and nothing else does."""

from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfm.reading
from scfm.cards import InputContract, ModelCard
from scfm.encoder import CellEncoder, Encoded, Network, Request
from scfm.errors import InputError, ResumeError
from scfm.genes import Vocabulary
from scfm.groups import cell_groups
from scfm.tokenizers import Batch, ContinuousTokenizer

GENES = tuple(f"GENE{i}" for i in range(7))
SUMS = 5e-5  # float32 sums of values near 50, in another order


@dataclass(frozen=True)
class Grouped(ContinuousTokenizer):
    group_key: str | None = None
    group_size: int | None = None

    @property
    def grouped(self) -> bool:
        return True

    def settings(self):
        return {**super().settings(), "group_key": self.group_key, "group_size": self.group_size}


class MeanShift(Network):
    """A cell's values minus the mean of the cells around it, by a trained-looking table."""

    def __init__(self, config) -> None:
        super().__init__()
        self.dim = 4
        self.genes = torch.nn.Embedding.from_pretrained(torch.randn(7, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        x = (self.genes(batch["ids"]) * batch["values"].unsqueeze(-1)).sum(dim=1)
        return Encoded(cells=x - x.mean(dim=0))


class Toy(CellEncoder):
    Config = dict

    @classmethod
    def build(cls, config, vocabulary, card):
        return cls(config=config, network=MeanShift(config), tokenizer=Grouped(vocabulary), card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint):
        raise NotImplementedError


@pytest.fixture
def toy() -> CellEncoder:
    card = ModelCard(name="toy", title="toy", input=InputContract(genes="any", obs=("batch",), sees_other_cells=True))
    return Toy.build({}, Vocabulary(GENES, ids="symbol", species=("any",)), card)


def cells(n: int, groups: str | None = None, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n)])
    if groups is not None:
        obs["batch"] = rng.choice(list(groups), n)
    counts = sparse.csr_matrix(1 + rng.poisson(2.0, (n, 7)).astype(np.float32))
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(GENES)))


def test_a_group_sees_itself_and_nothing_else(toy) -> None:
    data = cells(40, "abc")
    whole = toy.with_options(group_key="batch").embed(data)
    for label in "abc":
        mine = (data.obs["batch"] == label).to_numpy()
        np.testing.assert_allclose(whole[mine].mean(axis=0), 0, atol=SUMS)
        np.testing.assert_allclose(whole[mine], toy.embed(data[mine]), atol=SUMS)
    assert np.abs(whole - toy.embed(data)).max() > 0.1  # one group of all gives something else


def test_the_order_of_cells_does_not_matter(toy) -> None:
    encoder = toy.with_options(group_key="batch")
    data = cells(40, "abc")
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_allclose(encoder.embed(data[order].copy()), encoder.embed(data)[order], atol=SUMS)


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
def test_blocks_and_batch_size_do_not_cut_groups(toy, monkeypatch, batch_size) -> None:
    data = cells(90, "ab")
    expected = toy.with_options(group_key="batch").embed(data)
    monkeypatch.setattr(scfm.reading, "BLOCK_ROWS", 11)
    np.testing.assert_array_equal(toy.with_options(group_key="batch").embed(data, batch_size=batch_size), expected)


def test_group_size_cuts_runs_in_data_order(toy) -> None:
    data = cells(25, "ab")
    got = toy.with_options(group_key="batch", group_size=4).embed(data)
    for label in "ab":
        rows = np.flatnonzero(data.obs["batch"] == label)
        for at in range(0, len(rows), 4):
            run = rows[at : at + 4]
            np.testing.assert_allclose(got[run], toy.embed(data[run]), atol=SUMS)


def test_each_data_set_of_a_list_is_its_own_group(toy) -> None:
    one, two = cells(9), cells(12, seed=3)
    got = toy.embed([one, two])
    np.testing.assert_allclose(got, np.concatenate([toy.embed(one), toy.embed(two)]), atol=SUMS)


@pytest.mark.parametrize("form", ["dense", "csc", "h5ad", "dense.h5ad", "zarr", "dense.zarr"])
def test_every_source_gives_the_same(toy, tmp_path, form) -> None:
    encoder = toy.with_options(group_key="batch", group_size=5)
    data = cells(30, "ba")
    expected = encoder.embed(data)
    if "dense" in form:
        data.X = data.X.toarray()
    elif form == "csc":
        data.X = sparse.csc_matrix(data.X)
    source: object = data
    if form.endswith("h5ad"):
        data.write_h5ad(source := tmp_path / "cells.h5ad")
    elif form.endswith("zarr"):
        data.write_zarr(source := tmp_path / "cells.zarr")
    np.testing.assert_allclose(encoder.embed(source), expected, atol=SUMS)


@pytest.mark.parametrize("name", ["out.npy", "out.zarr", "out.h5ad"])
def test_a_killed_run_resumes_after_the_last_whole_group(toy, tmp_path, monkeypatch, name) -> None:
    encoder = toy.with_options(group_key="batch", group_size=6)
    data = cells(40, "zya")
    expected = encoder.embed(data)
    forward, computed = MeanShift.forward, []

    def dies(self, batch, request=Request()):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(len(batch))
        return forward(self, batch, request)

    monkeypatch.setattr(MeanShift, "forward", dies)
    with pytest.raises(KeyboardInterrupt):
        encoder.embed(data, out=tmp_path / name)
    monkeypatch.setattr(MeanShift, "forward", forward)
    np.testing.assert_array_equal(encoder.embed(data, out=tmp_path / name), expected)


def test_a_run_with_other_groups_does_not_resume(toy, tmp_path) -> None:
    encoder = toy.with_options(group_key="batch")
    data = cells(20, "ab")
    encoder.embed(data, out=tmp_path / "out.npy")
    data.obs["batch"] = data.obs["batch"].to_numpy()[::-1]
    with pytest.raises(ResumeError):
        encoder.embed(data, out=tmp_path / "out.npy")


def test_empty_cells_stay_in_their_group(toy) -> None:
    data = cells(10)
    data.X[3] = 0
    data.X.eliminate_zeros()
    embedded = toy.embed(data, empty_cells="embed")
    with pytest.warns(scfm.reading.InputWarning, match="1 of 10 cells"):
        got = toy.embed(data)
    assert np.isnan(got[3]).all()
    np.testing.assert_array_equal(np.delete(got, 3, axis=0), np.delete(embedded, 3, axis=0))


def test_encode_gives_positions_in_the_data(toy) -> None:
    encoder = toy.with_options(group_key="batch")
    data = cells(12, "ba")
    expected = encoder.embed(data)
    seen = []
    for at, _, encoded in encoder.encode(data, outputs=("cells",)):
        np.testing.assert_array_equal(encoded.cells.numpy(), expected[at])
        seen += at.tolist()
    assert sorted(seen) == list(range(12))


def test_an_absent_column_is_refused_unless_the_card_calls_it_usable(toy) -> None:
    data = cells(8)
    with pytest.raises(InputError, match=r"no column 'donor'(.|\n)*group_key"):
        toy.with_options(group_key="donor").embed(data)
    np.testing.assert_array_equal(toy.with_options(group_key="batch").embed(data), toy.embed(data))


def test_cells_without_a_group_are_refused(toy) -> None:
    data = cells(8, "ab")
    data.obs["batch"] = data.obs["batch"].where(np.arange(8) != 2)
    with pytest.raises(InputError, match="no value for 1 of 8 cells"):
        toy.with_options(group_key="batch").embed(data)


def test_check_states_the_groups(toy) -> None:
    report = toy.with_options(group_key="batch", group_size=5).check(cells(13, "a"))
    assert report.groups == (5, 5, 3)
    assert "3 of 3 to 5 cells" in str(report)


def test_no_cells(toy) -> None:
    assert toy.embed(cells(0)).shape == (0, 4)
    assert toy.with_options(group_key="batch").embed(cells(0, "a")).shape == (0, 4)


def test_groups_come_in_the_order_of_their_labels() -> None:
    obs = pd.DataFrame({"g": ["b", "a", "b", "a", "b"]})
    assert [g.tolist() for g in cell_groups(obs, "g", None)] == [[1, 3], [0, 2, 4]]
    assert [g.tolist() for g in cell_groups(obs, "g", 2)] == [[1, 3], [0, 2], [4]]
    assert [g.tolist() for g in cell_groups(obs, None, 3)] == [[0, 1, 2], [3, 4]]
    with pytest.raises(InputError, match="at least 1"):
        cell_groups(obs, None, 0)


def test_settings_are_recorded(toy) -> None:
    assert replace(toy.tokenizer, group_size=3).settings()["group_size"] == 3
