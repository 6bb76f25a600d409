"""The Cell Ontology slice: facts, ancestors, distances, and labels that are matched or left to a person."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfm.errors import InputError
from scfm.ontology import Ontology, Term, cell_ontology, normalised

T, B, NK, LYMPHOCYTE, MONOCYTE, PLATELET = (
    "CL:0000084",
    "CL:0000236",
    "CL:0000623",
    "CL:0000542",
    "CL:0000576",
    "CL:0000233",
)
terms = st.sampled_from(sorted(t.id for t in cell_ontology().terms.values() if not t.deprecated))


def test_facts_of_the_ontology():
    cl = cell_ontology()
    assert len(cl) == 3596
    assert cl[T].label == "T cell"
    assert cl["CL_0000084"].id == T
    assert cl.is_a("CL:0000625", T)  # CD8-positive, alpha-beta T cell
    assert not cl.is_a(T, "CL:0000625")
    assert cl.is_a(T, T)
    for bad in ("T cell", "CL:9999999"):
        with pytest.raises(InputError, match="no term of the Cell Ontology"):
            cl[bad]


def test_nearest_common_ancestors():
    cl = cell_ontology()
    assert cl.common_ancestor([T, B, NK]) == LYMPHOCYTE
    assert cl.common_ancestor([T]) == T
    assert cl.common_ancestor([T, LYMPHOCYTE]) == LYMPHOCYTE
    assert cl[cl.common_ancestor(["CL:0000624", "CL:0000625"])].label == "mature alpha-beta T cell"  # CD4, CD8
    assert cl.common_ancestor([]) is None


def toy():
    """a above b and c, both above d; e alone.  x is below both b and c, y too: two lowest common ancestors."""

    def term(name, **ancestors):
        return Term(f"CL:{name}", name, (), {f"CL:{k[1:]}": v for k, v in ancestors.items()}, False)

    root, b, c, e = "0000001", "0000002", "0000003", "0000009"
    return Ontology(
        {
            t.id: t
            for t in (
                term(root),
                term(b, _0000001=1),
                term(c, _0000001=1),
                term("0000004", _0000002=1, _0000003=1, _0000001=2),
                term("0000005", _0000002=3, _0000003=1, _0000001=2),
                term(e),
            )
        },
        "toy",
    )


def test_of_several_lowest_ancestors_the_nearest_is_taken():
    cl = toy()
    assert cl.common_ancestor(["CL:0000004", "CL:0000005"]) == "CL:0000003"  # 2 steps in all, not 4
    assert cl.distance("CL:0000004", "CL:0000005") == 2
    assert cl.distance("CL:0000004", "CL:0000009") == float("inf")
    assert cl.common_ancestor(["CL:0000004", "CL:0000009"]) is None


def test_distances_by_hand():
    cl = cell_ontology()
    assert cl.distance(T, T) == 0
    assert cl.distance(T, LYMPHOCYTE) == 1
    assert cl.distance(T, B) == 3  # T - lymphocyte - lymphocyte of B lineage - B
    assert cl.distance("CL:0000624", "CL:0000625") < cl.distance("CL:0000624", MONOCYTE)


@given(terms, terms)
def test_distance_is_symmetric_and_the_ancestor_is_common(a, b):
    cl = cell_ontology()
    assert cl.distance(a, b) == cl.distance(b, a)
    assert (cl.distance(a, b) == 0) == (a == b)
    ancestor = cl.common_ancestor([a, b])
    assert ancestor == cl.common_ancestor([b, a])
    if ancestor is not None:
        assert cl.is_a(a, ancestor)
        assert cl.is_a(b, ancestor)


@given(terms)
def test_every_label_finds_its_own_term_or_is_ambiguous(term):
    cl = cell_ontology()
    row = cl.harmonise([cl[term].label]).table.iloc[0]
    assert row["term"] == term or row["how"] == "ambiguous"


@pytest.mark.parametrize(
    ("label", "term"),
    [
        ("T cell", T),
        ("T cells", T),
        ("t-CELLS", T),
        ("T", T),
        ("T lymphocyte", T),
        ("NK", NK),
        ("natural killer cells", NK),
        ("Monocytes", MONOCYTE),
        ("platelet", PLATELET),
        ("CL:0000084", T),
        ("αβ T-cells", "CL:0000789"),
        ("CD14+ monocytes", "CL:0001054"),
        ("CD14-positive monocyte", "CL:0001054"),
        ("Tregs", "CL:0000815"),
        ("pDCs", "CL:0000784"),
    ],
)
def test_labels_as_people_write_them(label, term):
    found = cell_ontology().harmonise([label])
    assert found.terms == {label: term}
    assert found.unmatched == []


@pytest.mark.parametrize(
    "label", ["Naive CD4 T", "CD14+ Mono", "DC", "cluster 3", "unlabelled", "", "nan", "CL:9999999"]
)
def test_what_is_not_certain_is_not_guessed(label):
    found = cell_ontology().harmonise([label])
    assert found.terms == {}
    assert found.unmatched == [label]


def test_positive_and_negative_are_different():
    assert normalised("CD4+ T cell") != normalised("CD4- T cell")
    assert normalised("CD4-positive T cell") == normalised("CD4+ T cells")
    assert normalised("CD4-negative T cell") == normalised("CD4- T cells")


def test_deprecated_and_ambiguous_names_are_told():
    cl = cell_ontology()
    old = next(t for t in cl.terms.values() if t.deprecated)
    assert cl.harmonise([old.id]).table["how"].tolist() == ["deprecated"]
    twice = Ontology(
        {
            "CL:0000001": Term("CL:0000001", "alpha cell", ("A",), {}, False),
            "CL:0000002": Term("CL:0000002", "beta cell", ("a",), {}, False),
        },
        "toy",
    )
    row = twice.harmonise(["A"]).table.iloc[0]
    assert (row["term"], row["how"]) == (None, "ambiguous")
    assert "CL:0000001 alpha cell; CL:0000002 beta cell" in row["candidates"]


def test_given_terms_come_first_and_the_report_names_the_rest():
    cl = cell_ontology()
    found = cl.harmonise(["DC", "CD8 T", "T cells"], {"DC": "CL:0000451"})
    assert found.terms == {"DC": "CL:0000451", "T cells": T}
    text = str(found)
    assert "2 of 3 labels" in text
    assert "'DC' -> CL:0000451 dendritic cell (given)" in text
    assert "'CD8 T': unknown; near: CL:0000625 CD8-positive, alpha-beta T cell" in text
    with pytest.raises(InputError, match="which are no labels"):
        cl.harmonise(["DC"], {"DCs": "CL:0000451"})
    with pytest.raises(InputError, match="no term"):
        cl.harmonise(["DC"], {"DC": "dendritic cell"})
