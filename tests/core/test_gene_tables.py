import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scfm.errors import GeneMatchError, InputError, SpeciesError
from scfm.gene_tables import (
    gene_table,
    id_kind,
    species_of,
    strip_version,
    to_ensembl,
    to_symbols,
)
from scfm.orthologs import to_orthologs

HUMAN = ["TP53", "GAPDH", "ACTB", "CD3E", "CD4", "CD8A", "MS4A1", "NKG7", "LYZ", "PPBP", "EPCAM", "PTPRC"]
MOUSE = ["Trp53", "Gapdh", "Actb", "Cd3e", "Cd4", "Cd8a", "Ms4a1", "Nkg7", "Epcam", "Ptprc", "Gata1", "Sox2"]
SPECIES_TABLES = {species: gene_table(species) for species in ("human", "mouse")}


def cells_with(genes, counts=None, **slots):
    """Two cells; by default gene i has i + 1 counts in the first cell and none in the second."""
    first = np.arange(1, len(genes) + 1) if counts is None else np.asarray(counts)
    x = np.stack([first, np.zeros_like(first)]).astype(np.float32)
    return AnnData(sparse.csr_matrix(x), var=pd.DataFrame(index=pd.Index(genes, dtype=object)), **slots)


def counts_of(mapped):
    return dict(zip(mapped.var_names, np.asarray(mapped[0].X.todense()).ravel().tolist(), strict=True))


# gene_table


@pytest.mark.parametrize(("species", "prefix", "rows"), [("human", "ENSG", 78_894), ("mouse", "ENSMUSG", 78_317)])
def test_gene_table_has_one_row_per_ensembl_id(species, prefix, rows):
    table = gene_table(species)
    assert len(table) == rows
    assert table.index.name == "ensembl_id"
    assert list(table) == ["symbol", "biotype"]
    assert table.index.is_unique
    assert table.index.is_monotonic_increasing
    assert table.index.str.fullmatch(prefix + r"\d{11}").all()
    assert not table.isin([""]).any(axis=None)
    assert not table.isna().any(axis=None)


def test_gene_table_knows_textbook_genes():
    assert gene_table("human").loc["ENSG00000141510"].tolist() == ["TP53", "protein_coding"]
    assert gene_table("mouse").loc["ENSMUSG00000059552"].tolist() == ["Trp53", "protein_coding"]


def test_changing_a_gene_table_changes_no_other():
    table = gene_table("human")
    table["symbol"] = "broken"
    assert gene_table("human").loc["ENSG00000141510", "symbol"] == "TP53"
    assert to_symbols(["ENSG00000141510"])[0] == "TP53"


@pytest.mark.parametrize("call", [gene_table, lambda s: to_ensembl([], s), lambda s: to_symbols([], s)])
def test_unknown_species_names_those_there_are(call):
    with pytest.raises(InputError, match=r"'rat'.*\n.*'human', 'mouse'"):
        call("rat")


# strip_version


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("ENSG00000141510.12", "ENSG00000141510"),
        ("ENSMUSG00000059552.14", "ENSMUSG00000059552"),
        ("ENSG00000141510", "ENSG00000141510"),
        ("ENSG00000182378.15_PAR_Y", "ENSG00000182378_PAR_Y"),
        ("ENSG00000182378_PAR_Y", "ENSG00000182378_PAR_Y"),
        ("RP11-34P13.7", "RP11-34P13.7"),
        ("AC012345.1", "AC012345.1"),
        ("Tex19.2", "Tex19.2"),
        ("ENSG00000141510.12.3", "ENSG00000141510.12.3"),
        ("ENST00000269305.9", "ENST00000269305.9"),
        ("", ""),
        (None, None),
    ],
)
def test_strip_version(given_name, expected):
    stripped = strip_version([given_name])
    assert stripped.dtype == object
    assert stripped.tolist() == [expected]


@given(st.integers(0, 10**11 - 1), st.integers(0, 99), st.sampled_from(["", "MUS", "RNO", "DAR"]))
def test_strip_version_undoes_any_version(number, version, species):
    ensembl_id = f"ENS{species}G{number:011d}"
    assert strip_version([f"{ensembl_id}.{version}"]).tolist() == [ensembl_id]


@given(st.lists(st.text(max_size=25)))
def test_strip_version_twice_is_once_and_keeps_length(names):
    once = strip_version(names)
    assert once.shape == (len(names),)
    assert strip_version(once).tolist() == once.tolist()


def test_pseudoautosomal_copies_stay_distinct():
    assert len(set(strip_version(["ENSG00000182378.15", "ENSG00000182378.15_PAR_Y"]))) == 2


@pytest.mark.parametrize("call", [strip_version, id_kind, species_of, to_ensembl, to_symbols])
def test_one_name_instead_of_a_list_is_an_error(call):
    with pytest.raises(InputError, match=r"is one name.*\n.*\['TP53'\]"):
        call("TP53")


@pytest.mark.parametrize("container", [list, tuple, np.array, pd.Index, pd.Series, pd.Categorical, iter])
def test_names_come_in_any_container(container):
    assert to_ensembl(container(["TP53", "GAPDH"])).tolist() == ["ENSG00000141510", "ENSG00000111640"]


# id_kind


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["ENSG00000141510.12", "ENSG00000182378.15_PAR_Y"], "ensembl"),
        (["ENSDARG00000035559"], "ensembl"),
        (HUMAN, "symbol"),
        (MOUSE, "symbol"),
        (["RP11-34P13.7", "AC012345.1", "AL627309.1"], "symbol"),
        ([*HUMAN, "ENSG00000141510"], "symbol"),
        (["ENSG00000141510", "ENSG00000111640", "TP53"], "ensembl"),
        (["ENSG00000141510", "TP53"], "unknown"),
        ([f"gene_{i}" for i in range(50)], "unknown"),
        (["chr1:100-600", "chr2:5-505"], "unknown"),
        (["ENST00000269305.9", "NM_000546.6"], "unknown"),
        ([7157, 2597], "unknown"),
        ([None, float("nan")], "unknown"),
        ([], "unknown"),
    ],
)
def test_id_kind(names, kind):
    assert id_kind(names) == kind


def test_id_kind_looks_at_the_whole_list():
    assert id_kind(["gene_1"] * 1_000 + SPECIES_TABLES["human"].index[:30_000].tolist()) == "ensembl"


# species_of


@pytest.mark.parametrize(
    ("names", "species"),
    [
        ([f"ENSG{i:011d}.3" for i in range(20)], "human"),
        ([f"ENSMUSG{i:011d}" for i in range(20)], "mouse"),
        ([f"ENSRNOG{i:011d}" for i in range(20)], "rat"),
        ([f"ENSDARG{i:011d}" for i in range(20)], "zebrafish"),
        ([f"AT1G{i:05d}" for i in range(20)], "arabidopsis"),
        ([f"ENSXYZG{i:011d}" for i in range(20)], "ENSXYZG"),
        (HUMAN, "human"),
        (MOUSE, "mouse"),
        (HUMAN[:5] + [f"ENSG{i:011d}" for i in range(5)], "human"),
        (HUMAN[:9], None),
        (HUMAN + MOUSE, None),
        ([f"ENSG{i:011d}" for i in range(20)] + [f"ENSMUSG{i:011d}" for i in range(20)], None),
        (HUMAN + [f"gene_{i}" for i in range(1000)], None),
        ([f"gene_{i}" for i in range(20)], None),
        (["C3", "F5", "F10", "C9", "F7", "C7", "C6", "F2", "F3", "F8", "F9", "H19"], None),
        ([None, 1.5] * 10, None),
        ([], None),
    ],
)
def test_species_of(names, species):
    assert species_of(names).name == species


def test_species_evidence_counts_the_votes():
    species = species_of([*MOUSE, "GFP_transgene", "TP53"])
    assert species.votes == {"mouse": 12, "human": 1}
    assert species.share == pytest.approx(12 / 13)
    assert species.evidence == "13 of 14 names tell: mouse 12, human 1"
    assert species_of(["x"]).evidence == "0 of 1 names tell: none known"


@given(st.permutations(HUMAN + MOUSE[:1]))
def test_species_does_not_depend_on_order(names):
    assert species_of(names) == species_of(HUMAN + MOUSE[:1])


# to_ensembl, to_symbols


def test_symbols_are_case_sensitive_and_unmatched_are_none():
    assert to_ensembl(["TP53", "Trp53", "tp53", "nonsense", "", None, 3]).tolist() == ["ENSG00000141510"] + 6 * [None]
    assert to_ensembl(["Trp53", "TP53"], "mouse").tolist() == ["ENSMUSG00000059552", None]


def test_results_are_object_arrays_even_when_empty():
    for result in (to_ensembl([]), to_symbols([]), strip_version([])):
        assert result.dtype == object
        assert result.shape == (0,)


def test_ensembl_ids_among_symbols_stay():
    assert to_ensembl(["ENSG00000141510.12", "ENSG99999999999"]).tolist() == ["ENSG00000141510", None]


@pytest.mark.parametrize(
    ("symbol", "species", "ensembl_id"),
    [
        ("CD99", "human", "ENSG00000002586"),  # X copy, not ENSG00000292348 on Y
        ("HERC3", "human", "ENSG00000138641"),  # not the newer readthrough
        ("Ddit3", "mouse", "ENSMUSG00000025408"),  # not the upstream reading frame
    ],
)
def test_shared_symbol_stands_for_the_established_gene(symbol, species, ensembl_id):
    assert to_ensembl([symbol], species).tolist() == [ensembl_id]


@pytest.mark.parametrize("species", ["human", "mouse"])
def test_shared_symbol_policy_holds_for_the_whole_table(species):
    table = SPECIES_TABLES[species]
    shared = table[table["symbol"].duplicated(keep=False)]
    for symbol, rows in shared.groupby("symbol"):
        coding = rows[rows["biotype"] == "protein_coding"]
        assert to_ensembl([symbol], species)[0] == min((coding if len(coding) else rows).index)


@given(st.data(), st.sampled_from(["human", "mouse"]), st.sampled_from(["", ".7"]))
def test_symbol_survives_the_round_trip(data, species, version):
    table = SPECIES_TABLES[species]
    row = data.draw(st.integers(0, len(table) - 1))
    (symbol,) = to_symbols([table.index[row] + version], species)
    assert symbol == table["symbol"].iloc[row]
    assert to_symbols(to_ensembl([symbol], species), species).tolist() == [symbol]


def test_the_unnamed_carry_their_id_and_other_species_are_unmatched():
    table = SPECIES_TABLES["human"]
    unnamed = table.index[table.index == table["symbol"]][0]
    assert to_symbols([unnamed, "ENSMUSG00000059552", "TP53", None]).tolist() == [unnamed, None, None, None]


# to_orthologs


@pytest.mark.parametrize(
    ("mouse", "human"),
    [
        ("Gapdh", "GAPDH"),  # the origin adds the withdrawn Gm3839 and Gm10358
        ("S100a9", "S100A9"),  # the origin has Gm5849 instead
        ("Rpl29", "RPL29"),
        ("Rplp0", "RPLP0"),  # not in the origin
        ("Malat1", "MALAT1"),
        ("Ccl5", "CCL5"),
        ("Trp53", "TP53"),
        ("Ptprc", "PTPRC"),
        ("Atp5f1a", "ATP5F1A"),  # the origin has the outdated Atp5a1
    ],
)
def test_textbook_pairs_are_one2one(mouse, human):
    assert to_orthologs(cells_with([mouse])).var_names.tolist() == [human]
    assert to_orthologs(cells_with([human]), source="human", target="mouse").var_names.tolist() == [mouse]


def test_one2one_orthologs_keep_counts_order_and_the_rest_of_the_cells():
    cells = cells_with(
        ["Cd3e", "Trp53", "nonsense", "Actb"],
        obs=pd.DataFrame({"cell_type": ["a", "b"]}, index=["cell1", "cell2"]),
        obsm={"X_pca": np.ones((2, 3))},
        layers={"spliced": np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.uint8)},
        uns={"title": "t"},
    )
    mapped = to_orthologs(cells)
    assert counts_of(mapped) == {"CD3E": 1, "TP53": 2, "ACTB": 4}
    assert mapped.var["source_gene"].tolist() == ["Cd3e", "Trp53", "Actb"]
    assert mapped.layers["spliced"].tolist() == [[1, 2, 4], [5, 6, 8]]
    assert mapped.obs.equals(cells.obs)
    assert mapped.obsm["X_pca"].tolist() == cells.obsm["X_pca"].tolist()
    assert mapped.uns["title"] == "t"
    assert mapped.uns["scfm_orthologs"] == {
        "source": "mouse",
        "target": "human",
        "policy": "one2one",
        "n_genes": 4,
        "n_mapped": 3,
        "n_dropped": 1,
        "n_targets": 3,
        "share_of_counts": pytest.approx(0.7),
    }


def test_orthologs_leave_the_input_alone():
    cells = cells_with(MOUSE, uns={"nested": {"k": [1]}}, obsm={"X_pca": np.ones((2, 3))})
    before = cells.copy()
    mapped = to_orthologs(cells, policy="sum")
    mapped.X.data[:] = 99
    mapped.obsm["X_pca"][:] = 99
    mapped.uns["nested"]["k"].append(2)
    assert (cells.X != before.X).nnz == 0
    assert (cells.obsm["X_pca"] == 1).all()
    assert cells.var.equals(before.var)
    assert cells.uns == before.uns == {"nested": {"k": [1]}}


def test_many_source_genes_with_one_target_follow_the_policy():
    # the table pairs CXCR2 with Cxcr2 and Cxcr1, and CXCR1 with none
    cells = cells_with(["Cxcr1", "Cxcr2", "Cd3e"], [1, 10, 100])
    assert counts_of(to_orthologs(cells, policy="one2one")) == {"CD3E": 100}
    assert counts_of(to_orthologs(cells, policy="first")) == {"CXCR2": 10, "CD3E": 100}
    summed = to_orthologs(cells, policy="sum")
    assert counts_of(summed) == {"CXCR2": 11, "CD3E": 100}
    assert summed.var["source_gene"].tolist() == ["Cxcr1;Cxcr2", "Cd3e"]
    assert summed.uns["scfm_orthologs"]["n_mapped"] == 3
    assert summed.uns["scfm_orthologs"]["n_targets"] == 2


def test_one_source_gene_with_many_targets_is_never_duplicated():
    cells = cells_with(["Bex2", "Cd3e"])  # Bex2 is paired with BEX1, then BEX2: the namesake is first
    for policy in ("first", "sum"):
        assert counts_of(to_orthologs(cells, policy=policy)) == {"BEX2": 1, "CD3E": 2}
    assert counts_of(to_orthologs(cells, policy="one2one")) == {"CD3E": 2}


def test_outdated_mouse_symbols_are_mapped_as_the_current_ones():
    assert counts_of(to_orthologs(cells_with(["Atp5a1", "Actb"]))) == {"ATP5F1A": 1, "ACTB": 2}


@pytest.mark.parametrize("version", ["", ".14"])
@pytest.mark.parametrize("in_column", [True, False])
def test_orthologs_of_ensembl_ids(version, in_column):
    ids = [f"{i}{version}" for i in to_ensembl(["Trp53", "Cd3e"], "mouse")]
    cells = cells_with(["a", "b"] if in_column else ids)
    if in_column:
        cells.var["gene_id"] = pd.Categorical(ids)
    mapped = to_orthologs(cells, gene_column="gene_id" if in_column else None)
    assert counts_of(mapped) == {"TP53": 1, "CD3E": 2}
    assert mapped.var["source_gene"].tolist() == ids


def test_columns_of_one_symbol_are_summed_or_the_established_gene_is_kept():
    cells = cells_with(["ENSMUSG00000116429", "ENSMUSG00000025408"], [1, 10])  # both Ddit3, the first only a uORF
    assert counts_of(to_orthologs(cells, policy="sum")) == {"DDIT3": 11}
    kept = to_orthologs(cells)
    assert counts_of(kept) == {"DDIT3": 10}
    assert kept.var["source_gene"].tolist() == ["ENSMUSG00000025408"]


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array, np.asarray])
@pytest.mark.parametrize("policy", ["one2one", "first", "sum"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64])
def test_matrix_type_stays(make, policy, dtype):
    x = make(np.array([[200, 100, 7], [0, 0, 1]], dtype=dtype))
    mapped = to_orthologs(AnnData(x, var=pd.DataFrame(index=["Cxcr1", "Cxcr2", "Cd3e"])), policy=policy)
    assert type(mapped.X) is type(x)
    assert mapped.X.dtype == (dtype if np.dtype(dtype).kind == "f" else np.int64)
    expected = {"one2one": [7], "first": [100, 7], "sum": [300, 7]}[policy]  # 300 does not fit uint8
    dense = mapped.X.toarray() if sparse.issparse(mapped.X) else mapped.X
    assert dense[0].tolist() == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 78_316), min_size=15, max_size=60, unique=True), st.sampled_from(["first", "sum"]))
def test_mapped_counts_are_those_of_the_genes_that_have_an_ortholog(rows, policy):
    names = [*SPECIES_TABLES["mouse"].index[rows], "ENSMUSG00000059552"]
    names = list(dict.fromkeys(names))
    counts = np.arange(1, len(names) + 1)
    mapped = to_orthologs(cells_with(names, counts), policy=policy)
    sources = [name.split(";") for name in mapped.var["source_gene"]]
    given_counts = dict(zip(names, counts, strict=True))
    assert counts_of(mapped) == {
        t: sum(given_counts[s] for s in ss) for t, ss in zip(mapped.var_names, sources, strict=True)
    }
    used = [name for group in sources for name in group]
    assert len(used) == len(set(used)) == mapped.uns["scfm_orthologs"]["n_mapped"]
    assert mapped.uns["scfm_orthologs"]["share_of_counts"] == pytest.approx(
        sum(given_counts[s] for s in used) / counts.sum()
    )
    assert mapped.var_names.is_unique


def test_one2one_there_and_back_is_the_identity():
    there = to_orthologs(cells_with(MOUSE))
    back = to_orthologs(there, source="human", target="mouse")
    assert counts_of(back) == {gene: i + 1 for i, gene in enumerate(MOUSE) if gene in set(there.var["source_gene"])}
    assert back.n_vars == there.n_vars


def test_normalised_values_pass_one2one_but_not_sum():
    cells = cells_with(["Cd3e", "Trp53"], [0.5, -1.5])
    assert counts_of(to_orthologs(cells)) == {"CD3E": 0.5, "TP53": -1.5}
    with pytest.raises(InputError, match=r'X holds values that are not counts.*\n.*policy="one2one"'):
        to_orthologs(cells, policy="sum")


def test_sum_refuses_a_normalised_layer():
    cells = cells_with(["Cd3e", "Trp53"], layers={"lognorm": np.full((2, 2), 0.5)})
    with pytest.raises(InputError, match=r"layers\['lognorm'\]"):
        to_orthologs(cells, policy="sum")


def test_cells_without_counts_have_no_share():
    assert np.isnan(to_orthologs(cells_with(["Cd3e"], [0])).uns["scfm_orthologs"]["share_of_counts"])


def test_report_and_genes_can_be_written(tmp_path):
    to_orthologs(cells_with(MOUSE)).write_h5ad(tmp_path / "mapped.h5ad")


def test_a_view_can_be_mapped():
    cells = cells_with(MOUSE)
    assert counts_of(to_orthologs(cells[:, ["Cd3e", "Actb"]])) == {"CD3E": 4, "ACTB": 3}


def test_data_of_the_other_species_are_refused():
    with pytest.raises(SpeciesError, match=r'look like human.*\n.*source="human", target="mouse"'):
        to_orthologs(cells_with(HUMAN))
    with pytest.raises(SpeciesError, match="look like zebrafish"):
        to_orthologs(cells_with([f"ENSDARG{i:011d}" for i in range(20)]))


def test_nothing_mapped_is_an_error_that_names_the_columns():
    cells = cells_with(["0", "1"])
    cells.var["symbol"] = ["Cd3e", "Actb"]
    with pytest.raises(GeneMatchError, match=r"none of 2 genes.*'0', '1'.*\n.*gene_column=.*'symbol'"):
        to_orthologs(cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "rat"}, "'rat'"),
        ({"target": "mouse"}, "both 'mouse'"),
        ({"policy": "all"}, "policy='all'"),
        ({"gene_column": "symbol"}, "no column 'symbol'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        to_orthologs(cells_with(MOUSE), **arguments)


def test_missing_matrix_and_backed_files_are_named(tmp_path):
    from anndata import read_h5ad

    with pytest.raises(InputError, match=r"adata\.X is None"):
        to_orthologs(AnnData(var=pd.DataFrame(index=MOUSE), obs=pd.DataFrame(index=["c"])))
    cells_with(MOUSE).write_h5ad(tmp_path / "cells.h5ad")
    backed = read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(InputError, match=r"backed.*\n.*to_memory"):
        to_orthologs(backed)
    backed.file.close()
