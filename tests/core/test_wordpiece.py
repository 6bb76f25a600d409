"""scfm.tokenizers.wordpiece against Hugging Face's own tokenizer of BERT."""

import random
import string
from pathlib import Path

import pytest

from scfm.errors import CheckpointError, InputError
from scfm.tokenizers.wordpiece import WordPiece

LETTERS = string.ascii_lowercase + string.digits
PIECES = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *".:;-+,()/$^",
    "cell",
    "type",
    "b",
    "##cell",
    "naive",
    "中",
    "ß",
    "α",
    "##s",
)
PIECES += tuple(letter for letter in LETTERS if letter not in ("b", "7")) + tuple(
    f"##{letter}" for letter in LETTERS if letter != "s"
)


def texts() -> list[str]:
    rng = random.Random(0)
    alphabet = (
        string.ascii_letters + string.digits + string.punctuation + "  \t\nàéîõüßαβµ中文İ\u200b\u00a0\ufffd—’ﬁ€°±²½"
    )
    fixed = ["cell type: Naïve CD8-positive, alpha-beta T cell. ", "", "bcells", "7bcell", "a" * 101]
    return fixed + ["".join(rng.choice(alphabet) for _ in range(rng.randint(0, 60))) for _ in range(300)]


def test_pieces_are_those_of_the_reference(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    reference = transformers.BertTokenizer.from_pretrained(tmp_path)
    ours = WordPiece.read(tmp_path / "vocab.txt", context=24)
    found = [cell["ids"].tolist() for cell in ours.tokenize(texts())]
    assert found == [reference(text, truncation=True, max_length=24)["input_ids"] for text in texts()]


def test_of_a_repeated_piece_the_last_counts() -> None:
    words = WordPiece((*PIECES[:4], "b", "cell", "b"))
    assert words.tokenize(["B cell"]).fields["ids"].tolist() == [2, 6, 5, 3]


def test_what_is_no_list_of_texts_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[text\]"):
        WordPiece(PIECES).tokenize("cell type: b cell.")
    with pytest.raises(CheckpointError, match=r"\[UNK\]"):
        WordPiece(("[PAD]", "[CLS]", "[SEP]"))
