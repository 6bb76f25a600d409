import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

import scfm
from scfm.cards import UNVERIFIED, ModelCard
from scfm.errors import CheckpointError
from scfm.registry import adapters

ROOT = Path(__file__).parents[2]
CARDS = sorted(ROOT.glob("adapters/*/cards/*.toml"))


def card(tmp_path, text) -> ModelCard:
    path = tmp_path / "card.toml"
    path.write_text(text)
    return ModelCard.read(path)


def test_unknown_facts_are_unverified_not_guessed(tmp_path):
    found = card(tmp_path, 'name = "toy/small"\ntitle = "Toy"')
    assert found.family == "toy"
    assert {found.paper, found.code, found.code_licence, found.weights_licence} == {UNVERIFIED}
    assert found.input.values == "counts"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('name = "toy"', "title"),
        ('name = "toy"\ntitle = "Toy"\nlicense = "MIT"', "license"),
        ('name = "toy"\ntitle = "Toy"\n[input]\nvalues = "tpm"', r"input\.values"),
        ('name = "toy', "TOML|closing|string|Illegal|newline"),
    ],
)
def test_invalid_cards_name_the_field(tmp_path, text, names):
    with pytest.raises(CheckpointError, match=rf"(?s)card\.toml is not a valid model card: .*({names})"):
        card(tmp_path, text)


def test_cards_are_frozen(tmp_path):
    found = card(tmp_path, 'name = "toy"\ntitle = "Toy"')
    with pytest.raises(ValidationError, match="frozen"):
        found.title = "Other"


def test_unverified_digests_are_not_compared(tmp_path):
    found = card(tmp_path, 'name = "t"\ntitle = "T"\n[weights.files]\n"a.pt" = "ab12"\n"b.pt" = "unverified"')
    assert [found.weights.digest(name) for name in ("a.pt", "b.pt", "c.pt")] == ["ab12", None, None]


def test_a_card_survives_json(tmp_path):
    found = card(
        tmp_path, 'name = "t"\ntitle = "T"\nspecies = ["human"]\n[parity]\nfixture = "x"\nmax_abs_diff = {a = 1e-6}'
    )
    assert ModelCard.model_validate(found.model_dump(mode="json")) == found


# The cards that ship


@pytest.mark.parametrize("path", CARDS, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_shipped_card_is_valid(path):
    found = ModelCard.read(path)
    assert found.family == path.parts[-3]
    assert found.species
    assert found.parity is None or (ROOT / found.parity.fixture).is_dir()
    for name, digest in found.weights.files.items():
        assert digest == UNVERIFIED or (len(digest) == 64 and int(digest, 16) >= 0), name
    assert tomllib.loads(path.read_text())


def test_names_of_shipped_cards_are_unique_and_each_family_has_one_default():
    names = [name for found in scfm.models() for name in (found.name, *found.aliases)]
    assert len(names) == len(set(names))
    for family, adapter in adapters().items():
        assert adapter.problem is None, adapter.problem
        assert sum(found.default for found in adapter.cards) == 1, family
