"""Several devices give what one gives, and a process that dies is told of."""

import os
import signal

import numpy as np
import pytest
import torch
from anndata import AnnData

import scfm
from scfm.data import pbmc_demo
from scfm.engine import resolve_devices
from scfm.errors import InputError, ScfmError


@pytest.fixture(scope="module")
def encoder() -> scfm.CellEncoder:
    return scfm.load("mini", device="cpu").with_options(context=48)


@pytest.fixture(scope="module")
def data() -> AnnData:
    return pbmc_demo()


def test_processes_give_the_same_in_the_same_order(encoder, data, tmp_path):
    alone = encoder.embed(data)
    both = encoder.embed(data, devices=["cpu", "cpu"], out=tmp_path / "z.npy", key_added="X_both")
    np.testing.assert_allclose(both, alone, atol=1e-6)
    assert (tmp_path / "z.npy.journal").read_text().count('"block"') == 2
    np.testing.assert_array_equal(data.obsm.pop("X_both"), both)


def test_a_refusal_of_the_reader_ends_the_processes(encoder, data):
    wrong = data[:600].copy()
    wrong.X = wrong.X.copy()
    wrong.X[560, wrong.X[560].indices[0]] = 0.5
    with pytest.raises(InputError, match=r"non-integer|log1p"):
        encoder.embed(wrong, devices=["cpu"])


class Deadly(torch.nn.Module):
    """Ends its process, as the kernel does when memory is short."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return x


def test_a_process_that_dies_is_told_of(encoder, data):
    from copy import copy, deepcopy

    deadly = copy(encoder)
    deadly.network = deepcopy(encoder.network)
    name = next(name for name, module in deadly.network.named_modules() if isinstance(module, torch.nn.LayerNorm))
    deadly.network.set_submodule(name, Deadly())
    with pytest.raises(ScfmError, match=r"worker process .* died"):
        deadly.embed(data[:20], devices=["cpu"])


def test_devices_are_checked_before_work(encoder, data, monkeypatch):
    for wrong, message in (([], "names no device"), (2, "has 0 CUDA devices"), ("all", "has 0 CUDA devices")):
        with pytest.raises(InputError, match=message):
            encoder.embed(data, devices=wrong)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert resolve_devices(2) == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert len(resolve_devices("all")) == len(resolve_devices(["all"])) == 4
    assert resolve_devices(["cuda:3", "cpu"]) == [torch.device("cuda:3"), torch.device("cpu")]
    with pytest.raises(InputError, match="has 4 CUDA devices"):
        resolve_devices(5)
