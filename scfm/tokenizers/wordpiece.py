"""WordPiece: a sentence as pieces of words (Schuster & Nakajima 2012), as in uncased BERT (Devlin et al. 2019, arXiv:1810.04805)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from scfm.errors import CheckpointError, InputError
from scfm.tokenizers.base import Tokens

__all__ = ["WordPiece"]

_LONGEST_WORD = 100  # characters; longer words are [UNK], as in the authors' tokenizer


@dataclass(frozen=True)
class WordPiece:
    """Lower-cased text without accents -> ids of the longest pieces, between [CLS] and [SEP].

    Parameters
    ----------
    pieces
        The lines of a `vocab.txt`; position = id, and of a repeated piece the last counts. "##" marks what continues a word.
    context
        Most tokens of a text, [CLS] and [SEP] included.
    """

    pieces: tuple[str, ...]
    context: int = 512

    def __post_init__(self) -> None:
        if missing := [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in self.index]:
            raise CheckpointError(f"the text vocabulary of {len(self.pieces)} pieces has no {', '.join(missing)}.")

    @classmethod
    def read(cls, path: Path, context: int = 512) -> WordPiece:
        """From a `vocab.txt`."""
        return cls(tuple(path.read_text(encoding="utf-8").splitlines()), context)

    @cached_property
    def index(self) -> dict[str, int]:
        """Piece -> id."""
        return {piece: i for i, piece in enumerate(self.pieces)}

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokens of texts: field "ids" int32."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError("texts must be a list of strings.", "Pass [text] for a single one.")
        rows = [self._ids(text) for text in texts]
        return Tokens(
            fields={"ids": np.array([i for row in rows for i in row], dtype=np.int32)},
            offsets=np.cumsum([0, *map(len, rows)]),
            expressed=np.array([len(row) - 2 for row in rows], dtype=np.int64),
            padding={"ids": self.index["[PAD]"]},
        )

    def _ids(self, text: str) -> list[int]:
        pieces = [piece for word in _words(text) for piece in self._pieces(word)][: self.context - 2]
        return [self.index["[CLS]"], *pieces, self.index["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        """The longest piece from the left, then the longest of the rest, and so on; [UNK] where there is none."""
        found, start = [], 0
        while start < len(word) <= _LONGEST_WORD:
            for end in range(len(word), start, -1):
                piece = self.index.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    found.append(piece)
                    start = end
                    break
            else:
                break
        return found if start == len(word) else [self.index["[UNK]"]]


def _words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks, without accents and control characters."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFC", text).lower())
    out = []
    for character in text:
        category = unicodedata.category(character)
        if character.isspace():
            out.append(" ")
        elif category == "Mn" or category.startswith("C") or character == "\ufffd":
            continue
        elif category.startswith("P") or character in "$+<=>^`|~" or _is_ideograph(character):
            out.append(f" {character} ")
        else:
            out.append(character)
    return "".join(out).split()


def _is_ideograph(character: str) -> bool:
    """Chinese characters, each a word of its own."""
    return unicodedata.name(character, "").startswith("CJK ") and "IDEOGRAPH" in unicodedata.name(character)
