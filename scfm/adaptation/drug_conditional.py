"""Adapters that a molecule steers, as in scDCA (Maleki et al. 2024, arXiv:2412.13478), of which no code is public.

In every layer, behind attention and behind feed-forward,

    h' = h + W_up gelu(W_down h + b + P g(m, c))                      "shift"
    h' = h + W_up gelu((W_down h + b) (1 + 1.5 tanh(P g(m, c))))      "film"

with m the molecule's vector, c the dose and time, and g = gelu(W [LayerNorm(m); c]) shared by all layers. W_up starts at zero: at first
every drug leaves every context as it is. What the paper leaves open is said in docs/drug.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.adaptation.base import Added, Adding, check_layers, layers_with_sites, place
from scfm.encoder import Network, Request
from scfm.errors import InputError
from scfm.tokenizers.base import Batch

__all__ = ["MOLECULE", "SETTING", "ConditionPath", "ConditionalBottleneck", "DrugConditional"]

MOLECULE, SETTING = "molecule", "setting"
"""Fields of a batch's `cells`: a molecule's vector (b, m); dose and time (b, c). A batch without them is computed by the plain model."""
PATH = "condition_path"
FILM_BOUND = 1.5


class ConditionPath(Added):
    """gelu(W [LayerNorm(m); c]) of the condition of each cell, computed once a batch for all adapters.

    The LayerNorm has no weights: with them, and a projection of its own for each adapter, the published share of less than 1 % would be
    missed.
    """

    def __init__(self, molecule: int, setting: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(molecule + setting, width)
        self.current: Tensor | None = None  # (b, width) of the batch being computed

    def read(self, cells: Mapping[str, Tensor]) -> None:
        """Take molecule and setting of the batch that follows; without them there is no drug."""
        self.current = None
        if MOLECULE in cells:
            molecule, setting = (cells[name].to(self.project.weight.dtype) for name in (MOLECULE, SETTING))
            normed = F.layer_norm(molecule, molecule.shape[1:])
            self.current = F.gelu(self.project(torch.cat([normed, setting], dim=1)))


class ConditionalBottleneck(Added):
    """A bottleneck whose inside is moved or scaled by the batch's condition; the identity where there is none."""

    def __init__(self, dim: int, hidden: int, path: ConditionPath, mode: str) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.steer = nn.Linear(path.project.out_features, hidden)
        self.mode = mode
        self._path = (path,)  # a tuple: its weights are the network's, not each adapter's
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, dim) -> (b, t, dim)."""
        condition = self._path[0].current
        if condition is None:
            return x
        steer = self.steer(condition)  # (b, hidden)
        steer = (
            steer[None] if len(x) != len(condition) else steer[:, None]
        )  # one set of b cells, or b cells of t tokens
        inner = self.down(x)
        inner = inner + steer if self.mode == "shift" else inner * (1 + FILM_BOUND * steer.tanh())
        return x + self.up(F.gelu(inner))


@dataclass(frozen=True)
class DrugConditional(Adding):
    """Train adapters in every layer that a molecule, its dose and time steer (scDCA, Maleki et al. 2024, arXiv:2412.13478).

    For objectives whose examples have a condition: `DrugResponse`. Cells without one are embedded by the plain model.

    Parameters
    ----------
    hidden
        Width of the bottlenecks.
    width
        Of the condition shared by all layers.
    mode
        "shift": the condition is added inside the bottleneck; "film": it multiplies it.
    layers
        "all", "half" (the first half), or how many first ones.
    """

    hidden: int = 16
    width: int = 64
    mode: Literal["shift", "film"] = "shift"
    layers: int | Literal["half", "all"] = "all"

    kind: ClassVar[str] = "drug_conditional"
    learning_rate: ClassVar[float] = 1e-3

    def check(self) -> None:
        """Widths are positive, the mode is known."""
        check_layers(self.layers)
        if self.hidden < 1 or self.width < 1:
            raise InputError(f"hidden={self.hidden}, width={self.width}; they must be from 1 up.")
        if self.mode not in ("shift", "film"):
            raise InputError(f"mode={self.mode!r} is not known.", "Pass 'shift' or 'film'.")

    def plan(self, network: Network, probe: Batch, name: str, request: Request) -> dict[str, Any]:
        """Sizes of the condition and widths of the states at each site."""
        if MOLECULE not in probe.cells:
            raise InputError(
                "method='drug_conditional' needs a drug for every example; this objective has none.",
                "Pass scfm.DrugResponse(...) as the objective, or another method.",
            )
        layers = layers_with_sites(network, probe, name, request, self.layers)
        sites = {f"{layer}.{site}": dim for layer, dims in layers.items() for site, dim in dims.items()}
        return {
            "molecule": probe.cells[MOLECULE].shape[1],
            "setting": probe.cells[SETTING].shape[1],
            "width": self.width,
            "hidden": self.hidden,
            "mode": self.mode,
            "sites": sites,
        }

    @staticmethod
    def insert(network: Network, settings: Mapping[str, Any]) -> None:
        """Put the shared path into the network, which reads each batch's condition, and an adapter at every site."""
        sites = settings["sites"]
        first = next(iter(sites)).rpartition(".")[0]
        path = ConditionPath(settings["molecule"], settings["setting"], settings["width"])
        network.add_module(PATH, place(network, path, first))
        network.register_forward_pre_hook(_read_condition)
        for site, dim in sites.items():
            layer, _, which = site.rpartition(".")
            adapter = ConditionalBottleneck(dim, settings["hidden"], path, settings["mode"])
            setattr(network.get_submodule(layer), which, place(network, adapter, layer))


def _read_condition(network: nn.Module, arguments: tuple[Any, ...]) -> None:
    path = network.get_submodule(PATH)
    assert isinstance(path, ConditionPath)
    path.read(arguments[0].cells)
