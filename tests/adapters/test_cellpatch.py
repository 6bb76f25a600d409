"""CellPatch's checkpoints, its batches and its predictions."""

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.cellpatch import CellPatch
from scfm.adapters.cellpatch.network import CellPatchConfig
from scfm.errors import CheckpointError, GeneMatchError, InputError, SpeciesError
from scfm.genes import Vocabulary
from scfm.registry import find
from scfm.testing import check_encoder

FIXTURE = Path(__file__).parents[1] / "parity" / "cellpatch"
UNUSED = 2 * 32  # count2vector_norm: in the file, not in the forward

pytestmark = pytest.mark.filterwarnings("ignore::scfm.LicenceWarning")


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE / "checkpoint", tmp_path / "checkpoint"))


def rewrite(folder: Path, change) -> None:
    path = folder / "CellPatch_50ep.pth"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "model_state_dict": change(content["model_state_dict"])}, path)


def test_published_size():
    card = find("cellpatch")[1]
    vocabulary = Vocabulary(("<pad>", "A"), ids="symbol", special={"pad": "<pad>"})
    with torch.device("meta"):
        encoder = CellPatch.build(CellPatchConfig(), vocabulary, card)
    count = sum(p.numel() for p in encoder.network.parameters())
    assert count == card.parameters
    assert round((count + UNUSED) / 1e6, 2) == 2.29
    assert encoder.dim == card.dim == 2048


def test_full_size_embeds(data):
    genes = tuple(["<pad>", *data.var_names])
    encoder = CellPatch.build(
        CellPatchConfig(), Vocabulary(genes, ids="symbol", special={"pad": "<pad>"}), find("cellpatch")[1]
    )
    assert np.isfinite(encoder.embed(data, empty_cells="embed")).all()
    assert encoder.embed(data, empty_cells="embed", pooling="projected").shape == (26, 640)


@pytest.mark.parametrize("weights", ["CellPatch_50ep.pth", "cache_best.pth"])
def test_both_kinds_keep_the_promises_of_the_interface(weights):
    check_encoder(scfm.load(FIXTURE / "checkpoint", weights=weights, device="cpu"))


def test_the_pretrained_file_is_taken_of_several(folder, data):
    encoder = scfm.load(folder)
    assert "expression" in encoder.network.heads
    (folder / "cache_best.pth").unlink()
    expected = encoder.embed(data, empty_cells="embed")
    np.testing.assert_array_equal(scfm.load(folder).embed(data, empty_cells="embed"), expected)
    rewrite(folder, lambda tensors: {k.removeprefix("module."): v for k, v in tensors.items()})
    np.testing.assert_array_equal(scfm.load(folder).embed(data, empty_cells="embed"), expected)
    (folder / "CellPatch_50ep_args.json").unlink()
    np.testing.assert_array_equal(scfm.load(folder, heads=2).embed(data, empty_cells="embed"), expected)


def test_fine_tuned_files_cut_values_as_in_training():
    encoder = scfm.load(FIXTURE / "checkpoint", weights="cache_best.pth")
    assert (encoder.tokenizer.clip, encoder.tokenizer.whole) == (5.0, True)
    assert encoder.network.heads >= {"logits"}


def test_the_classifier_may_read_projected_patches(data):
    plain = scfm.load(FIXTURE / "checkpoint", weights="cache_best.pth")
    probe = scfm.load(FIXTURE / "checkpoint", weights="cache_best.pth", project_out=True)

    def logits(encoder):
        return next(encoder.encode(data[:2], outputs=("logits",), batch_size=2))[2].heads["logits"]

    assert torch.dist(logits(plain), logits(probe)) > 0.1


def test_missing_and_unknown_tensors_are_listed(folder):
    rewrite(folder, lambda t: {k: v for k, v in t.items() if "count2vector.bias" not in k} | {"foo": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"foo \(2,\)(.|\n)*values.bias"):
        scfm.load(folder)


def test_upstream_padding_depends_on_the_batch(folder, data):
    encoder = scfm.load(folder).with_options(padding="upstream", group_size=6)
    whole = encoder.embed(data, empty_cells="embed")
    np.testing.assert_allclose(encoder.embed(data[6:12], empty_cells="embed"), whole[6:12], atol=1e-5)
    assert np.abs(encoder.with_options(group_size=4).embed(data, empty_cells="embed") - whole).max() > 0.1


def test_targets_are_predicted_in_their_order(folder, data):
    encoder = scfm.load(folder)
    names = tuple(np.array(list(json.loads((folder / "gene2tok.json").read_text())))[[5, 1, 8]])

    def predicted(*targets):
        found = encoder.with_options(targets=targets).encode(data[:3], outputs=("expression",), batch_size=3)
        cells, _, encoded = next(found)
        return encoded.heads["expression"].numpy()[np.argsort(cells)]

    assert predicted(*names).shape == (3, 3)
    np.testing.assert_allclose(predicted(*names)[:, ::-1], predicted(*names[::-1]), atol=1e-5)
    with pytest.raises(GeneMatchError, match="1 of 2 targets"):
        predicted("NOTAGENE", names[0])


def test_too_few_free_rows_are_refused(folder, data):
    encoder = scfm.load(folder).with_options(unknown="upstream", rows=240)
    with pytest.raises(InputError, match="unknown='drop'"):
        encoder.embed(data)
    with pytest.raises(InputError, match="'masked' or 'upstream'"):
        encoder.with_options(padding="none")


def test_wrong_input_is_refused(folder, data):
    encoder = scfm.load(folder)
    counts = data.copy()
    counts.X = np.ceil(data.X.toarray())
    with pytest.raises(InputError, match="normalize_total"):
        encoder.embed(counts)
    data.var_names = [name.capitalize() for name in data.var_names]
    with pytest.raises((SpeciesError, GeneMatchError)):
        encoder.embed(data)
