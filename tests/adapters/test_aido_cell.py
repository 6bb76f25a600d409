"""AIDO.Cell beyond parity: sizes, layouts of its files, dense tokens."""

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse

import scfm
from scfm.adapters.aido_cell import AIDOCell
from scfm.adapters.aido_cell.adapter import AIDOCellConfig, _vocabulary
from scfm.checkpoint import Checkpoint
from scfm.errors import CapabilityError, CheckpointError, GeneMatchError, InputError, SpeciesError
from scfm.registry import find

FIXTURE = Path(__file__).parents[1] / "parity" / "aido_cell"
SIZES = {
    "3m": AIDOCellConfig(dim=128, layers=6, heads=4, hidden=320),
    "10m": AIDOCellConfig(dim=256, layers=8, heads=8, hidden=640),
    "100m": AIDOCellConfig(),
}


def load(folder: Path, **options: object) -> AIDOCell:
    with pytest.warns(scfm.LicenceWarning, match="non-commercial"):
        return scfm.load(folder, **options)


@pytest.fixture(scope="module")
def encoder() -> AIDOCell:
    return load(FIXTURE / "checkpoint")


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")[:5].copy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The safetensors layout with the fixture's gene list beside it."""
    for file in [
        *(FIXTURE / "checkpoint_safetensors").iterdir(),
        FIXTURE / "checkpoint" / "OS_scRNA_gene_index.128.tsv",
    ]:
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def cells(genes: list[str], counts: list[list[float]]) -> ad.AnnData:
    return ad.AnnData(sparse.csr_matrix(np.array(counts, dtype=np.float32)), var=pd.DataFrame(index=genes))


def full_size(variant: str, folder: Path) -> AIDOCell:
    vocabulary = _vocabulary(Checkpoint(folder), 19_264)  # the shipped list
    return AIDOCell.build(SIZES[variant], vocabulary, find(f"aido_cell/{variant}")[1])


@pytest.mark.parametrize(("variant", "count"), [("3m", 3_640_125), ("10m", 11_073_085), ("100m", 99_864_381)])
def test_published_sizes(variant: str, count: int, tmp_path: Path) -> None:
    with torch.device("meta"):
        encoder = full_size(variant, tmp_path)
    assert sum(p.numel() for p in encoder.network.parameters()) == count == encoder.card.parameters
    assert encoder.dim == encoder.card.dim


@pytest.mark.slow
def test_full_size_forward_through_one_layer(tmp_path: Path) -> None:
    encoder = full_size("3m", tmp_path)
    genes = list(encoder.vocabulary.tokens[:19_264:50])
    counts = np.random.default_rng(0).poisson(1.0, (1, len(genes)))
    embedding = encoder.embed(cells(genes, counts.tolist()), hidden_layer=1)
    assert embedding.shape == (1, 128)
    assert np.isfinite(embedding).all()


def expression(encoder: AIDOCell, data: ad.AnnData) -> np.ndarray:
    found = {}
    for rows, _, encoded in encoder.encode(data, outputs=("expression",)):
        found |= dict(zip(rows.tolist(), encoded.heads["expression"].numpy(), strict=True))
    return np.stack([found[row] for row in sorted(found)])


def test_safetensors_layout_gives_the_same_with_the_bias_of_its_head(
    encoder: AIDOCell, data: ad.AnnData, folder: Path
) -> None:
    other = load(folder)
    np.testing.assert_array_equal(other.embed(data), encoder.embed(data))
    np.testing.assert_array_equal(expression(other, data), expression(encoder, data))


def test_bare_encoder_has_no_expression(encoder: AIDOCell, data: ad.AnnData, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("bert."): t for name, t in tensors.items() if not name.startswith("cls.")}
    save_file(bare, folder / "model.safetensors")
    other = load(folder)
    np.testing.assert_array_equal(other.embed(data), encoder.embed(data))
    with pytest.raises(CapabilityError, match="expression"):
        list(other.encode(data, outputs=("expression",)))


def test_missing_and_unknown_tensors_are_listed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.surprise"] = tensors.pop("bert.encoder.layer.2.mlp.gate_proj.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"bert\.surprise") as error:
        scfm.load(folder)
    assert "layers.2.gate.weight" in str(error.value)


def test_unreleased_architectures_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "normalization_type": "RMSNorm"}))
    with pytest.raises(CheckpointError, match="RMSNorm"):
        scfm.load(folder)


def test_gene_list_must_fit(encoder: AIDOCell, folder: Path) -> None:
    (folder / "OS_scRNA_gene_index.128.tsv").unlink()
    with pytest.raises(CheckpointError, match=r"shipped gene list has 19264 genes, .* 128"):
        scfm.load(folder)
    with pytest.raises(InputError, match="is no file"):
        scfm.load(folder, genes=folder / "none.tsv")
    own = FIXTURE / "checkpoint" / "OS_scRNA_gene_index.128.tsv"
    assert load(folder, genes=own).vocabulary.tokens == encoder.vocabulary.tokens


def test_every_gene_is_a_token_and_columns_may_come_in_any_order(encoder: AIDOCell, data: ad.AnnData) -> None:
    (tokens,) = encoder.tokenize(data)
    assert set(tokens.lengths) == {130}
    np.testing.assert_array_equal(encoder.embed(data[:, ::-1]), encoder.embed(data))


def test_depth_has_a_floor(encoder: AIDOCell) -> None:
    (tokens,) = encoder.tokenize(cells(list(encoder.vocabulary.tokens[:2]), [[1, 0], [600_000, 400_000]]))
    np.testing.assert_array_equal(tokens.padded("values")[:, -2:], [[5, 5], [6, 6]])


def test_default_pooling_leaves_out_genes_that_the_data_lack(encoder: AIDOCell, data: ad.AnnData) -> None:
    fewer = data[:, : data.n_vars // 2].copy()
    rest = ad.AnnData(sparse.csr_matrix((fewer.n_obs, data.n_vars - fewer.n_vars), dtype=np.float32), obs=fewer.obs)
    rest.var_names = data.var_names[fewer.n_vars :]
    with_zeros = ad.concat([fewer, rest], axis=1)
    for pooling in ("genes", "max"):
        np.testing.assert_allclose(
            encoder.embed(fewer, pooling=pooling), encoder.embed(with_zeros, pooling=pooling), atol=1e-6
        )
    assert np.abs(encoder.embed(fewer) - encoder.embed(with_zeros)).max() > 0.01


def test_masked_genes_are_hidden(encoder: AIDOCell, data: ad.AnnData) -> None:
    gene = next(gene for gene in data.var_names if gene in encoder.vocabulary and data[:, gene].X.sum() > 0)
    hidden = encoder.with_options(masked=(gene,))
    (tokens,), (full,) = hidden.tokenize(data), encoder.tokenize(data)
    at = encoder.vocabulary.index[gene]
    changed = tokens.padded("values") != full.padded("values")
    assert (tokens.padded("values")[:, at] == -1).all()
    assert changed.sum() == changed[:, at].sum() == len(data)
    assert np.abs(expression(hidden, data)[:, at] - expression(encoder, data)[:, at]).max() > 0.01
    with pytest.raises(GeneMatchError, match="NOGENE"):
        encoder.with_options(masked=("NOGENE",))


def test_mouse_symbols_and_normalised_values_are_refused(encoder: AIDOCell, data: ad.AnnData) -> None:
    genes = ["Cd3e", "Cd4", "Cd19", "Ptprc", "Actb", "Gapdh", "Malat1", "Lyz2", "Ms4a1", "Nkg7", "Trp53", "Cd8a"]
    with pytest.raises(SpeciesError, match="to_orthologs"):
        encoder.embed(cells(genes, [[1.0] * 12]))
    data.X = data.X.log1p()
    with pytest.raises(InputError, match="raw counts"):
        encoder.embed(data)
