"""Which gene has which token, median and other names: from the folder, else from the sets shipped here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scfm.checkpoint import Checkpoint
from scfm.data import shared_table
from scfm.errors import CheckpointError, listing
from scfm.genes import Vocabulary
from scfm.tokenizers.ranks import median_column, read_rank_table
from scfm.unpickle import safe_unpickle

SPECIAL = {"pad": "<pad>", "mask": "<mask>", "cls": "<cls>", "eos": "<eos>"}
SHIPPED = {
    25_426: (shared_table("rank_medians_25424.tsv.gz"), ("pad", "mask")),
    20_275: (Path(__file__).parent / "data" / "gc104M.tsv.gz", ("pad", "mask", "cls", "eos")),
}
"""Rows of the token table -> dictionaries, and the special tokens that come before the genes."""


def in_folder(folder: Path) -> bool:
    """Whether the folder has dictionaries of its own."""
    return any(folder.glob("token_dictionary*.pkl"))


def read(checkpoint: Checkpoint, rows: int) -> Vocabulary:
    """The vocabulary of a checkpoint whose token table has so many rows.

    Raises
    ------
    CheckpointError
        The folder has dictionaries of another size, or none, and no released model has this size.
    """
    folder = Path(checkpoint.options.get("dictionaries") or checkpoint.folder)
    if in_folder(folder):
        return _from_files(folder, rows)
    if "dictionaries" in checkpoint.options:
        raise CheckpointError(f"{folder} has no token_dictionary*.pkl.")
    if rows not in SHIPPED:
        sizes = ", ".join(f"{size:,}" for size in SHIPPED)
        raise CheckpointError(
            f"{checkpoint.folder} has no token_dictionary*.pkl, and its token table has {rows:,} rows; the released models have {sizes}.",
            "Give the folder with the dictionaries it was trained with: scfm.load(folder, dictionaries='./dictionaries').",
        )
    path, roles = SHIPPED[rows]
    medians, aliases = read_rank_table(path)
    tokens = [*(SPECIAL[role] for role in roles), *medians]
    return _vocabulary({token: i for i, token in enumerate(tokens)}, medians, aliases)


def _from_files(folder: Path, rows: int) -> Vocabulary:
    """Read the pickles of a folder, of several sets the one of the right size."""
    sizes = {}
    for path in sorted(folder.glob("token_dictionary*.pkl")):
        tokens = {str(token): int(i) for token, i in safe_unpickle(path).items()}
        sizes[path.name] = len(tokens)
        if len(tokens) == rows:
            ending = path.name.removeprefix("token_dictionary")
            medians = _dictionary(folder, ("gene_median_dictionary",), ending)
            return _vocabulary(tokens, medians, _dictionary(folder, ("ensembl_mapping_dict",), ending, optional=True))
    found = "; ".join(f"{name} has {size:,} tokens" for name, size in sizes.items())
    raise CheckpointError(
        f"the token table has {rows:,} rows, but in {folder} {found}.",
        "Remove dictionaries of other models from the folder.",
    )


def _dictionary(folder: Path, stems: tuple[str, ...], ending: str, *, optional: bool = False) -> Mapping[str, Any]:
    for stem in stems:
        if (path := folder / f"{stem}{ending}").is_file():
            return safe_unpickle(path)
    if optional:
        return {}
    raise CheckpointError(
        f"{folder} has token_dictionary{ending} but no {stems[0]}{ending} (files: {listing(sorted(p.name for p in folder.glob('*.pkl')))})."
    )


def _vocabulary(tokens: Mapping[str, int], medians: Mapping[str, float], names: Mapping[str, str]) -> Vocabulary:
    special = {role: token for role, token in SPECIAL.items() if token in tokens}
    vocabulary = Vocabulary.from_index(
        tokens,
        ids="ensembl",
        species=("human",),
        special=special,
        fold_case=True,  # the authors look upper-cased names up
        aliases={name: gene for name, gene in names.items() if name != gene and gene in tokens},
    )
    column = median_column(vocabulary.tokens, medians)
    if missing := [
        token
        for token, median in zip(vocabulary.tokens, column, strict=True)
        if not median > 0 and token not in special.values()
    ]:
        raise CheckpointError(
            f"{len(missing)} genes of the token dictionary have no positive median: {listing(missing)}."
        )
    vocabulary.columns["median"] = column  # type: ignore[index]
    return vocabulary
