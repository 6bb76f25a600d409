"""scPlantFormer: published size, where its list of genes comes from, and input it refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.scplantformer import ScPlantFormer
from scfm.adapters.scplantformer.network import ScPlantFormerConfig
from scfm.encoder import Request
from scfm.errors import CheckpointError, GeneMatchError, InputError, SpeciesError
from scfm.genes import Vocabulary
from scfm.registry import find
from scfm.tokenizers import Batch

FIXTURE = Path(__file__).parents[1] / "parity" / "scplantformer"
UNUSED = 128 * 128 + 128
"""Parameters of `pro`, which the published count includes and no forward pass uses."""

pytestmark = pytest.mark.filterwarnings("ignore::scfm.LicenceWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the authors that a test may change."""
    shutil.copytree(FIXTURE / "checkpoint", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")[:4].copy()


def change(folder: Path, edit: Callable[[dict], dict]) -> None:
    path = folder / "Root_Pretrained.pth"
    torch.save(edit(torch.load(path, weights_only=True)), path)


def published() -> ScPlantFormer:
    genes = tuple(f"AT{1 + i // 2000}G{i % 2000:05d}" for i in range(8000))
    vocabulary = Vocabulary(genes, ids="locus", species=("arabidopsis",))
    return ScPlantFormer.build(ScPlantFormerConfig(), vocabulary, find("scplantformer")[1])


def test_published_size() -> None:
    with torch.device("meta"):
        encoder = published()
    assert sum(p.numel() for p in encoder.network.parameters()) + UNUSED == encoder.card.parameters
    assert encoder.tokenizer.context == encoder.config.patches
    assert encoder.dim == encoder.card.dim


def test_full_size_forward() -> None:
    encoder = published()
    with torch.inference_mode():
        cells = encoder.network(Batch({"patches": torch.rand(2, 63, 128)}, {}, None), Request()).cells
    assert cells.shape == (2, 128)
    assert cells.dtype == torch.float64
    assert (cells >= 0).all()


def test_the_card_is_that_of_the_tissue() -> None:
    assert find("scplantformer")[1].name == "scplantformer"
    assert scfm.load(FIXTURE / "checkpoint").name == "scplantformer/root"
    with pytest.warns(scfm.LicenceWarning, match="no licence"):
        scfm.load(FIXTURE / "checkpoint")


def test_genes_from_a_list_a_text_file_or_a_file_of_another_name(folder: Path, data: ad.AnnData) -> None:
    expected = scfm.load(folder)
    genes, embedding = list(expected.vocabulary.tokens), expected.embed(data)
    (folder / "Root_Pretrained.h5ad").rename(folder / "genes.h5ad")
    np.testing.assert_array_equal(scfm.load(folder).embed(data), embedding)
    (folder / "genes.h5ad").unlink()
    with pytest.raises(CheckpointError, match=r"0 lists of genes(.|\n)*genes="):
        scfm.load(folder)
    np.testing.assert_array_equal(scfm.load(folder, genes=genes).embed(data), embedding)
    (folder / "features.txt").write_text("\n".join(genes))
    np.testing.assert_array_equal(scfm.load(folder).embed(data), embedding)
    with pytest.raises(CheckpointError, match="149, the model 150"):
        scfm.load(folder, genes=genes[1:])


def test_prefixes_give_the_same_embedding(folder: Path, data: ad.AnnData) -> None:
    expected = scfm.load(folder).embed(data)
    change(folder, lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()})
    np.testing.assert_array_equal(scfm.load(folder).embed(data), expected)


def test_every_tensor_is_accounted_for(folder: Path) -> None:
    change(folder, lambda tensors: tensors | {"foo.weight": tensors.pop("transformer.h.0.mlp.c_fc.bias")})
    with pytest.raises(CheckpointError, match=r"foo\.weight(.|\n)*layers\.0\.ff1\.bias"):
        scfm.load(folder)


def test_single_precision_on_request(data: ad.AnnData) -> None:
    exact, single = (scfm.load(FIXTURE / "checkpoint", dtype=dtype) for dtype in ("float64", "float32"))
    assert {p.dtype for p in single.network.parameters()} == {torch.float32}
    np.testing.assert_allclose(single.embed(data), exact.embed(data), atol=1e-5)


def test_float64_stays_off_devices_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = scfm.load(FIXTURE / "checkpoint", device="cpu")
    monkeypatch.setattr("scfm.engine.resolve_device", lambda device: torch.device("mps"))
    assert encoder.to("auto").device == torch.device("cpu")
    with pytest.raises(InputError, match="device='cpu'"):
        encoder.to("mps")


def test_human_data_are_refused(data: ad.AnnData) -> None:
    encoder = scfm.load(FIXTURE / "checkpoint")
    human = data.copy()
    human.var_names = symbols(human.n_vars)
    for mapped in (False, True):
        with pytest.raises(SpeciesError, match=r"look like human(.|\n)*arabidopsis(.|\n)*AT1G"):
            encoder.embed(human, map_genes=mapped)
    human.var_names = [f"ENSG{i:011d}" for i in range(human.n_vars)]
    with pytest.raises(SpeciesError, match="look like human"):
        encoder.embed(human)
    unknown = data.copy()
    unknown.var_names = [f"gene {i}" for i in range(unknown.n_vars)]
    with pytest.raises(GeneMatchError, match=r"locus identifiers \(genes such as 'AT1G"):
        encoder.embed(unknown)


def symbols(count: int) -> list[str]:
    """Human gene symbols."""
    from scfm.gene_tables import gene_table

    table = gene_table("human")
    return table.loc[table["biotype"] == "protein_coding", "symbol"].drop_duplicates().tolist()[:count]
