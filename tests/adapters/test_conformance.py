"""Every installed adapter keeps every promise of the interface."""

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scfm
from scfm.encoder import Request
from scfm.fitted import FittedEncoder
from scfm.registry import adapters
from scfm.testing import CHECKS, applicable, check_encoder, example_data

PARITY = Path(__file__).parents[1] / "parity"

BY_NAME = ("mini",)
"""Models that ship their weights."""

FITTED: dict[str, dict[str, Any]] = {"pca": {"components": 6, "top_genes": 40}, "lsi": {"components": 6}}
"""Baselines that are fitted on cells -> load options."""

OPTIONS: dict[str, dict[str, Any]] = {
    "aido_cell/checkpoint_safetensors": {"genes": PARITY / "aido_cell/checkpoint/OS_scRNA_gene_index.128.tsv"},
    "cellplm/checkpoint": {"weights": "fixture_gmvae.best.ckpt"},
    "epiagent/checkpoint": {"weights": "pretrained_EpiAgent.pth", "heads": 4},
    "geneformer_v1/checkpoint_cell_classifier": {"dictionaries": PARITY / "geneformer_v1/checkpoint"},
    "geneformer_v1/checkpoint_gene_classifier": {"dictionaries": PARITY / "geneformer_v1/checkpoint"},
    "geneformer_v2/checkpoint_cell_classifier": {"dictionaries": PARITY / "geneformer_v2/checkpoint"},
    "geneformer_v2/checkpoint_gene_classifier": {"dictionaries": PARITY / "geneformer_v2/checkpoint"},
    "scplantllm/checkpoint": {"heads": 4},
    "uce/checkpoint": {"heads": 4},
}
"""Checkpoint folder in tests/parity -> load options for what the fixture's files do not tell."""

SETTINGS: dict[str, dict[str, Any]] = {"uce/checkpoint": {"sample": 64}}
"""Checkpoint folder -> tokenizer settings that make cells short."""


def family_of(folder: Path) -> str | None:
    """The adapter whose parity folder this is: named as the family, or the family and a version ("geneformer_v1")."""
    fitting = [family for family in adapters() if folder.name == family or folder.name.startswith(f"{family}_")]
    return max(fitting, key=len, default=None)


def encoders() -> Iterator[tuple[str, str]]:
    """(family, name) of a small encoder of every adapter; `load` gives it."""
    yield from ((name, name) for name in FITTED)
    yield from ((name, name) for name in BY_NAME)
    yield "student", "student"
    for checkpoint in sorted(PARITY.glob("*/checkpoint*")):
        if checkpoint.is_dir() and (family := family_of(checkpoint.parent)) is not None:
            yield family, f"{checkpoint.parent.name}/{checkpoint.name}"


@cache
def load(name: str) -> scfm.CellEncoder:
    if name in FITTED:
        return fitted(name, **FITTED[name])
    if name in BY_NAME:
        return scfm.load(name, device="cpu")
    if name == "student":
        return distilled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scfm.LicenceWarning)
        encoder = scfm.load(PARITY / name, device="cpu", **OPTIONS.get(name, {}))
    if name == "langcell/checkpoint":
        # The fixture's bias is minus the mean projection of its cells, which cancels nine tenths of it and magnifies rounding tenfold.
        torch.nn.init.zeros_(encoder.network.projection.bias)
    return encoder.with_options(**SETTINGS.get(name, {}))


def fitted(name: str, **options: Any) -> scfm.CellEncoder:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (40, 60))).astype(np.float32)
    reference = AnnData(counts, var=pd.DataFrame(index=[f"gene {i}" for i in range(60)]))
    encoder = scfm.load(name, device="cpu", **options)
    assert isinstance(encoder, FittedEncoder)
    return encoder.fit(reference)


def distilled() -> scfm.CellEncoder:
    """A student of a small teacher."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (120, 60))).astype(np.float32)
    cells = AnnData(counts, var=pd.DataFrame(index=[f"gene {i}" for i in range(60)]))
    student = scfm.tasks.distill(fitted("pca", **FITTED["pca"]), cells, epochs=2, width=16, hidden=16).student
    torch.nn.init.normal_(student.network.out.weight)  # of a linear teacher there is nothing for the MLP to learn
    return student


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [name for _, name in encoders()])
def test_encoder_keeps_its_promises(name: str, check: str) -> None:
    encoder = load(name)
    if check not in applicable(encoder):
        pytest.skip("is for models whose cells see each other, or for those whose cells do not")
    check_encoder(encoder, checks=[check])


def test_every_installed_adapter_is_checked() -> None:
    assert sorted({family for family, _ in encoders()}) == sorted(adapters())


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("name", [name for _, name in encoders()])
def test_what_check_says_of_equal_features_is_so(name: str) -> None:
    encoder = load(name)
    if encoder.vocabulary.ids == "region":
        pytest.skip("regions are matched by their places")
    data = example_data(encoder, n_cells=3)
    known = encoder.vocabulary.lookup(data.var_names) >= 0
    data = data[:, known].copy()
    expressed = np.asarray((data.X != 0).todense())
    rare, frequent = expressed.sum(axis=0).argsort(kind="stable")[[0, -1]]
    twice = anndata.concat([data, data[:, [frequent]]], axis=1)  # a second column for the rarest gene, of other values
    twice.obs, twice.var_names = data.obs.copy(), [*data.var_names, data.var_names[rare]]
    more = known_expressed(encoder, twice) - known_expressed(encoder, data)
    match encoder.check(twice).warnings[0].rpartition("; ")[2]:
        case "the first counts":
            np.testing.assert_array_equal(encoder.embed(twice), encoder.embed(data))
        case "their values are added":
            np.testing.assert_array_equal(more, expressed[:, frequent] & ~expressed[:, rare])
        case told:
            assert told == "each has a token of its own"
            np.testing.assert_array_equal(more, expressed[:, frequent])


def known_expressed(encoder: scfm.CellEncoder, data: AnnData) -> np.ndarray:
    """How many features known to the model each cell expresses (n_cells,)."""
    return np.concatenate([tokens.expressed for tokens in encoder.tokenize(data)])


@pytest.mark.parametrize("name", [name for _, name in encoders()])
def test_example_data_fit_the_encoder(name: str) -> None:
    encoder = load(name)
    data = example_data(encoder)
    report = encoder.check(data)
    assert report.empty_cells == 0
    if encoder.vocabulary.ids != "region":  # where a feature that is no region does not count
        assert report.genes.matched < report.genes.features


# The fast path: cells alone or in full batches, no masks, only the layers and rows that are needed


def plain(encoder: scfm.CellEncoder, data: AnnData) -> np.ndarray:
    """All cells in one padded batch, with every output asked for, so that nothing is left out."""
    (tokens,) = encoder.tokenize(data)
    batch = tokens.collate(np.arange(len(tokens))).to(encoder.device)
    outputs = {"cells", "tokens"} | encoder.network.heads
    if scfm.Capability.ATTENTION in encoder.capabilities:
        outputs |= {"attention"}
    with torch.inference_mode():
        return encoder.network(batch, Request(frozenset(outputs))).cells.float().numpy()


@pytest.mark.parametrize("name", [name for _, name in encoders()])
def test_fast_equals_plain(name: str) -> None:
    encoder = load(name)
    if encoder.tokenizer.grouped:
        pytest.skip("cells that see each other are one batch either way")
    data = example_data(encoder, n_cells=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = plain(encoder, data), encoder.embed(data)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for _, name in encoders()])
def test_any_order_any_cut_any_batch_size(name: str) -> None:
    encoder = load(name)
    if encoder.tokenizer.grouped:
        pytest.skip("cells that see each other depend on their group")
    data = example_data(encoder, n_cells=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = encoder.embed(data)
    scale = max(1.0, float(np.abs(whole).max()))

    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(order=st.permutations(range(7)), cut=st.integers(0, 7), size=st.integers(1, 7))
    def property_(order: list[int], cut: int, size: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = [encoder.embed(data[list(rows)], batch_size=size) for rows in (order[:cut], order[cut:]) if rows]
        np.testing.assert_allclose(np.vstack(parts) / scale, whole[list(order)] / scale, atol=1e-5, rtol=0)

    property_()
