"""`scfm.load`: a name, a folder or a hub repository -> an encoder."""

from __future__ import annotations

import re
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

from scfm import hub, registry
from scfm.cards import ModelCard
from scfm.checkpoint import FINETUNED, Checkpoint
from scfm.encoder import CellEncoder
from scfm.errors import DownloadError, InputError, UnknownModelError, listing
from scfm.files import sha256
from scfm.registry import Adapter

__all__ = ["LicenceWarning", "load"]


class LicenceWarning(UserWarning):
    """The model's licence restricts what its code or weights may be used for."""


def load(
    model: str | PathLike[str],
    *,
    revision: str | None = None,
    adapter: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    **options: Any,
) -> CellEncoder:
    """Load an encoder.

    Parameters
    ----------
    model
        A name from `scfm.models()` ("scgpt"), a folder with the authors' files or one written by `save` ("./scGPT_human"), or a
        repository on the Hugging Face hub ("org/repo"). A name wins over a folder of the same name; write "./name" for the folder.
    revision
        Branch, tag or commit of the hub repository; None is the one the card pins, else "main".
    adapter
        Family of the adapter, where the folder alone does not tell.
    weights
        File with the tensors, where the folder holds several.
    device
        "cpu", "cuda", "mps" or "auto".
    options
        Choices of the adapter, named on its page; unknown ones are refused. A folder of `FineTuned.save` takes `base`: the encoder it
        was made from, or its name or folder, where that is not found where it was.

    Returns
    -------
    CellEncoder

    Raises
    ------
    UnknownModelError
        No adapter has this name or recognises the folder.
    DownloadError
        The files could not be had from the hub, or are not those the card names.
    CheckpointError
        Files or tensors are missing, or left over.
    """
    text = str(model)
    looks_like_path = isinstance(model, PathLike) or text.startswith((".", "/", "~"))
    found: Adapter | None = registry.find(adapter)[0] if adapter is not None else None
    if not looks_like_path:
        try:
            named, card = registry.find(text)
        except UnknownModelError:
            if not Path(text).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
                raise
        else:
            return _finish(named, _from_card(named, card, revision, weights, options), device)
    if Path(text).expanduser().is_dir():
        checkpoint = Checkpoint(Path(text).expanduser(), weights_file=weights, options=options)
        if checkpoint.has(FINETUNED):
            return _fine_tuned(checkpoint, device, adapter)
    elif looks_like_path:
        raise UnknownModelError(
            f"there is no folder {text}.", "Give a folder with the model's files, or a name from `scfm models`."
        )
    else:
        folder = hub.download(text, None, revision=revision)
        checkpoint = Checkpoint(folder, weights_file=weights, revision=hub.resolved_revision(folder), options=options)
        if checkpoint.has(FINETUNED):
            return _fine_tuned(checkpoint, device, adapter)
        checkpoint.card = next(
            (card for card in registry.cards() if card.weights.repo == text and card.weights.folder is None), None
        )
    return _finish(found or registry.recognize(checkpoint), checkpoint, device, source=text)


def _fine_tuned(checkpoint: Checkpoint, device: str, adapter: str | None) -> CellEncoder:
    from scfm.finetuned import FineTuned

    given = {"adapter": adapter, "weights": checkpoint.weights_file}
    odd = sorted({*(set(checkpoint.options) - {"base"}), *(name for name, value in given.items() if value is not None)})
    if odd:
        raise InputError(
            f"{checkpoint.folder} holds a fine-tuned encoder, which cannot be loaded with {listing(odd)}.",
            "Its only option is base=, the encoder it was made from; other tokenizer settings: with_options(...).",
        )
    return FineTuned.from_checkpoint(checkpoint).to(device)


def _from_card(
    adapter: Adapter, card: ModelCard | None, revision: str | None, weights: str | None, options: dict[str, Any]
) -> Checkpoint:
    if card is None:
        raise UnknownModelError(
            f"the adapter {adapter.family!r} of the package {adapter.distribution!r} has no card"
            + (f" that can be read: {adapter.problem}" if adapter.problem else "."),
            "Load a folder: scfm.load('./folder').",
        )
    where = card.weights
    if where.package_data is not None:
        return Checkpoint(adapter.folder / where.package_data, card=card, weights_file=weights, options=options)
    if where.repo is None:
        raise DownloadError(
            f"the weights of {card.name} are on no hub repository. {where.elsewhere or ''}".strip(),
            "Download them by hand and load the folder: scfm.load('./folder').",
        )
    pinned = revision is None or revision == where.revision
    inside = f"{where.folder}/" if where.folder else ""
    files = [hub.RemoteFile(inside + name, where.digest(name) if pinned else None) for name in where.files]
    folder = hub.download(where.repo, files or None, revision=revision or where.revision)
    commit = hub.resolved_revision(folder)
    return Checkpoint(folder / inside, card=card, weights_file=weights, revision=commit, options=options)


def _finish(adapter: Adapter, checkpoint: Checkpoint, device: str, source: str | None = None) -> CellEncoder:
    cls = adapter.load_class()
    unknown = sorted(set(checkpoint.options) - cls.load_options)
    if unknown:
        raise InputError(
            f"{adapter.family} has no load option {listing(unknown)}.",
            f"It has {listing(sorted(cls.load_options)) or 'none'}.",
        )
    if checkpoint.saved_by is not None and checkpoint.options:
        raise InputError(
            f"{checkpoint.folder} was written by save(), with its options; it cannot be loaded with {listing(checkpoint.options)}.",
            "Load the authors' files with these options.",
        )
    encoder = cls.restore(checkpoint) if checkpoint.saved_by is not None else cls.from_checkpoint(checkpoint)
    if not encoder.origin:
        encoder.origin = _origin(checkpoint, source)
    elif source is not None and (made := encoder.origin.get("source", "")).startswith("scfm.finetune"):
        encoder.origin = {
            **encoder.origin,
            "source": source,
            "made_by": made,
        }  # so that what is trained from it finds it
    if encoder.card.restricted:
        warnings.warn(f"{encoder.name}: {encoder.card.restricted}", LicenceWarning, stacklevel=3)
    return encoder.to(device)


def _origin(checkpoint: Checkpoint, source: str | None) -> dict[str, str]:
    card = checkpoint.card
    origin = {"source": source or (card.weights.repo if card and card.weights.repo else "package")}
    if checkpoint.revision is not None:
        origin["revision"] = checkpoint.revision
    if "tensors" in vars(checkpoint):  # read from a file
        origin["weights_sha256"] = sha256(checkpoint.weights_path)
    return origin
