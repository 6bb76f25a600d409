"""Blocks of cells -> tokens, vectorised over the block."""

from scfm.tokenizers.base import Batch, Tokenizer, Tokens
from scfm.tokenizers.bins import BinTokenizer
from scfm.tokenizers.continuous import ContinuousTokenizer
from scfm.tokenizers.ranks import RankTokenizer

__all__ = ["Batch", "BinTokenizer", "ContinuousTokenizer", "RankTokenizer", "Tokenizer", "Tokens"]
