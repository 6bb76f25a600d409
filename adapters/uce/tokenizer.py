"""Cell sentences of UCE: genes drawn by expression, written chromosome by chromosome.

`sample` genes are drawn with replacement with probability proportional to log1p(count); the drawn chromosomes come in random order,
each as an opening token of its own, its genes by genomic start, and a closing token.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.tokenizers import Tokenizer, Tokens
from scfm.tokenizers.base import Hiding, known_columns, known_entries
from scfm.tokenizers.hashing import cell_hash, mix32, token_hash

if TYPE_CHECKING:
    from scfm.tokenizers.base import _Stream

_WEIGHT_UNIT = (
    1 << 20
)  # weights are whole numbers of 1/unit, so that their sums are exact whatever stands beside a cell


@dataclass(frozen=True)
class SentenceTokenizer(Tokenizer):
    """Sampled genes in genomic order.

    Parameters
    ----------
    vocabulary
        Genes with the columns "chromosome" (token id of the gene's chromosome) and "start" (base pairs), and the special tokens "pad",
        "close", "cls" and the chromosomes.
    sample
        Genes drawn of a cell, with repeats.
    context
        Most tokens of a cell: ``<cls>``, genes, and two for each chromosome drawn.
    sampling
        "cell" draws from a hash of the cell's own content and the seed; "upstream" from numpy's legacy stream, one cell after another in
        the order of the data, as the original does.
    group_size
        None: a cell is computed as if alone, which is what the original gives with a batch size of 1. A number: so many consecutive cells
        are padded to the longest sentence among them, and the padding is attended to with 1 added to its scores, as the original does
        with that batch size. Then cells do depend on those around them.
    """

    vocabulary: Vocabulary
    sample: int = 1024
    context: int = 1536
    sampling: Literal["cell", "upstream"] = "cell"
    group_size: int | None = None
    _place: np.ndarray = field(init=False, repr=False, compare=False)  # rank of each token by chromosome, start, id
    _chromosome: np.ndarray = field(init=False, repr=False, compare=False)  # token id of each token's chromosome

    def __post_init__(self) -> None:
        if self.sampling not in ("cell", "upstream"):
            raise InputError(f"sampling={self.sampling!r} is not known.", "Pass 'cell' or 'upstream'.")
        if not 0 < self.sample <= self.context - 3:
            raise InputError(f"sample={self.sample} does not fit; pass 1 to {self.context - 3}.")
        chromosome = np.nan_to_num(self.vocabulary.columns["chromosome"]).astype(np.int64)
        start = np.nan_to_num(self.vocabulary.columns["start"])
        place = np.empty(len(chromosome), dtype=np.int64)
        place[np.lexsort((start, chromosome))] = np.arange(len(place))  # stable: equal starts by id
        object.__setattr__(self, "_chromosome", chromosome)
        object.__setattr__(self, "_place", place)

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether tokens depend on the seed."""
        return True

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        """Whether blocks must come in order."""
        return self.sampling == "upstream"

    @property
    def grouped(self) -> bool:
        """Whether padding is attended to, so that cells of one group see how long the others are."""
        return self.group_size is not None

    @property
    def hiding(self) -> Hiding:
        """The gene, as padding that is attended to."""
        return Hiding("ids", self.vocabulary.id("pad"), len(self.vocabulary))

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        return {name: value for name, value in asdict(self).items() if name[0] != "_" and name != "vocabulary"}

    def stream(self, seed: int = 0) -> _Stream:
        """A function block -> Tokens; with `sampling="upstream"` it continues the original's stream from block to block."""
        if self.sampling == "cell":
            return lambda block: self._tokens(block, seed)
        numbers = np.random.RandomState(seed)
        return lambda block: self._tokens(block, seed, numbers)

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: field "ids" int32; with `group_size` also "bonus" float32, what is added to the scores of a token."""
        return self.stream(seed)(block)

    def _tokens(self, block: Block, seed: int, numbers: np.random.RandomState | None = None) -> Tokens:
        ids, counts, columns, offsets = _counts(block)
        filled = np.flatnonzero(np.diff(offsets))  # cells without genes are a lone <cls>
        if numbers is not None:
            genes = self._drawn_upstream(block, counts, columns, offsets, filled, numbers)
        else:
            genes = self._drawn(ids, counts, offsets, filled, seed)
        tokens, lengths = self._sentences(genes, filled, len(block))
        fields = {"ids": tokens}
        if self.group_size is not None:
            real = np.arange(lengths.max(initial=0)) < lengths[:, None]  # (n_cells, longest)
            fields = {"ids": np.full(real.shape, self.vocabulary.id("pad"), dtype=np.int32)}
            fields["ids"][real] = tokens
            fields = {"ids": fields["ids"].reshape(-1), "bonus": (~real).astype(np.float32).reshape(-1)}
            lengths = np.full(len(block), real.shape[1])
        return Tokens(
            fields=fields,
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            expressed=np.diff(offsets),
            padding={"ids": self.vocabulary.id("pad"), "bonus": 0.0},
        )

    def _drawn(
        self, ids: np.ndarray, counts: np.ndarray, offsets: np.ndarray, filled: np.ndarray, seed: int
    ) -> np.ndarray:
        """Genes drawn of each filled cell, in the order of the sentence (n_filled, sample) token ids."""
        hashes = cell_hash(token_hash(len(self.vocabulary))[ids], counts, offsets, seed)[filled, None]
        order = np.lexsort(
            (ids, np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)))
        )  # whatever the columns' order
        weights = np.rint(np.log1p(counts.astype(np.float64)) * _WEIGHT_UNIT).astype(np.int64)[order]
        upto = np.cumsum(weights)
        ends = np.concatenate([[0], upto])[offsets]
        begin, total = ends[filled, None], np.diff(ends)[filled, None]
        uniform = mix32(mix32(np.arange(self.sample, dtype=np.uint32) + np.uint32(1))[None] ^ hashes) / 2.0**32
        target = begin + np.floor(uniform * total).astype(np.int64)
        drawn = ids[order][np.searchsorted(upto, target, side="right")].astype(np.int64)
        rank = mix32(token_hash(len(self.vocabulary))[self._chromosome[drawn]] ^ mix32(hashes + np.uint32(1)))
        key = np.sort((rank.astype(np.uint64) << np.uint64(32)) | self._place[drawn].astype(np.uint64), axis=1)
        return np.argsort(self._place)[(key & np.uint64(0xFFFFFFFF)).astype(np.int64)]

    def _drawn_upstream(
        self,
        block: Block,
        counts: np.ndarray,
        columns: np.ndarray,
        offsets: np.ndarray,
        filled: np.ndarray,
        numbers: np.random.RandomState,
    ) -> np.ndarray:
        """The same, with the draws of the original: per cell one `choice`, then one `shuffle` of its chromosomes."""
        import torch

        known = np.flatnonzero(block.alignment.tokens >= 0)
        tokens = block.alignment.tokens[known]
        place = np.searchsorted(known, columns)
        sentences = np.empty((len(filled), self.sample), dtype=np.int64)
        for row, cell in enumerate(filled):
            mine = slice(offsets[cell], offsets[cell + 1])
            dense = np.zeros(len(known), dtype=np.float32)
            dense[place[mine]] = counts[mine]
            weights = torch.log1p(torch.from_numpy(dense))
            share = (weights / weights.sum()).numpy()
            share = share / np.cumsum(share)[-1]  # float32, left to right, as Python's sum under numpy 2
            drawn = tokens[numbers.choice(len(share), size=self.sample, p=share)]
            chromosomes = np.unique(self._chromosome[drawn])
            numbers.shuffle(chromosomes)
            rank = np.empty(len(self.vocabulary), dtype=np.int64)
            rank[chromosomes] = np.arange(len(chromosomes))
            sentences[row] = drawn[np.lexsort((self._place[drawn], rank[self._chromosome[drawn]]))]
        return sentences

    def _sentences(self, genes: np.ndarray, filled: np.ndarray, n_cells: int) -> tuple[np.ndarray, np.ndarray]:
        """Drawn genes with ``<cls>`` and the chromosomes' tokens around them, cells behind one another; and lengths (n_cells,)."""
        chromosome = self._chromosome[genes]  # (n_filled, sample)
        first = np.ones(genes.shape, dtype=bool)
        first[:, 1:] = chromosome[:, 1:] != chromosome[:, :-1]
        last = np.roll(first, -1, axis=1)
        drawn = np.cumsum(first, axis=1)  # chromosomes opened so far
        lengths = np.ones(n_cells, dtype=np.int64)
        lengths[filled] += self.sample + 2 * drawn[:, -1]
        if lengths.max(initial=0) > self.context:
            raise InputError(
                f"a cell's genes lie on {drawn[:, -1].max()} chromosomes or scaffolds; its sentence of {lengths.max()} tokens "
                f"is longer than the {self.context} positions of the model.",
                f"Draw fewer genes: encoder.with_options(sample={self.context // 3 - 1}).",
            )
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        out = np.empty(offsets[-1], dtype=np.int32)
        out[offsets[:-1]] = self.vocabulary.id("cls")
        at = offsets[filled, None] + np.arange(self.sample) + 2 * drawn
        out[at] = genes
        out[at[first] - 1] = chromosome[first]
        out[at[last] + 1] = self.vocabulary.id("close")
        return out, lengths


def _counts(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`known_entries` with whole counts: fractions are cut off, as in the original, and what is not positive is left out."""
    ids, values, offsets = known_entries(block)
    columns = known_columns(block)
    counts = np.floor(values).astype(np.float32)
    kept = counts > 0
    if kept.all():
        return ids, counts, columns, offsets
    return ids[kept], counts[kept], columns[kept], np.concatenate([[0], np.cumsum(kept)])[offsets]
