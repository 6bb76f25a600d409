"""Files of protein embeddings, names of species, and parts of checkpoint tensors."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scfm.checkpoint import Checkpoint, KeyMap
from scfm.errors import CheckpointError, GeneMatchError
from scfm.gene_tables import ID_PREFIXES
from scfm.nn import SelfAttention
from scfm.proteins import protein_genes, protein_vectors
from scfm.species import SCIENTIFIC, common_name

GENES = ["TP53", "ACTB", "CD3E"]
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


def write(path: Path) -> Path:
    table = dict(zip(GENES, VECTORS, strict=True))
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["keys"] = np.array(GENES, dtype="S10")
            for gene, vector in table.items():
                file[f"arrays/{gene}"] = vector
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(table))
    elif path.suffix == ".safetensors":
        save_file({gene: torch.from_numpy(vector.copy()) for gene, vector in table.items()}, path)
    else:
        torch.save({gene: torch.from_numpy(vector.copy()) for gene, vector in table.items()}, path)
    return path


@pytest.mark.parametrize("name", ["a.h5", "a.pt", "a.pkl", "a.safetensors"])
def test_every_format_gives_the_same_genes_and_vectors(tmp_path, name):
    path = write(tmp_path / name)
    genes = protein_genes(path)
    assert sorted(genes) == sorted(GENES)
    if name != "a.safetensors":  # which sorts its tensors
        assert list(genes) == GENES
    for _ in range(2):  # converted, then from the cache
        table = protein_vectors(path)
        np.testing.assert_array_equal(table, VECTORS[[GENES.index(gene) for gene in genes]])
        np.testing.assert_array_equal(protein_vectors(path, ["CD3E", "TP53"]), VECTORS[[2, 0]])
    with pytest.raises(GeneMatchError, match="'XYZ'"):
        protein_vectors(path, ["TP53", "XYZ"])


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="not a dictionary"):
        protein_genes(tmp_path / "a.pt")
    (tmp_path / "a.h5").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="protein embeddings"):
        protein_genes(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["other"] = [1]
    with pytest.raises(CheckpointError, match="keys"):
        protein_genes(tmp_path / "b.h5")


def test_species_are_named_as_the_gene_tables_name_them():
    animals = set(ID_PREFIXES.values()) - {"arabidopsis", "rice", "maize"}
    assert animals <= set(SCIENTIFIC)
    for common, scientific in SCIENTIFIC.items():
        assert common_name(scientific) == common_name(scientific.replace(" ", "_").lower()) == common


def test_some_rows_of_a_checkpoint_tensor_are_loaded(tmp_path):
    save_file({"table": torch.arange(20.0).reshape(10, 2)}, tmp_path / "model.safetensors")
    network = torch.nn.Module()
    network.genes = torch.nn.Embedding(3, 2)
    keys = KeyMap({"table": "genes.weight"})
    rows = np.array([7, 0, 3])
    Checkpoint(tmp_path).load_into(network, keys, rows={"genes.weight": rows})
    np.testing.assert_array_equal(network.genes.weight.detach(), [[14, 15], [0, 1], [6, 7]])
    with pytest.raises(CheckpointError, match="has no row 10"):
        Checkpoint(tmp_path).load_into(network, keys, rows={"genes.weight": np.array([0, 1, 10])})


@pytest.mark.parametrize("weights", [False, True])
def test_attention_adds_to_scores_and_minus_infinity_is_padding(weights):
    torch.manual_seed(0)
    attention, x = SelfAttention(8, 2), torch.randn(2, 5, 8)
    pad = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    masked, _ = attention(x, pad, weights=weights)
    added, _ = attention(x, torch.zeros(2, 5).masked_fill(pad, float("-inf")), weights=weights)
    torch.testing.assert_close(added, masked)
    doubled, _ = attention(x, torch.full((2, 5), 3.0).masked_fill(pad, float("-inf")), weights=weights)
    torch.testing.assert_close(doubled, masked)  # the same for all keys changes nothing
    moved, _ = attention(x, torch.tensor([[1.0, 0, 0, 0, 0]]).expand(2, 5), weights=weights)
    assert not torch.allclose(moved, attention(x, weights=weights)[0])
