from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfm.errors import CheckpointError, GeneMatchError, InputError, SpeciesError
from scfm.genes import Vocabulary, align, gene_rows

HUMAN = ("TP53", "GAPDH", "ACTB", "CD3E", "CD4", "CD8A", "MS4A1", "NKG7", "LYZ", "PPBP", "EPCAM", "PTPRC")
HUMAN_IDS = ("ENSG00000141510", "ENSG00000111640", "ENSG00000075624", "ENSG00000198851")
MOUSE = ("Trp53", "Gapdh", "Actb", "Cd3e", "Cd4", "Cd8a", "Ms4a1", "Nkg7", "Epcam", "Ptprc", "Gata1", "Sox2")


def vocabulary(genes=HUMAN, **settings) -> Vocabulary:
    settings = {"ids": "symbol", "special": {"pad": "<pad>", "cls": "<cls>"}} | settings
    return Vocabulary(("<pad>", *genes, "<cls>"), **settings)


def var(names, **columns) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(names, dtype=object))


# Vocabulary


def test_tokens_have_their_position_as_id():
    v = vocabulary()
    assert len(v) == 14
    assert v.lookup(["TP53", "PTPRC"]).tolist() == [1, 12]
    assert v.id("pad") == 0
    assert v.id("cls") == 13
    assert "CD3E" in v
    assert "CD3Z" not in v
    assert v.genes.tolist() == list(range(1, 13))


def test_special_tokens_match_no_feature():
    assert vocabulary().lookup(["<pad>", "<cls>", "LYZ"]).tolist() == [-1, -1, 9]


def test_case_is_folded_only_where_the_authors_do():
    assert vocabulary().lookup(["tp53"]).tolist() == [-1]
    assert vocabulary(fold_case=True).lookup(["tp53", "Tp53"]).tolist() == [1, 1]
    assert vocabulary(fold_case=True).id("cls") == 13


def test_aliases_lead_to_their_token():
    v = vocabulary(aliases={"P53": "TP53", "GONE": "NOT THERE"})
    assert v.lookup(["P53", "GONE", "TP53"]).tolist() == [1, -1, 1]


def test_repeated_tokens_are_refused():
    with pytest.raises(CheckpointError, match="repeats 1 of its 15 tokens"):
        vocabulary((*HUMAN, "TP53")).lookup(["TP53"])


@given(st.lists(st.text(min_size=1), unique=True), st.lists(st.text()))
def test_lookup_is_the_inverse_of_the_tokens(genes, others):
    genes = [gene for gene in genes if gene not in ("<pad>", "<cls>")]
    v = vocabulary(genes)
    assert [v.tokens[i] for i in v.lookup(genes)] == genes
    assert [i >= 0 for i in v.lookup(others)] == [name in genes for name in others]


def test_saved_vocabulary_is_the_same_to_the_last_digit(tmp_path):
    medians = np.array([np.nan, *np.random.default_rng(0).lognormal(size=12), np.nan])
    before = vocabulary(aliases={"P53": "TP53"}, species=("human", "mouse"), columns={"median": medians})
    before.save(tmp_path / "vocabulary.json")
    after = Vocabulary.load(tmp_path / "vocabulary.json")
    for f in fields(Vocabulary):
        if f.name != "columns":
            assert getattr(after, f.name) == getattr(before, f.name), f.name
    np.testing.assert_array_equal(after.columns["median"], medians)
    assert after.columns["median"].dtype == before.columns["median"].dtype


def test_numbers_have_one_type_before_and_after_saving(tmp_path):
    before = vocabulary(columns={"median": np.ones(14, np.float32) / 3})
    before.save(tmp_path / "vocabulary.json")
    after = Vocabulary.load(tmp_path / "vocabulary.json").columns["median"]
    assert (after == before.columns["median"]).all()
    assert after.dtype == before.columns["median"].dtype


def test_ids_of_an_index_must_be_contiguous():
    assert Vocabulary.from_index({"b": 1, "a": 0}, ids="symbol").tokens == ("a", "b")
    with pytest.raises(CheckpointError, match=r"2 ids are not 0\.\.1"):
        Vocabulary.from_index({"a": 0, "b": 2}, ids="symbol")


# Alignment


def test_features_become_tokens_and_the_report_counts_them():
    names = ["LYZ", "unknown", "TP53", "TP53"]
    found = align(var(names), vocabulary(), model="toy", totals=np.array([5.0, 1.0, 2.0, 2.0]))
    assert found.tokens.tolist() == [9, -1, 1, 1]
    assert list(found.names) == names
    report = found.report
    assert (report.features, report.matched, report.duplicates) == (4, 3, 1)
    assert report.counts_matched == pytest.approx(0.9)
    assert report.unmatched == ("unknown",)
    assert "3 of 4 features match" in str(report)
    assert "90.0% of the counts" in str(report)


@given(st.permutations([*HUMAN, "x", "y"]))
def test_alignment_follows_the_features_in_any_order(names):
    v = vocabulary()
    tokens = align(var(names), v, model="toy").tokens
    assert [None if t < 0 else v.tokens[t] for t in tokens] == [n if n in HUMAN else None for n in names]


def test_highly_variable_genes_are_counted():
    frame = var(["LYZ", "unknown", "TP53"], highly_variable=[True, True, False])
    assert align(frame, vocabulary(), model="toy").report.hvg_matched == (1, 2)


def test_gene_column_is_read():
    frame = var(["a", "b"], symbol=pd.Categorical(["LYZ", "TP53"]))
    assert align(frame, vocabulary(), model="toy", gene_column="symbol").tokens.tolist() == [9, 1]
    with pytest.raises(InputError, match=r"'smybol' is not in adata\.var \(columns: 'symbol'\)"):
        align(frame, vocabulary(), model="toy", gene_column="smybol")


def test_poor_match_names_the_better_column():
    frame = var(["a", "b", "c"], n_cells=[1, 2, 3], symbol=["LYZ", "TP53", "c"])
    with pytest.raises(GeneMatchError, match=r"0 of 3 features match toy's symbol.*\n.*gene_column='symbol'"):
        align(frame, vocabulary(), model="toy")


def test_poor_match_of_the_other_kind_offers_the_tables():
    with pytest.raises(GeneMatchError, match=r"look like ensembl ids.*\n.*map_genes=True"):
        align(var(HUMAN_IDS), vocabulary(), model="toy")


def test_tables_map_identifiers_on_request():
    found = align(var([*HUMAN_IDS[:3], "ENSG00000198851.12"]), vocabulary(), model="toy", map_genes=True)
    assert found.tokens.tolist() == [1, 2, 3, 4]
    assert found.report.mapped
    ensembl = vocabulary(HUMAN_IDS, ids="ensembl")
    assert align(var(HUMAN[:4]), ensembl, model="toy", map_genes=True).tokens.tolist() == [1, 2, 3, 4]


def test_match_is_weighed_by_counts():
    frame, v = var(["LYZ", "a", "b", "c"]), vocabulary()
    assert align(frame, v, model="toy", totals=np.array([9.0, 1, 1, 1])).report.matched == 1
    with pytest.raises(GeneMatchError, match=r"1 of 4 features with 10\.0% of the counts"):
        align(frame, v, model="toy", totals=np.array([1.0, 3, 3, 3]))


def test_other_species_are_refused():
    with pytest.raises(SpeciesError, match=r"look like mouse genes.*toy knows 'human'.*\n.*to_orthologs"):
        align(var(MOUSE), vocabulary(), model="toy")
    assert (align(var(MOUSE), vocabulary(MOUSE, species=("mouse",)), model="toy").tokens > 0).all()


def test_orthologs_are_offered_where_they_help():
    with pytest.raises(
        SpeciesError, match=r"to_orthologs\(adata, source='mouse', target='human'\)\. Then pass map_genes"
    ):
        align(var(MOUSE), vocabulary(HUMAN_IDS, ids="ensembl"), model="m")
    with pytest.raises(GeneMatchError, match=r"to_orthologs\(adata, source='mouse', target='human'\)\.$"):
        align(var(MOUSE), vocabulary(species=("any",)), model="m")


def test_a_vocabulary_prints_short():
    assert len(repr(vocabulary([f"G{i}" for i in range(1000)]))) < 200


def test_any_species_fits_a_vocabulary_fitted_on_the_data():
    assert (align(var(MOUSE), vocabulary(MOUSE, species=("any",)), model="toy").tokens > 0).all()


# Chosen genes


def test_rows_of_chosen_genes():
    v = vocabulary()
    assert gene_rows(v, None).tolist() == v.genes.tolist()
    assert gene_rows(v, ["LYZ", "TP53"]).tolist() == [9, 1]
    assert gene_rows(v, []).tolist() == []
    with pytest.raises(GeneMatchError, match=r"1 of 2 genes are unknown to the model: 'CD3Z'"):
        gene_rows(v, ["TP53", "CD3Z"])
