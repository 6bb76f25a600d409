"""Adapters are found through entry points; plugins here are real distributions in a temporary folder."""

import sys
from pathlib import Path

import pytest

import scfm
from scfm import registry
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability
from scfm.errors import ScfmError, UnknownModelError

CARD = 'name = "{name}"\ntitle = "A plugin"\ndefault = true\n[weights]\npackage_data = "."\n'
GOOD = """
from scfm.cards import ModelCard
from scfm.encoder import Capability, CellEncoder

class Toy(CellEncoder):
    capabilities = frozenset({Capability.EMBED, Capability.TEXT})

    @classmethod
    def build(cls, config, vocabulary, card):
        raise NotImplementedError

    @classmethod
    def from_checkpoint(cls, checkpoint):
        return ("loaded", checkpoint.card.name)

    @classmethod
    def recognizes(cls, checkpoint):
        return checkpoint.has("toy.json")
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on sys.path, in the place of site-packages; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    registry.adapters.cache_clear()
    yield folder
    registry.adapters.cache_clear()
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def install(site: Path, distribution: str, family: str = "toyplug", code: str = GOOD, card: str = CARD) -> str:
    """Write what pip would: a package, its card, and a dist-info folder with the entry point. Returns the package's name."""
    package = distribution.replace("-", "_")
    (site / package / "cards").mkdir(parents=True)
    (site / package / "__init__.py").write_text(code)
    (site / package / "cards" / "card.toml").write_text(card.format(name=family))
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[scfm.adapters]\n{family} = {package}:Toy\n")
    return package


def test_a_plugin_is_listed_without_being_imported(site):
    package = install(site, "scfm-plug")
    assert "toyplug" in [card.name for card in scfm.models()]
    assert registry.adapters()["toyplug"].distribution == "scfm-plug"
    assert package not in sys.modules


def test_a_plugin_is_found_and_imported_by_name(site):
    install(site, "scfm-plug")
    adapter, card = registry.find("toyplug")
    assert card.title == "A plugin"
    assert adapter.load_class().__name__ == "Toy"
    assert "toyplug" in registry.able_to(Capability.TEXT)


def test_a_plugin_recognises_its_folders(site, tmp_path):
    install(site, "scfm-plug")
    (tmp_path / "toy.json").write_text("{}")
    assert registry.recognize(Checkpoint(tmp_path)).family == "toyplug"


@pytest.fixture
def clash(site):
    install(site, "scfm-one")
    install(site, "scfm-two", code=GOOD.replace("loaded", "loaded two"))


@pytest.mark.usefixtures("clash")
def test_a_name_of_two_packages_is_refused_and_each_has_its_own():
    with pytest.raises(
        UnknownModelError, match=r"2 packages provide .*'toyplug'.\n.*'scfm-one:toyplug', 'scfm-two:toyplug'"
    ):
        registry.find("toyplug")
    for distribution in ("scfm-one", "scfm-two"):
        adapter, card = registry.find(f"{distribution}:toyplug")
        assert adapter.distribution == distribution
        assert card.name == "toyplug"


@pytest.mark.usefixtures("clash")
def test_a_clash_is_refused_by_load_and_leaves_the_others():
    with pytest.raises(UnknownModelError, match="Say which: 'scfm-one:toyplug'"):
        scfm.load("toyplug")
    with pytest.raises(UnknownModelError, match="Say which"):
        scfm.load(".", adapter="toyplug")
    assert registry.find("pca")[0].distribution == "scfm-sdk"


@pytest.mark.usefixtures("clash")
def test_a_folder_that_two_adapters_recognise_asks_for_one(tmp_path):
    (tmp_path / "toy.json").write_text("{}")
    with pytest.raises(UnknownModelError, match="several adapters recognise"):
        registry.recognize(Checkpoint(tmp_path))


def test_a_plugin_that_claims_a_built_in_name_does_not_shadow_it(site):
    install(site, "scfm-thief", family="pca")
    with pytest.raises(UnknownModelError, match="'scfm-sdk:pca', 'scfm-thief:pca'"):
        registry.find("pca")
    assert registry.find("scfm-sdk:pca")[0].load_class().__module__ == "scfm.adapters.pca.adapter"


def test_a_card_that_claims_anothers_name_is_refused(site):
    install(site, "scfm-thief", family="other", card=CARD.replace("{name}", "pca/mine") + '[input]\nvalues = "any"\n')
    install(site, "scfm-second", family="another", card=CARD.replace("{name}", "pca/mine"))
    with pytest.raises(UnknownModelError, match="2 packages provide a model 'pca/mine'"):
        registry.find("pca/mine")


BROKEN = {
    "missing import": "import no_such_module",
    "syntax error": "def broken(:",
    "any error": "raise RuntimeError('no GPU')",
    "no class": "",
}


@pytest.mark.parametrize("code", BROKEN.values(), ids=BROKEN)
def test_a_plugin_that_cannot_be_imported_is_blamed_and_breaks_no_other(site, tmp_path, code):
    install(site, "scfm-plug", code=code)
    assert {"pca", "toyplug"} <= {card.name for card in scfm.models()}
    with pytest.raises(ScfmError, match=r"adapter 'toyplug' of the package 'scfm-plug' can't be imported"):
        registry.adapters()["toyplug"].load_class()
    assert "toyplug" not in registry.able_to(Capability.EMBED)
    with pytest.raises(
        UnknownModelError, match=r"(?s)no installed adapter recognises.*could not be asked: .*scfm-plug"
    ):
        registry.recognize(Checkpoint(tmp_path))


def test_a_plugin_that_is_gone_breaks_no_other(site):
    package = install(site, "scfm-plug")
    (site / package / "__init__.py").rename(site / "elsewhere.py")
    (site / package).rename(site / "gone")
    assert "pca" in [card.name for card in scfm.models()]
    with pytest.raises(
        UnknownModelError, match=r"'toyplug' of the package 'scfm-plug' has no card.*no module scfm_plug"
    ):
        scfm.load("toyplug")


def test_a_plugin_with_a_broken_parent_package_breaks_no_other(site):
    install(site, "scfm-plug")
    (site / "scfm_plug" / "inner.py").write_text(GOOD)
    (site / "scfm_plug" / "__init__.py").write_text("raise RuntimeError('no GPU')")
    (site / "scfm_plug-1.0.dist-info" / "entry_points.txt").write_text(
        "[scfm.adapters]\ntoyplug = scfm_plug.inner:Toy\n"
    )
    assert "pca" in [card.name for card in scfm.models()]
    assert "no GPU" in registry.adapters()["toyplug"].problem


def test_a_plugin_with_a_broken_card_breaks_no_other_and_says_so_when_asked_for(site):
    install(site, "scfm-plug", card="name = 3")
    assert "pca" in [card.name for card in scfm.models()]
    with pytest.raises(
        UnknownModelError, match=r"(?s)has no card that can be read: .*card\.toml is not a valid model card"
    ):
        scfm.load("toyplug")


def test_a_plugin_that_fails_to_look_hides_no_other(site, tmp_path):
    install(site, "scfm-plug", code=GOOD.replace('return checkpoint.has("toy.json")', "raise KeyError('x')"))
    install(site, "scfm-good", family="goodplug")
    (tmp_path / "toy.json").write_text("{}")
    assert registry.recognize(Checkpoint(tmp_path)).family == "goodplug"


# Names


@pytest.mark.parametrize(("typo", "meant"), [("pcaa", "pca"), ("scgtp", "scgpt"), ("scgpt/brian", "scgpt/brain")])
def test_misspelt_names_are_suggested(typo, meant):
    with pytest.raises(UnknownModelError, match=rf"no model '{typo}'\. Did you mean .*'{meant}'"):
        registry.find(typo)


def test_hopeless_names_get_no_suggestion():
    with pytest.raises(UnknownModelError) as caught:
        registry.find("qqqqqqq")
    assert "Did you mean" not in str(caught.value)
    assert "scfm models" in str(caught.value)


def test_every_name_of_every_card_finds_it():
    for card in scfm.models():
        for name in (card.name, *card.aliases):
            assert registry.find(name)[1] == card


def test_a_familys_name_finds_its_default():
    adapter, card = registry.find("scgpt")
    assert card == adapter.default_card
    assert card.default
