"""scFoundation beyond parity: sizes, layouts of its file, alignment, depth tokens."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfm
from scfm.adapters.scfoundation import ScFoundation
from scfm.adapters.scfoundation.adapter import ScFoundationConfig, _vocabulary
from scfm.checkpoint import Checkpoint
from scfm.errors import CheckpointError, InputError, SpeciesError
from scfm.registry import find

FIXTURE = Path(__file__).parents[1] / "parity" / "scfoundation"


def load(folder: Path, **options: object) -> ScFoundation:
    with pytest.warns(scfm.LicenceWarning, match="non-commercial"):
        return scfm.load(folder, **options)


@pytest.fixture(scope="module")
def encoder() -> ScFoundation:
    return load(FIXTURE / "checkpoint")


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")[:6].copy()


@pytest.fixture
def stored() -> dict:
    return torch.load(FIXTURE / "checkpoint" / "models.ckpt", weights_only=True)


def folder_with(content: object, path: Path) -> Path:
    torch.save(content, path / "models.ckpt")
    (path / "OS_scRNA_gene_index.200.tsv").write_text(
        (FIXTURE / "checkpoint" / "OS_scRNA_gene_index.200.tsv").read_text()
    )
    return path


def cells(genes: list[str], counts: list[list[float]]) -> ad.AnnData:
    return ad.AnnData(sparse.csr_matrix(np.array(counts, dtype=np.float32)), var=pd.DataFrame(index=genes))


def full_size(tmp_path: Path) -> ScFoundation:
    vocabulary = _vocabulary(Checkpoint(tmp_path), 19_264)  # the shipped list
    return ScFoundation.build(ScFoundationConfig(), vocabulary, find("scfoundation")[1])


def test_published_sizes(tmp_path: Path) -> None:
    with torch.device("meta"):
        encoder = full_size(tmp_path)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.network.named_children()}
    assert round(sizes["layers"] / 1e6, 2) == 85.05
    assert round(sizes["positions"] / 1e6, 2) == 14.80
    assert sum(sizes.values()) == 119_252_285 == encoder.card.parameters
    assert encoder.dim == encoder.card.dim == 3072


def test_full_size_forward(tmp_path: Path) -> None:
    encoder = full_size(tmp_path)
    genes = list(encoder.vocabulary.tokens[:19_264:200])
    counts = np.random.default_rng(0).poisson(1.0, (2, len(genes)))
    embedding = encoder.embed(cells(genes, counts.tolist()))
    assert embedding.shape == (2, 3072)
    assert np.isfinite(embedding).all()


def test_xtrimogene_is_a_name_of_this_model() -> None:
    adapter, card = find("xtrimogene")
    assert (adapter.family, card.name) == ("scfoundation", "scfoundation")
    assert "xTrimoGene" in card.notes


def test_parts_are_different_weights(encoder: ScFoundation, data: ad.AnnData) -> None:
    others = {part: load(FIXTURE / "checkpoint", part=part) for part in ("rde", "gene")}
    assert {part: other.card.name for part, other in others.items()} == {
        "rde": "scfoundation/rde",
        "gene": "scfoundation/gene",
    }
    for other in others.values():
        assert np.abs(other.embed(data) - encoder.embed(data)).max() > 0.1
    with pytest.raises(InputError, match="'cell', 'rde', 'gene'"):
        scfm.load(FIXTURE / "checkpoint", part="cells")


@pytest.mark.parametrize("prefix", ["", "module.model."])
def test_one_weight_set_alone_with_any_prefix(
    encoder: ScFoundation, data: ad.AnnData, stored: dict, tmp_path: Path, prefix: str
) -> None:
    state = {prefix + name.removeprefix("model."): t for name, t in stored["cell"]["state_dict"].items()}
    other = load(folder_with({"config": stored["cell"]["config"], "state_dict": state}, tmp_path))
    np.testing.assert_array_equal(other.embed(data), encoder.embed(data))


def test_missing_and_unknown_tensors_are_listed(stored: dict, tmp_path: Path) -> None:
    state = stored["cell"]["state_dict"]
    state["model.surprise"] = state.pop("model.decoder.performer.net.layers.1.0.fn.fast_attention.projection_matrix")
    with pytest.raises(CheckpointError, match=r"surprise") as error:
        scfm.load(folder_with(stored, tmp_path))
    assert "decoder.1.attention.projection" in str(error.value)


def test_gene_list_must_fit(stored: dict, tmp_path: Path) -> None:
    torch.save(stored, tmp_path / "models.ckpt")
    with pytest.raises(CheckpointError, match=r"shipped gene list has 19264 genes, .* 200"):
        scfm.load(tmp_path)


def test_order_and_number_of_columns_do_not_matter(encoder: ScFoundation, data: ad.AnnData) -> None:
    expected = encoder.embed(data)
    np.testing.assert_array_equal(encoder.embed(data[:, ::-1]), expected)
    extra = ad.AnnData(sparse.csr_matrix((6, 300), dtype=np.float32), obs=data.obs)
    extra.var_names = [f"unknown {i}" for i in range(300)]
    np.testing.assert_array_equal(encoder.embed(ad.concat([extra, data], axis=1)), expected)


def test_depth_tokens_stay_in_cells_of_one_count(encoder: ScFoundation) -> None:
    genes = list(encoder.vocabulary.tokens[:2])
    (tokens,) = encoder.with_options(depth="t0").tokenize(cells(genes, [[1, 0], [0, 100]]))
    special = [encoder.vocabulary.id("target"), encoder.vocabulary.id("source")]
    assert tokens.cell(0)["ids"].tolist() == [0, *special]
    np.testing.assert_allclose(tokens.cell(0)["values"], [np.log(10_001), 0, 0], rtol=1e-6)
    np.testing.assert_allclose(tokens.cell(1)["values"], [np.log(10_001), 0, 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "target", "source"),
    [
        ({"depth": "t4.5"}, 4.5, 2),
        ({"depth": "f10"}, 3, 2),
        ({"depth": "a2"}, 4, 2),
        ({"reads": "bulk"}, np.log10(np.log(101)), np.log10(np.log(101))),
        ({"reads": "bulk_log"}, 100, 100),
    ],
)
def test_depths(encoder: ScFoundation, options: dict, target: float, source: float) -> None:
    (tokens,) = encoder.with_options(**options).tokenize(cells([encoder.vocabulary.tokens[0]], [[100]]))
    np.testing.assert_allclose(tokens.fields["values"][1:], [target, source], rtol=1e-6)


@pytest.mark.parametrize("options", [{"depth": "4"}, {"depth": "tx"}, {"reads": "rna"}, {"total_key": "total"}])
def test_unknown_tokenizer_settings_are_refused(encoder: ScFoundation, options: dict) -> None:
    with pytest.raises(InputError):
        encoder.with_options(**options)


def gene_states(encoder: ScFoundation, data: ad.AnnData, batch_size: int) -> np.ndarray:
    found = {}
    for rows, _, encoded in encoder.encode(data, outputs=("gene_states",), batch_size=batch_size):
        found |= dict(zip(rows.tolist(), encoded.heads["gene_states"].numpy(), strict=True))
    return np.stack([found[row] for row in sorted(found)])


def test_gene_states_depend_on_batch_mates_only_when_asked(data: ad.AnnData) -> None:
    gene, joint = (load(FIXTURE / "checkpoint", part="gene", key_maximum=k) for k in ("cell", "batch"))
    alone = gene_states(gene, data, 1)
    np.testing.assert_allclose(gene_states(gene, data, 6), alone, atol=1e-5)
    np.testing.assert_allclose(gene_states(joint, data, 1), alone, atol=1e-5)
    assert np.abs(gene_states(joint, data, 6) - alone).max() > 0.01


def test_mouse_symbols_and_normalised_values_are_refused(encoder: ScFoundation, data: ad.AnnData) -> None:
    mouse = cells(
        ["Cd3e", "Cd4", "Cd19", "Ptprc", "Actb", "Gapdh", "Malat1", "Lyz2", "Ms4a1", "Nkg7", "Trp53", "Cd8a"],
        [[1.0] * 12],
    )
    with pytest.raises(SpeciesError, match="to_orthologs"):
        encoder.embed(mouse)
    data.X = data.X.log1p()
    with pytest.raises(InputError, match="raw counts"):
        encoder.embed(data)
