"""A fine-tuned encoder: the network it began with, what training changed, and a head that predicts.

Saved, it is a small folder that names its base by a hash of every tensor; another base is refused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from copy import copy, deepcopy
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from scfm.adaptation import inject, merge, peft_files, read_peft
from scfm.cards import ModelCard, Weights
from scfm.cells import Data, Values
from scfm.checkpoint import FINETUNED, Checkpoint
from scfm.encoder import CellEncoder, Encoded, Network, Request
from scfm.engine import Run
from scfm.errors import CapabilityError, CheckpointError, ScfmError, listing
from scfm.genes import Vocabulary
from scfm.hub import upload
from scfm.inference import encode
from scfm.objectives import Target, target_from
from scfm.provenance import plain
from scfm.reading import InputWarning, read
from scfm.splits import Split
from scfm.tensors import fingerprint_of
from scfm.tokenizers.base import Batch, Tokens
from scfm.tuned_card import card_text

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["FineTuned", "FineTunedNetwork"]

PREDICTION = "prediction"
HEAD = "head.safetensors"
WEIGHTS = "weights.safetensors"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SPLITS, METRICS, CARD = "splits.json", "metrics.json", "README.md"
FORMAT = 1


class FineTunedNetwork(Network):
    """A network with the further output "prediction": the target's answer (b, outputs), where it has one."""

    def __init__(self, base: Network, head: torch.nn.Module, target: Target) -> None:
        super().__init__()
        self.base, self.head = base, head
        self._target = target
        self.dim, self.depth, self.token_cost = base.dim, base.depth, base.token_cost
        self.recovery = base.recovery
        self.heads = base.heads | ({PREDICTION} if target.predicts else set())

    @property
    def token_width(self) -> int:
        """That of the network inside."""
        return self.base.token_width

    def width(self, request: Request) -> int:
        """That of the network inside."""
        return self.base.width(request)

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for."""
        if not request.wants(PREDICTION):
            return self.base(batch, request)
        rest, needed = request.outputs - {PREDICTION}, self._target.request(self.base)
        if request.pooling is None and request.hidden_layer is None:
            out = answered = self.base(batch, replace(request, outputs=rest | needed.outputs))
        else:  # the head was trained on the authors' outputs
            out = self.base(batch, replace(request, outputs=rest)) if rest else Encoded()
            answered = self.base(batch, needed)
        out.heads[PREDICTION] = self._target.answer(self.head, answered, batch)
        return out


class FineTuned(CellEncoder):
    """An encoder that `scfm.finetune` made. All of `CellEncoder` works on the trained weights; `predict` answers the question.

    Attributes
    ----------
    base
        An encoder of the original class over the trained network.
    target
        What is predicted.
    record
        How it was made: base, method, objective, settings, trainable share, versions.
    split
        Names of the cells that were trained on and held out.
    history
        Loss and held-out scores of each epoch; `best` marks the one whose weights these are.
    """

    network: FineTunedNetwork

    def __init__(
        self,
        *,
        base: CellEncoder,
        network: FineTunedNetwork,
        target: Target,
        record: Mapping[str, Any],
        split: Split,
        history: Sequence[Mapping[str, Any]],
    ) -> None:
        kind = record["method"]["kind"]
        card = base.card.model_copy(
            update={
                "name": f"{base.card.name}/{kind}",
                "title": f"{base.card.title}, fine-tuned for {listing(target.columns) or target.kind}",
                "default": False,
                "aliases": (),
                "parity": None,
                "weights": Weights(),
            }
        )
        super().__init__(config=base.config, network=network, tokenizer=base.tokenizer, card=card)
        self.base, self.target, self.split = base, target, split
        self.record: dict[str, Any] = dict(record)
        self.history = [dict(epoch) for epoch in history]
        self.capabilities = base.capabilities  # type: ignore[misc]
        self.poolings = base.poolings  # type: ignore[misc]
        self.gene_kinds = base.gene_kinds  # type: ignore[misc]
        self.record["base"] = {**record["base"], "origin": record["base"].get("origin", dict(base.origin))}
        self.origin = {
            "source": "scfm.finetune",
            "base": base.card.name,
            "base_sha256": self.record["base"]["tensors"],
            "tensors_sha256": fingerprint_of(network),
        }

    @property
    def metrics(self) -> dict[str, float]:
        """Loss and held-out scores of the best epoch."""
        best = next((epoch for epoch in self.history if epoch["best"]), {})
        return {key: value for key, value in best.items() if key not in ("best", "epoch")}

    def predict(
        self,
        data: Data,
        *,
        layer: str | None = None,
        gene_column: str | None = None,
        map_genes: bool = False,
        values: Values | None = None,
        batch_size: int | Literal["auto"] = "auto",
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
        progress: bool | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Predict for cells; the arguments are those of `embed`.

        Returns
        -------
        pd.DataFrame
            One row a cell, in order, indexed by `obs_names`. Classification: `label` (categorical), its `probability`, and `p_<class>`
            for each class. Regression: `value`, in the unit of the column. Several labels: `p_<label>` for each. NaN for cells without an
            expressed gene that the model knows.

        Raises
        ------
        CapabilityError
            The objective has no answer for cells, e.g. masked expression.
        """
        import pandas as pd

        if not self.target.predicts:
            raise CapabilityError(
                f"{self.name} was fine-tuned for {self.target.kind}, which predicts nothing.",
                "Use embed(), or fine-tune for a column of obs: scfm.finetune(encoder, adata, 'cell_type').",
            )
        run = Run(Request(frozenset({PREDICTION})), batch_size, precision, "nan")
        run.check(self)
        reading = read(self, data, layer=layer, gene_column=gene_column, map_genes=map_genes, values=values)
        index = pd.Index([str(name) for part in reading.parts for name in part.source.obs.index], dtype=object)
        outputs = np.full((reading.n_cells, self.target.outputs), np.nan, dtype=np.float32)
        empty = 0
        results = encode(self, reading, run, progress=progress, seed=seed)
        with closing(results):
            for result in results:
                for rows, encoded in result.batches:
                    outputs[result.cells[rows]] = encoded.heads[PREDICTION].numpy()
                without = result.tokens.expressed == 0
                outputs[result.cells[without]] = np.nan
                empty += int(without.sum())
        if empty:
            warnings.warn(
                f"{empty} of {len(index)} cells have no expressed gene that {self.name} knows; nothing is predicted for them.",
                InputWarning,
                stacklevel=2,
            )
        return self.target.frame(outputs, index)

    def predict_response(
        self,
        control: AnnData,
        conditions: Sequence[str],
        *,
        layer: str | None = None,
        gene_column: str | None = None,
        map_genes: bool = False,
        batch_size: int = 16,
        seed: int = 0,
    ) -> AnnData:
        """Expression under perturbations, by an encoder that was fine-tuned for `DrugResponse` or `GeneResponse`.

        Parameters
        ----------
        control
            Unperturbed cells, raw counts in `X` or `layer`, with the column of contexts (cell lines) in `obs` that the training data had;
            the contexts may be others. Not changed.
        conditions
            "KLF1+MAP2K6" for genes. For drugs "vorinostat 100 nM 24 h", with a drug of training or any SMILES in the name's place:
            "CC(=O)Oc1ccccc1C(=O)O 100 nM".
        gene_column, map_genes
            As for `embed`.
        batch_size
            Predictions in a step.
        seed
            For models with random tokenization.

        Returns
        -------
        AnnData
            One row a context and condition. Layers "predicted" and "control": log1p of expression scaled to the target sum that
            ``uns["scfm_response"]`` names. `obs`: "condition", the context, and for drugs "drug", "smiles", "dose" (nM), "time" (h).

        Raises
        ------
        CapabilityError
            It was fine-tuned for something else.
        InputError
            The control lacks genes, contexts or counts; a SMILES is no molecule; a perturbed gene is not known.
        """
        from scfm.responses import predict_response

        return predict_response(
            self,
            control,
            conditions,
            layer=layer,
            gene_column=gene_column,
            map_genes=map_genes,
            batch_size=batch_size,
            seed=seed,
        )

    def merge(self) -> CellEncoder:
        """An encoder of the original class with the trained weights and no head: plain tensors, which `save` writes whole."""
        other = copy(self.base)
        other.network = deepcopy(self.network.base)
        merge(other.network)
        other.network.requires_grad_(True)
        other.tokenizer = self.tokenizer
        other.origin = {**self.origin, "source": "scfm.finetune, merged"}
        return other

    # Given to the network inside

    def gene_vectors(self, kind: str) -> Tensor:
        """Those of the trained network."""
        return self.base.gene_vectors(kind)

    def text_tokens(self, texts: Sequence[str]) -> Tokens:
        """Those of the base."""
        return self.base.text_tokens(texts)

    def text_vectors(self, batch: Batch) -> Tensor:
        """Those of the trained network."""
        return self.base.text_vectors(batch)

    @classmethod
    def build(cls, config: Any, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """Not offered: `scfm.finetune` makes one from an encoder."""
        raise CapabilityError(
            "a fine-tuned encoder is made from another one.", "scfm.finetune(encoder, adata, 'cell_type')"
        )

    # Saving

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write what training changed, the head, the split, the scores and a card; `scfm.load(folder)` reads it back with its base."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, PEFT_WEIGHTS, PEFT_CONFIG):
            (folder / name).unlink(missing_ok=True)  # of another method, saved here before
        save_file(_tensors(self.network.head.state_dict()), folder / HEAD)
        if self.record["peft"] is not None:
            config, tensors = peft_files(self.network.base)
            save_file(tensors, folder / PEFT_WEIGHTS)
            _write(folder / PEFT_CONFIG, config)
        if self.record["changed"]:
            state = self.network.base.state_dict()
            save_file(_tensors({name: state[name] for name in self.record["changed"]}), folder / WEIGHTS)
        base = {**self.record["base"], "origin": _absolute(self.record["base"]["origin"])}
        record = {
            **self.record,
            "base": base,
            "tokenizer": self.tokenizer.settings(),
            "tensors": self.origin["tensors_sha256"],
        }
        _write(folder / SPLITS, asdict(self.split))
        _write(folder / METRICS, {"best": self.metrics, "epochs": self.history})
        (folder / CARD).write_text(card_text(self), encoding="utf-8")
        _write(folder / FINETUNED, {"format": FORMAT, **record})
        return folder

    def push_to_hub(self, repo: str, *, private: bool = True, revision: str | None = None) -> str:
        """Put the saved folder onto the Hugging Face hub; ``scfm.load("owner/name")`` reads it back with its base.

        Parameters
        ----------
        repo
            "owner/name"; made if it does not exist.
        private
            Whether a new repository is private. Look at the base's licence before you publish what was made from it.
        revision
            Branch, made if it does not exist; None is the main branch.

        Returns
        -------
        str
            Hash of the commit.

        Raises
        ------
        DownloadError
            You are not logged in or may not write there, or the hub cannot be reached.
        """
        with TemporaryDirectory(prefix="scfm-push-") as folder:
            return upload(self.save(folder), repo, private=private, revision=revision, message=f"{self.name} by scfm")

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read what `save` wrote; its base is `checkpoint.options["base"]` (an encoder, name or folder), or found by its origin."""
        record = checkpoint.json(FINETUNED)
        if record.pop("format", None) != FORMAT:
            raise CheckpointError(f"{checkpoint.folder / FINETUNED} is of another version of scfm.", "Upgrade scfm.")
        tensors = record.pop("tensors")
        base = _base(record["base"], checkpoint.options.get("base"))
        settings = {key: tuple(v) if isinstance(v, list) else v for key, v in record["tokenizer"].items()}
        target = target_from(record["objective"])
        base = copy(target.ready(base).with_options(**settings))
        base.network = deepcopy(base.network)
        head = target.head(base, record["settings"]["head_dropout"]).requires_grad_(False)
        try:
            head.load_state_dict(_stored(checkpoint, HEAD))
        except RuntimeError as error:
            raise CheckpointError(f"{checkpoint.folder / HEAD} does not fit its own {FINETUNED}: {error}") from error
        for parameter in base.network.parameters():
            parameter.requires_grad_(False)
        if record["peft"] is not None:
            inject(base.network, record["peft"])
            read_peft(base.network, _stored(checkpoint, PEFT_WEIGHTS))
            base.network.requires_grad_(False)
        if record["changed"]:
            stored = _stored(checkpoint, WEIGHTS)
            if set(stored) != set(record["changed"]):
                raise CheckpointError(
                    f"{checkpoint.folder / WEIGHTS} does not hold the tensors that {FINETUNED} names."
                )
            base.network.load_state_dict(stored, strict=False)
        split = checkpoint.json(SPLITS)
        found = cls(
            base=base,
            network=FineTunedNetwork(base.network, head.to(base.device), target),
            target=target,
            record=record,
            split=Split(tuple(split["train"]), tuple(split["valid"]), split["groups"]),
            history=checkpoint.json(METRICS)["epochs"],
        )
        if found.origin["tensors_sha256"] != tensors:
            raise CheckpointError(
                f"the tensors in {checkpoint.folder} are not those that were saved.", "Copy it again."
            )
        return found


def _tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, default=plain), encoding="utf-8")


def _stored(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(checkpoint.path(name))
    except SafetensorError as error:
        raise CheckpointError(f"{checkpoint.folder / name} cannot be read: {error}", "Copy it again.") from error


def _absolute(origin: Mapping[str, str]) -> dict[str, str]:
    """An origin whose folder is found from anywhere."""
    source = origin.get("source", "")
    there = Path(source).expanduser()
    return {**origin, "source": str(there.resolve())} if source and there.is_dir() else dict(origin)


def _at_origin(name: str, origin: Mapping[str, str]) -> CellEncoder:
    """The base from where it was loaded the first time: a folder, an installed model's card, or a hub repository."""
    from scfm.loading import load
    from scfm.registry import cards

    source, revision = origin.get("source"), origin.get("revision")
    if source is None or source.startswith("scfm.finetune"):
        raise CheckpointError(
            f"the base of this folder, {name}, has no known origin.", "Pass base=, an encoder or its folder."
        )
    try:
        if Path(source).is_dir():
            return load(Path(source), device="cpu")
        homes = {card.name: card.weights.repo for card in cards()}
        own = name in homes and source in ("package", homes[name])  # a copy elsewhere may hold other weights
        return load(name if own else source, revision=revision, device="cpu")
    except ScfmError as error:
        raise CheckpointError(
            f"the base of this folder, {name} from {source}, cannot be loaded: {error}",
            "Pass base=, an encoder or its folder: scfm.load(folder, base=...).",
        ) from error


def _base(record: Mapping[str, Any], given: CellEncoder | str | PathLike[str] | None) -> CellEncoder:
    """The base, from what was given or from where it came; refused unless every tensor is the same."""
    from scfm.loading import load

    name, origin = record["name"], record["origin"]
    if isinstance(given, CellEncoder):
        base = given
    elif given is not None:
        base = load(given, device="cpu")
    else:
        base = _at_origin(name, origin)
    if isinstance(base, FineTuned):
        raise CheckpointError(f"base= is fine-tuned itself; {name} is needed.", "Pass the encoder that was fine-tuned.")
    if (found := fingerprint_of(base.network)) != record["tensors"]:
        raise CheckpointError(
            f"the base has other weights ({base.name}, sha256 {found[:12]}...) than the one that was fine-tuned "
            f"({name}, sha256 {record['tensors'][:12]}...).",
            "Pass base= with the encoder that was fine-tuned, or its folder.",
        )
    return base
