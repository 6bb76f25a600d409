"""A guest in the user's process, who leaves everything as it was."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from scfm.encoder import CellEncoder
from scfm.errors import listing
from scfm.testing.compare import csr, embedded, fail, replica, same, untidy, with_x
from scfm.testing.kit import check

if TYPE_CHECKING:
    from anndata import AnnData


def _contents(data: AnnData) -> dict[str, Any]:
    """Everything an AnnData holds, as bytes and plain objects."""
    found: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        if sparse.issparse(value):
            parts = [getattr(value, part) for part in ("data", "indices", "indptr")]
            found[name] = (type(value), value.shape, *((p.dtype.str, p.tobytes()) for p in parts))
        elif isinstance(value, np.ndarray) and value.dtype != object:
            found[name] = (type(value), value.shape, value.dtype.str, value.tobytes())
        elif hasattr(value, "to_dict"):
            found[name] = (list(value.index), value.dtypes.astype(str).to_dict(), value.to_dict())
        elif hasattr(value, "items"):
            found[name] = list(value)
            for key, item in value.items():
                note(f"{name}[{key!r}]", item)
        else:
            found[name] = deepcopy(value)

    for name in ("X", "obs", "var", "uns", "layers", "obsm", "varm", "obsp", "varp"):
        note(name, getattr(data, name))
    if data.raw is not None:
        note("raw.X", data.raw.X)
        note("raw.var", data.raw.var)
    return found


@check
def callers_data(encoder: CellEncoder, data: AnnData) -> None:
    """The caller's AnnData is byte for byte what it was, also where its matrix is unsorted and has explicit zeros."""
    own = with_x(data, untidy(csr(data)))
    own.layers["again"] = csr(data)
    own.obsm["X_other"] = np.arange(2.0 * data.n_obs).reshape(-1, 2)
    own.varm["other"] = np.arange(data.n_vars)[:, None]
    own.uns["note"] = {"nested": [1, 2]}
    own.raw = own.copy()
    before = _contents(own)
    embedded(encoder, own)
    list(encoder.encode(own, progress=False))
    embedded(encoder, own, layer="again")
    after = _contents(own)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        fail(f"changed of the caller's AnnData: {listing(changed)}")


def _process() -> dict[str, Any]:
    """Global state that belongs to the user."""
    loggers = {"root": logging.root, **logging.root.manager.loggerDict}
    return {
        "numpy's global random state": str(np.random.get_state(legacy=False)),  # noqa: NPY002
        "torch's global random state": torch.get_rng_state().numpy().tobytes(),
        "Python's random state": random.getstate(),
        "warnings.filters": list(warnings.filters),
        "numpy's error state": np.geterr(),
        "torch's thread count": torch.get_num_threads(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's inference mode": torch.is_inference_mode_enabled(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "environment variables": dict(os.environ),
        "sys.path": list(sys.path),
        "working folder": os.getcwd(),
        **{
            f"logger {name!r}": (logger.level, logger.propagate, logger.disabled, list(logger.handlers))
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger)
        },
    }


@contextmanager
def _unusual_random_states() -> Iterator[None]:
    """Global random states that no library's seed gives; the caller's own are put back."""
    states = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    np.random.seed(902_731_845)  # noqa: NPY002
    random.seed(902_731_845)
    torch.manual_seed(902_731_845)
    try:
        yield
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])
        torch.set_rng_state(states[2])


@check
def process_state(encoder: CellEncoder, data: AnnData) -> None:
    """Random states, loggers, warning filters, threads, grad mode, environment and working folder are as before."""
    with _unusual_random_states(), torch.enable_grad():
        before = _process()
        embedded(encoder, data)
        list(encoder.encode(data, progress=False))
        after = _process()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        fail(f"changed: {listing(changed)}")


@check
def network_state(encoder: CellEncoder, data: AnnData) -> None:
    """Weights and buffers keep their bits, and every module its train or eval mode; training mode does not change the result."""
    expected = embedded(encoder, data)
    other = replica(encoder)
    other.network.train()
    modules = list(other.network.modules())
    modules[-1].eval()  # one frozen part, as in fine-tuning
    modes = [module.training for module in modules]
    weights = {name: tensor.clone() for name, tensor in other.network.state_dict().items()}
    same(embedded(other, data), expected, "an encoder in training mode", exact=True)
    if [module.training for module in modules] != modes:
        fail("embed changes the train or eval mode of modules")
    changed = [
        n for n, t in other.network.state_dict().items() if not torch.equal(t.nan_to_num(), weights[n].nan_to_num())
    ]
    if changed:
        fail(f"embed changes the network's {listing(changed)}")
