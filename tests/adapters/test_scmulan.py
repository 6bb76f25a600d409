"""scMulan: published size, layouts of its files, the end of a sentence, and input it refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.scmulan import ScMulan
from scfm.adapters.scmulan.adapter import _meta, _vocabulary
from scfm.adapters.scmulan.network import ScMulanConfig
from scfm.checkpoint import Checkpoint
from scfm.encoder import Request
from scfm.errors import CheckpointError, InputError, SpeciesError
from scfm.genes import Vocabulary, to_orthologs
from scfm.registry import find
from scfm.tokenizers import Batch

FIXTURE = Path(__file__).parents[1] / "parity" / "scmulan"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the authors that a test may change."""
    shutil.copytree(FIXTURE / "checkpoint", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")[[0, 1, 3, 9]].copy()


def shipped_vocabulary() -> Vocabulary:
    empty = Checkpoint(Path(__file__).parent)
    meta = _meta(empty)
    return _vocabulary(meta["token_set"], meta["gene_set"], 2222, empty)


def change(folder: Path, edit: Callable[[dict], None]) -> None:
    path = folder / "ckpt_scMulan.pt"
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)


def test_published_size() -> None:
    card = find("scmulan")[1]
    with torch.device("meta"):
        encoder = ScMulan.build(ScMulanConfig(), shipped_vocabulary(), card)
    assert sum(p.numel() for p in encoder.network.parameters()) == card.parameters
    assert encoder.dim == card.dim


@pytest.mark.slow
def test_full_size_forward() -> None:
    encoder = ScMulan.build(ScMulanConfig(), shipped_vocabulary(), find("scmulan")[1])
    batch = Batch({"ids": torch.randint(1, 2001, (1, 64)), "bins": torch.randint(1, 11, (1, 64))}, {}, None)
    with torch.inference_mode():
        cells = encoder.network(batch, Request()).cells
    assert cells.shape == (1, 1120)
    assert cells.isfinite().all()


def test_shipped_tokens() -> None:
    vocabulary = shipped_vocabulary()
    assert len(vocabulary.genes) == 2000
    assert vocabulary.id("prompt") == 2206
    assert vocabulary.lookup(["A2M", "Blood", "<E>"]).tolist() == [1, -1, -1]


def test_prefixes_give_the_same_embedding(folder: Path, data: ad.AnnData) -> None:
    expected = scfm.load(folder).embed(data)

    def compiled(content: dict) -> None:
        content["model"] = {f"_orig_mod.{name}": tensor for name, tensor in content["model"].items()}

    change(folder, compiled)
    np.testing.assert_array_equal(scfm.load(folder).embed(data), expected)


def test_every_tensor_is_accounted_for(folder: Path) -> None:
    def edit(content: dict) -> None:
        content["model"]["foo.weight"] = content["model"].pop("transformer.h.1.mlp.c_fc.weight")

    change(folder, edit)
    with pytest.raises(CheckpointError, match=r"foo\.weight(.|\n)*layers\.1\.ff1\.weight"):
        scfm.load(folder)


def test_tokens_of_another_model_are_refused(folder: Path) -> None:
    (folder / "meta_info.pt").unlink()
    with pytest.raises(CheckpointError, match=r"shipped list has 2222 tokens, the model 120"):
        scfm.load(folder)


def test_an_end_of_the_sentence_moves_the_state_that_is_read(data: ad.AnnData) -> None:
    """As the original, which reads the state before the last in its last pass."""
    encoder = scfm.load(FIXTURE / "checkpoint")
    tokens, _ = states_of(encoder, data)
    never, first = encoder.embed(data), encoder.network.next_token.weight
    with torch.no_grad():
        first[encoder.config.end] = 1e4 * tokens[0][-1]  # the first cell's first token becomes <E>
    ended = encoder.embed(data)
    np.testing.assert_allclose(ended[0], tokens[0][-2], atol=1e-5)
    assert np.abs(ended[0] - never[0]).max() > 0.01
    generated = states_of(encoder, data)[1]
    assert generated[0].tolist() == [encoder.config.end, -1, -1]
    assert encoder.cell_types(data)["cell_type"][0] == "Unclassified"


def states_of(encoder: ScMulan, data: ad.AnnData) -> tuple[list[torch.Tensor], torch.Tensor]:
    states, generated = {}, {}
    for cells, tokens, encoded in encoder.encode(data, outputs=("tokens", "generated")):
        for row, cell in enumerate(cells):
            states[cell] = encoded.tokens[row, : tokens.lengths[row]]
            generated[cell] = encoded.heads["generated"][row]
    return [states[i] for i in sorted(states)], torch.stack([generated[i] for i in sorted(generated)])


def test_unfit_values_and_mouse_genes_are_refused(data: ad.AnnData) -> None:
    encoder = scfm.load(FIXTURE / "checkpoint")
    counts = data.copy()
    counts.X = counts.layers["counts"]
    with pytest.raises(InputError, match=r"sc\.pp\.log1p"):
        encoder.embed(counts)
    large = data.copy()
    large.X = large.X * 3
    with pytest.raises(InputError, match=r"limit=None"):
        encoder.embed(large)
    mouse = to_orthologs(data, source="human", target="mouse")
    with pytest.raises(SpeciesError, match="to_orthologs"):
        encoder.embed(mouse)


def test_missing_genes_count_as_not_expressed(data: ad.AnnData) -> None:
    encoder = scfm.load(FIXTURE / "checkpoint")
    expressed = np.asarray(data.X.sum(axis=0)).reshape(-1) > 0
    assert not expressed.all()
    np.testing.assert_array_equal(encoder.embed(data[:, expressed]), encoder.embed(data))
