"""Reading fragment files: lines of text -> arrays, a few million bytes at a time, in numpy.

A piece of text is one array of bytes. Its tabs and newlines are found at once, numbers are read eight digits at a time (all digits of a
field in one 64-bit word), and names become numbers through a hash whose collisions are looked for, so that no line is ever a Python object.
Pieces are small enough for the processor's cache.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scfm.ahead import ahead_of
from scfm.errors import InputError
from scfm.files import is_gzip

__all__ = ["FragmentFile", "Fragments"]

_PIECE = 1 << 21  # bytes of text read together
_MARGIN = 16  # bytes around a piece, so that words may reach beyond its fields
_COLUMNS = "Columns: contig, start, end, barcode[, count], by tabs."
_TAB, _NEWLINE = 9, 10
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")  # SAM specification 4.1.2


@dataclass(frozen=True)
class Fragments:
    """Some consecutive lines of a fragment file.

    Parameters
    ----------
    contig, barcode
        (n,) int64 positions in `contigs` and `barcodes` of the file.
    start, end
        (n,) int64 base pairs, half-open.
    count
        (n,) int64 reads; None where the file has no fifth column.
    """

    contig: np.ndarray
    start: np.ndarray
    end: np.ndarray
    barcode: np.ndarray
    count: np.ndarray | None

    def __len__(self) -> int:
        return len(self.start)


class FragmentFile:
    """A fragment file, plain, gzipped or bgzipped: iterate over it for its `Fragments`.

    Attributes
    ----------
    contigs, barcodes
        Names in the order in which they were met; complete when the iteration is.
    header
        Lines that begin with "#".

    Raises
    ------
    InputError
        While it is read: the file is cut or damaged, or a line is no fragment.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: list[str] = []
        self._contigs, self._barcodes = _Names(), _Names()

    @property
    def contigs(self) -> list[str]:
        """Names of the contigs met so far."""
        return self._contigs.names

    @property
    def barcodes(self) -> list[str]:
        """Barcodes met so far."""
        return self._barcodes.names

    def __iter__(self) -> Iterator[Fragments]:
        fields, line = 0, 1
        with closing(ahead_of(_pieces(self.path), depth=8)) as pieces:
            for piece in pieces:
                odd = b"#" in piece or b"\r" in piece or piece.startswith(b"\n")
                text = _plain(piece, self.header) if odd else piece
                if text:
                    fields = fields or _fields(text, self.path)
                    yield self._parsed(text, fields, line)
                line += piece.count(b"\n")
        if not fields:
            raise InputError(
                f"{self.path} has 0 tab-separated fields in its first line; a fragment has four or five.", _COLUMNS
            )

    def _parsed(self, text: bytes, fields: int, line: int) -> Fragments:
        """The fragments of a piece of text whose lines all have so many fields."""
        raw = bytes(_MARGIN) + text + bytes(_MARGIN)
        buffer = np.frombuffer(raw, dtype=np.uint8)
        ends = np.flatnonzero((buffer - np.uint8(_TAB)) < 2)  # tabs and newlines
        newlines = np.flatnonzero(buffer[ends] == _NEWLINE)
        if len(ends) % fields or not np.array_equal(newlines, np.arange(fields - 1, len(ends), fields)):
            if b"\n\n" in text:
                return self._parsed(_plain(text, None), fields, line)
            per_line = np.diff(newlines, prepend=-1)
            bad = int(np.flatnonzero(per_line != fields)[0])
            raise _no_fragment(self.path, line, text, bad, f"it has {per_line[bad]} fields, the first line {fields}")
        begins = np.empty_like(ends)
        begins[0], begins[1:] = _MARGIN, ends[:-1] + 1
        words = np.ndarray((len(raw) - 7,), dtype="<u8", buffer=raw, strides=(1,))  # the 8 bytes from every byte on

        def number(field: int, name: str) -> np.ndarray:
            value, good = _numbers(words, begins[field::fields], ends[field::fields])
            if not good.all():
                raise _no_fragment(self.path, line, text, int(np.argmin(good)), f"its {name} is no whole number")
            return value

        start, end = number(1, "start"), number(2, "end")
        count = number(4, "count") if fields > 4 else None
        if bad := int((end <= start).sum()):
            at = int(np.flatnonzero(end <= start)[0])
            raise _no_fragment(self.path, line, text, at, f"it is one of {bad:,} that end at or before their start")
        contig = self._contigs.numbered(raw, words, begins[0::fields], ends[0::fields])
        width = ends[3::fields] - begins[3::fields]
        if not width.all():
            raise _no_fragment(self.path, line, text, int(np.argmin(width)), "its barcode is empty")
        barcode = self._barcodes.numbered(raw, words, begins[3::fields], ends[3::fields])
        return Fragments(contig, start, end, barcode, count)


def _pieces(path: Path) -> Iterator[bytes]:
    """The text of a file in pieces that end with a line."""
    _require_end(path)
    rest = b""
    try:
        with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
            while piece := file.read(_PIECE):
                cut = piece.rfind(b"\n") + 1
                if cut:
                    yield rest + piece[:cut]
                    rest = piece[cut:]
                else:
                    rest += piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is truncated or damaged: {error}", "Copy or download it again; `gzip -t` checks it."
        ) from error
    if rest:
        yield rest + b"\n"


def _require_end(path: Path) -> None:
    """Refuse a bgzipped file without its last block: one that was cut between two blocks reads like a whole one."""
    if not is_gzip(path):
        return
    with path.open("rb") as file:
        head = file.read(18)
        file.seek(max(path.stat().st_size - len(_BGZF_END), 0))
        tail = file.read()
    if head[3] & 4 and head[12:14] == b"BC" and tail != _BGZF_END:
        raise InputError(
            f"{path} is truncated: it is bgzipped and its end-of-file block is missing.",
            "Copy or download it again; if you know it to be whole: zcat FILE | bgzip > NEW.",
        )


def _plain(text: bytes, header: list[str] | None) -> bytes:
    """Without comments, empty lines and carriage returns."""
    kept = []
    for row in text.replace(b"\r\n", b"\n").split(b"\n"):
        if row.startswith(b"#"):
            if header is not None:
                header.append(row.decode(errors="replace"))
        elif row.strip():
            kept.append(row)
    return b"\n".join(kept) + b"\n" if kept else b""


def _fields(text: bytes, path: Path) -> int:
    """How many fields the first fragment has."""
    first = text[: text.index(b"\n")]
    fields = first.count(b"\t") + 1
    if fields < 4:
        raise InputError(
            f"{path} has {fields} tab-separated fields in its first line; a fragment has four or five.", _COLUMNS
        )
    return fields


def _no_fragment(path: Path, line: int, text: bytes, row: int, why: str) -> InputError:
    """An error with a line; its number counts comments of earlier pieces and not of its own."""
    shown = text.split(b"\n", row + 1)[row][:60].decode(errors="replace")
    return InputError(f"{path} has a line that is no fragment, near line {line + row:,}: {shown!r}; {why}.", _COLUMNS)


def _numbers(words: np.ndarray, begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers of up to 16 digits in the fields [begin, end), (n,) int64, and which of the fields are such."""
    width = end - begin
    value, good = _eight_digits(words[end - 8], np.minimum(width, 8))
    good &= (width > 0) & (width <= 16)
    if (long := np.flatnonzero(width > 8)).size:
        high, fine = _eight_digits(words[end[long] - 16], np.clip(width[long] - 8, 0, 8))
        value[long] += high * 100_000_000
        good[long] &= fine
    return value, good


def _eight_digits(word: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number in the last `width` of the 8 bytes of each word, and whether they are digits.

    Neighbouring digits are joined by pairs, then fours, then eights, by multiplication within the word (as in Lemire's fast_float).
    """
    shift = ((8 - width) * 8).astype(np.uint64)
    shift[width == 0] = 56  # a shift by 64 is not defined; empty fields are refused by their width
    digits = word >> shift
    digits <<= shift  # bytes before the field are 0
    digits -= (np.uint64(0x3030303030303030) >> shift) << shift
    wrong = digits + np.uint64(0x7676767676767676)  # the high bit of a byte is set from 10 on
    wrong |= digits
    wrong &= np.uint64(0x8080808080808080)
    good = wrong == 0
    digits = digits * np.uint64(10) + (digits >> np.uint64(8))
    pairs = np.uint64(0x000000FF000000FF)
    high = (digits & pairs) * np.uint64(0x000F424000000064)
    low = ((digits >> np.uint64(16)) & pairs) * np.uint64(0x0000271000000001)
    return ((high + low) >> np.uint64(32)).astype(np.int64), good


_MASKS = np.array([(1 << (8 * n)) - 1 for n in range(9)], dtype=np.uint64)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: no information of a word is lost


class _Names:
    """Distinct names met so far, found again by a hash of their 64-bit words."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._hashes = np.zeros(0, dtype=np.uint64)  # ascending
        self._numbers = np.zeros(0, dtype=np.int64)  # of the names with these hashes
        self._words = np.zeros((0, 1), dtype=np.uint64)  # of the names, in their order
        self._index: dict[str, int] | None = None  # once two names had one hash

    def numbered(self, raw: bytes, words: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Number of the name in each of the fields [begin, end) of `raw` (n,) int64; `words` are the 8 bytes from each byte on."""
        import pandas as pd

        width = end - begin
        shortest, parts = int(width.min()), []
        for at in range(0, max(int(width.max()), 1), 8):
            if shortest >= at + 8:
                parts.append(words[begin + at])
            else:
                here = np.minimum(begin + at, len(words) - 1)  # nothing is left of names that ended before
                parts.append(words[here] & _MASKS[np.clip(width - at, 0, 8)])
        hashed = parts[0]
        for part in parts[1:]:
            hashed = (hashed ^ (hashed >> np.uint64(29))) * _FACTOR + part
        code, distinct = pd.factorize(hashed)
        first = np.empty(len(distinct), dtype=np.int64)
        first[code[::-1]] = np.arange(len(code) - 1, -1, -1)
        own = np.stack([part[first] for part in parts], axis=1)  # (n_distinct, n_words)
        # equal hashes and all words but one equal mean that the last one is equal too
        clash = any((part != part[first][code]).any() for part in parts[1:])
        numbers = None if clash or self._index is not None else self._found(distinct, own)
        if numbers is None:
            return self._one_by_one([raw[a:b].decode(errors="replace") for a, b in zip(begin, end, strict=True)])
        new = np.flatnonzero(numbers < 0)
        numbers[new] = len(self.names) + np.arange(len(new))
        spans = zip(begin[first[new]].tolist(), end[first[new]].tolist(), strict=True)
        self.names += [raw[a:b].decode(errors="replace") for a, b in spans]
        self._remember(distinct[new], numbers[new], own[new])
        return numbers[code]

    def _found(self, hashes: np.ndarray, words: np.ndarray) -> np.ndarray | None:
        """Numbers of names by their hashes, -1 where unknown; None if one has the hash of another name."""
        place = np.searchsorted(self._hashes, hashes)
        known = np.flatnonzero(place < len(self._hashes))
        known = known[self._hashes[place[known]] == hashes[known]]
        numbers = np.full(len(hashes), -1, dtype=np.int64)
        numbers[known] = self._numbers[place[known]]
        wide = max(words.shape[1], self._words.shape[1])
        before, now = (_widened(table, wide) for table in (self._words[numbers[known]], words[known]))
        return numbers if (before == now).all() else None

    def _remember(self, hashes: np.ndarray, numbers: np.ndarray, words: np.ndarray) -> None:
        if not len(hashes):
            return
        wide = max(words.shape[1], self._words.shape[1])
        self._words = np.concatenate([_widened(self._words, wide), _widened(words, wide)])
        order = np.argsort(hashes)
        place = np.searchsorted(self._hashes, hashes[order])
        self._hashes = np.insert(self._hashes, place, hashes[order])
        self._numbers = np.insert(self._numbers, place, numbers[order])

    def _one_by_one(self, names: list[str]) -> np.ndarray:
        """Exact, slow."""
        if self._index is None:
            self._index = {name: i for i, name in enumerate(self.names)}
        numbers = [self._index.setdefault(name, len(self._index)) for name in names]
        self.names[:] = self._index
        return np.array(numbers, dtype=np.int64)


def _widened(words: np.ndarray, width: int) -> np.ndarray:
    """With columns of 0 up to a width."""
    return words if words.shape[1] == width else np.pad(words, ((0, 0), (0, width - words.shape[1])))
