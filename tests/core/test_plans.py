"""Recipes are found, read and refused: nothing is trained here."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scfm.errors import InputError
from scfm.plans import Recipe, find, header, kinds, overridden, parse, read, settings_of, shipped

RECIPES = sorted(shipped())
OWN = {
    "kind": "finetune",
    "title": "own",
    "model": {"name": "mini"},
    "data": {"train": "scfm:pbmc_demo"},
    "objective": {"kind": "classification", "column": "cell_type"},
    "method": "head",
    "out": "tuned",
}


def own(folder: Path, **changes: object) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**OWN, **changes}))
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_are_valid_and_begin_with_their_commands(name: str) -> None:
    recipe = read(name)
    assert recipe.kind in kinds()
    assert recipe.expects.data
    first = shlex.split(header(find(name))[0], comments=True)
    assert first[:3] == ["scfm", "train", name]
    for line in header(find(name)):
        words = shlex.split(line, comments=True)
        assert words[0] in ("scfm", "torchrun", "accelerate", "sbatch", "python")
        if name in words:  # what the header says can be typed
            settings = settings_of([word for word in words[words.index(name) + 1 :] if not word.startswith("-")])
            assert isinstance(read(name, settings), Recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_resolved_recipes_read_as_the_same(name: str, tmp_path: Path) -> None:
    recipe = read(name, {"out": "there"})
    stored = recipe.write(tmp_path, notes=["by a test"])
    assert read(stored) == recipe
    assert header(stored)[-1] == "by a test"


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e4", 50000.0),
        ("010", 10),
        ("-3", -3),
        (".5", 0.5),
        ("3", 3),
        ("1:30", "1:30"),
        ("2026-11-25", "2026-11-25"),
        ("true", True),
        ("null", None),
        ("[1e-4, 2, a]", [0.0001, 2, "a"]),
        ("a b", "a b"),
    ],
)
def test_values_are_those_a_reader_expects(text: str, value: object) -> None:
    found = parse(text, "x")
    assert found == value
    assert type(found) is type(value)


@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers()))
def test_numbers_are_read_as_python_writes_them(number: float) -> None:
    assert parse(repr(number), "x") == number
    assert type(parse(repr(number), "x")) is type(number)


def test_a_rate_in_a_file_is_a_number(tmp_path: Path) -> None:
    path = own(tmp_path)
    path.write_text(path.read_text() + "train:\n  learning_rate: 1e-3\n")
    assert read(path).train["learning_rate"] == 0.001  # type: ignore[attr-defined]


def test_dotted_keys_set_one_value_and_sections_are_replaced() -> None:
    content = {"a": {"b": 1, "c": 2}, "method": "lora"}
    assert overridden(content, {"a.b": 5}) == {"a": {"b": 5, "c": 2}, "method": "lora"}
    assert overridden(content, {"a": {"d": 1}})["a"] == {"d": 1}
    assert overridden(content, {"method.rank": 4})["method"] == {"kind": "lora", "rank": 4}
    assert content == {"a": {"b": 1, "c": 2}, "method": "lora"}
    with pytest.raises(InputError, match=r"a\.b is 1, no section"):
        overridden(content, {"a.b.x": 1})


@pytest.mark.parametrize("text", ["epochs", "=3", "a..b=1", "-x=1", "a b=1"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no key=value"):
        settings_of([text])


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.epoch": 3}, r"train\.epoch is no key\. Did you mean 'epochs'"),
        ({"dta.train": "x"}, r"dta is no key\. Did you mean 'data'"),
        ({"train.epochs": "many"}, r"train\.epochs is 'many'; it must be a whole number"),
        ({"train.learning_rate": "fast"}, r"train\.learning_rate is 'fast'; it must be a number"),
        ({"data.values": "tpm"}, r"data\.values is 'tpm'; it must be 'counts', 'lognorm' or 'any'"),
        ({"data.valid": [1]}, r"data\.valid is \[1\]; it must be a number or text"),
        ({"data": None}, "data is None; it must be a section with keys"),
        ({"model.name": None}, r"model\.name is None; it must be text"),
        ({"method": "lra"}, r"method\.kind is 'lra'\. Did you mean 'lora'"),
        ({"method.rank": 3}, "method: head has no 'rank'. Keys: none"),
        ({"method": {"kind": "lora", "rnk": 3}}, "method: lora has no 'rnk'. Did you mean 'rank'"),
        ({"objective": {"kind": "classification"}}, r"objective\.column is not set"),
        ({"objective.label_smoothing": "x"}, r"objective\.label_smoothing is 'x'; it must be a number"),
        ({"objective": "clasification"}, "Did you mean 'classification'"),
        ({"kind": "finetun"}, "Did you mean 'finetune'"),
        ({"train": 3}, "train is 3; it must be a section with keys"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_right(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(own(tmp_path), settings)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(own(tmp_path), {"train.epochs": "x", "model.nme": "mini", "title": 3})
    for part in ("train.epochs", "model.nme", "title"):
        assert part in str(caught.value)
    assert "own.yaml" in str(caught.value)


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'annotation_lora_mini'"):
        find("annotation_lora_min")
    with pytest.raises(InputError, match=re.escape("there is no file nowhere.yaml")):
        find("nowhere.yaml")
    (tmp_path / "text.yaml").write_text("just text")
    with pytest.raises(InputError, match="it holds no keys"):
        read(tmp_path / "text.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="is no YAML"):
        read(tmp_path / "broken.yaml")


# Data, before the model is loaded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.train": None}, r"data\.train is not set"),
        ({"data.train": "nowhere.h5ad"}, r"data\.train: there is no file nowhere\.h5ad"),
        ({"data.valid": "nowhere.h5ad"}, r"data\.valid: there is no file nowhere\.h5ad"),
        ({"data.train": "scfm:pbmc"}, "There is 'scfm:pbmc_demo'"),
        ({"objective.column": "celltype"}, r"no column 'celltype' \(columns: 'cell_type'\)"),
        ({"data.groups": "donor"}, "no column 'donor'"),
        ({"out": None}, "out is not set"),
    ],
)
def test_data_are_refused_before_the_model_is_loaded(settings: dict, message: str, monkeypatch) -> None:
    import scfm.loading

    monkeypatch.setattr(scfm.loading, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    recipe = read("annotation_lora_mini", {"data.train": "scfm:pbmc_demo", "out": "tuned", **settings})
    with pytest.raises(InputError, match=message) as caught:
        recipe.run()
    assert caught.value.fix


def test_a_column_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    from scfm.data import pbmc_demo

    adata = pbmc_demo()[:20].copy()
    adata.obs["age"] = 1.5
    adata.write_h5ad(tmp_path / "cells.h5ad")
    settings = {"data.train": str(tmp_path / "cells.h5ad"), "objective.column": "age", "out": str(tmp_path / "out")}
    with pytest.raises(InputError, match=r"obs\['age'\] of .* holds float64, e.g. 1.5; labels are needed"):
        read("annotation_lora_mini", settings).run()
