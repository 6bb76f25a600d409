import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from scfm.checkpoint import Checkpoint, KeyMap
from scfm.errors import CheckpointError

KEYS = KeyMap(
    {
        "encoder.embedding.weight": "genes.weight",
        "layers.{i}.in_proj_weight": ("blocks.{i}.q.weight", "blocks.{i}.k.weight"),
        "layers.{i}.ff.{j}.bias": "blocks.{i}.ff.{j}.bias",
        "head.weight": None,
    },
    strip=("module.", "model."),
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.genes = nn.Embedding(3, 2)
        self.blocks = nn.ModuleList([Block()])


def checkpoint(folder, **tensors) -> Checkpoint:
    whole = {"encoder.embedding.weight": torch.rand(3, 2), "layers.0.in_proj_weight": torch.rand(4, 2)}
    whole |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in whole.items() if tensor is not None}, folder / "model.safetensors")
    return Checkpoint(folder)


# KeyMap


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("encoder.embedding.weight", ("genes.weight",)),
        ("module.encoder.embedding.weight", ("genes.weight",)),
        ("model.encoder.embedding.weight", ("genes.weight",)),
        ("module.model.encoder.embedding.weight", None),  # one prefix, not any number
        ("layers.11.in_proj_weight", ("blocks.11.q.weight", "blocks.11.k.weight")),
        ("layers.1.ff.2.bias", ("blocks.1.ff.2.bias",)),
        ("layers.1.2.in_proj_weight", None),  # a number is one part of the name
        ("layers.in_proj_weight", None),
        ("encoderXembedding.weight", None),  # a dot is a dot
        ("encoder.embedding.weight.more", None),
        ("head.weight", ()),
    ],
)
def test_names_are_mapped(theirs, ours):
    assert KEYS.ours(theirs) == ours


@given(i=st.from_regex(r"[a-z0-9_]+", fullmatch=True), j=st.integers(0, 99))
def test_parts_of_the_name_are_carried_over(i, j):
    assert KEYS.ours(f"layers.{i}.ff.{j}.bias") == (f"blocks.{i}.ff.{j}.bias",)


# Tensors into a network


def test_every_tensor_finds_its_place(tmp_path):
    source, network = checkpoint(tmp_path, head__weight=torch.rand(1)), Network()
    source.load_into(network, KEYS)
    assert torch.equal(network.genes.weight, source.tensors["encoder.embedding.weight"])
    stacked = torch.cat([network.blocks[0].q.weight, network.blocks[0].k.weight])
    assert torch.equal(stacked, source.tensors["layers.0.in_proj_weight"])
    assert network.genes.weight.requires_grad


def test_half_precision_becomes_that_of_the_network(tmp_path):
    network = Network()
    checkpoint(tmp_path, encoder__embedding__weight=torch.ones(3, 2, dtype=torch.float16)).load_into(network, KEYS)
    assert network.genes.weight.dtype == torch.float32


def test_tensors_without_a_place_are_all_listed(tmp_path):
    source = checkpoint(tmp_path, foo__weight=torch.rand(5, 2), layers__7__in_proj_weight=torch.rand(4, 2))
    with pytest.raises(CheckpointError) as caught:
        source.load_into(Network(), KEYS)
    assert "2 tensors belong to no parameter of Network" in str(caught.value)
    assert "'foo.weight (5, 2)'" in str(caught.value)
    assert "'layers.7.in_proj_weight (4, 2)'" in str(caught.value)


def test_places_without_a_tensor_are_all_listed(tmp_path):
    source = checkpoint(
        tmp_path, encoder__embedding__weight=None, layers__0__in_proj_weight=None, head__weight=torch.rand(1)
    )
    with pytest.raises(
        CheckpointError, match=r"3 parameters have no tensor in the file: 'genes.weight', 'blocks.0.q.weight'"
    ):
        source.load_into(Network(), KEYS)


def test_unknown_missing_and_misshaped_are_listed_together(tmp_path):
    source = checkpoint(
        tmp_path, encoder__embedding__weight=torch.rand(9, 2), layers__0__in_proj_weight=None, foo=torch.rand(1)
    )
    with pytest.raises(CheckpointError) as caught:
        source.load_into(Network(), KEYS)
    message = str(caught.value)
    assert "1 tensors have another shape" in message
    assert "'encoder.embedding.weight (9, 2) -> genes.weight (3, 2)'" in message
    assert "1 tensors belong to no parameter of Network: 'foo (1,)'" in message
    assert "2 parameters have no tensor in the file: 'blocks.0.q.weight', 'blocks.0.k.weight'" in message
    assert "genes.weight'" not in message.partition("2 parameters")[2]  # it has one, of another shape


def test_two_tensors_for_one_parameter_are_refused(tmp_path):
    source = checkpoint(tmp_path, module__encoder__embedding__weight=torch.rand(3, 2))
    with pytest.raises(CheckpointError, match=r"1 parameters have two tensors: .*embedding\.weight -> genes\.weight"):
        source.load_into(Network(), KEYS)


def test_optional_parameters_keep_their_values(tmp_path):
    source, network = checkpoint(tmp_path, layers__0__in_proj_weight=None), Network()
    before = network.blocks[0].q.weight.clone()
    source.load_into(network, KEYS, optional=("blocks.",))
    assert torch.equal(network.blocks[0].q.weight, before)
    with pytest.raises(CheckpointError, match="2 parameters have no tensor"):
        source.load_into(Network(), KEYS, optional=("block",))  # a prefix ends in a dot


def test_chosen_rows_are_kept(tmp_path):
    source, network = checkpoint(tmp_path, encoder__embedding__weight=torch.arange(12.0).reshape(6, 2)), Network()
    source.load_into(network, KEYS, rows={"genes.weight": np.array([5, 0, 2])})
    assert network.genes.weight[:, 0].tolist() == [10, 0, 4]
    with pytest.raises(CheckpointError, match="has no row 6"):
        source.load_into(Network(), KEYS, rows={"genes.weight": np.array([0, 1, 6])})


# Files


def test_the_only_weights_file_is_found(tmp_path):
    for name in ("config.json", "training_args.bin", "optimizer.pt"):
        (tmp_path / name).write_text("{}")
    assert checkpoint(tmp_path).weights_path.name == "model.safetensors"


def test_safetensors_are_preferred_to_pickles(tmp_path):
    torch.save({"a": torch.rand(1)}, tmp_path / "pytorch_model.bin")
    assert checkpoint(tmp_path).weights_path.name == "model.safetensors"


def test_ambiguous_weights_ask_for_a_choice(tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save({"a": torch.rand(1)}, tmp_path / name)
    with pytest.raises(
        CheckpointError, match=r"2 files that could be the weights: 'a\.pt', 'b\.pt'.\n.*weights='a\.pt'"
    ):
        _ = Checkpoint(tmp_path).weights_path
    assert Checkpoint(tmp_path).keys() == set()
    assert Checkpoint(tmp_path, weights_file="b.pt").weights_path.name == "b.pt"


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no weights"):
        _ = Checkpoint(tmp_path).weights_path
    (tmp_path / "args.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"has no vocab\.json \(files: 'args\.json'\)"):
        Checkpoint(tmp_path).path("vocab.json")
    with pytest.raises(CheckpointError, match=r"args\.json is not valid JSON"):
        Checkpoint(tmp_path).json("args.json")


def test_names_and_tensors_without_prefix(tmp_path):
    source = checkpoint(tmp_path, module__bn__weight=torch.ones(2))
    assert source.keys(("module.",)) == {"encoder.embedding.weight", "layers.0.in_proj_weight", "bn.weight"}
    assert source.tensor("bn.weight", ("module.",)).tolist() == [1, 1]
    assert source.tensor("bn.bias") is None


def test_own_folders_say_which_adapter_wrote_them(tmp_path):
    assert checkpoint(tmp_path).saved_by is None
    (tmp_path / "scfm.json").write_text(json.dumps({"adapter": "toy"}))
    assert Checkpoint(tmp_path).saved_by == "toy"
    assert all(a <= b for a, b in pairwise(Checkpoint(tmp_path).files()))
