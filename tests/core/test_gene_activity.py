import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scfm
from scfm.errors import InputError, SpeciesError
from scfm.gene_activity import Genes, activity_weights, gene_activity
from scfm.regions import Regions

GTF = """\
#!genome-build GRCh38.p14
1\thavana\tgene\t10001\t12000\t.\t+\t.\tgene_id "ENSG00000000001"; gene_version "5"; gene_name "PLUS"; gene_biotype "protein_coding";
1\thavana\ttranscript\t10001\t12000\t.\t+\t.\tgene_id "ENSG00000000001"; transcript_id "ENST1";
chr1\tHAVANA\tgene\t20001\t25000\t.\t-\t.\tgene_id "ENSG00000000002.7"; gene_type "lncRNA"; gene_name "MINUS; odd";
chr2\tHAVANA\tgene\t501\t900\t.\t.\t.\tgene_id ENSG00000000003.1
chrX\tHAVANA\tgene\t101\t200\t.\t+\t.\tgene_id "ENSG00000000004.9"; gene_name "PAR";
chrY\tHAVANA\tgene\t101\t200\t.\t+\t.\tgene_id "ENSG00000000004.9_PAR_Y"; gene_name "PAR";
"""
PEAKS = ["chr1:8500-9000", "chr1:12000-12400", "chr1-26000-26500", "chr1_40000_40500", "2:950-1000", "chr7:1-100"]


@pytest.fixture
def gtf(tmp_path: Path) -> Path:
    path = tmp_path / "genes.gtf"
    path.write_text(GTF)
    return path


def cells(names: list[str] = PEAKS, n: int = 5) -> AnnData:
    counts = np.random.default_rng(0).poisson(1.0, (n, len(names))).astype(np.float32)
    return AnnData(
        counts, var=pd.DataFrame(index=names), obs=pd.DataFrame({"t": range(n)}, index=[f"c{i}" for i in range(n)])
    )


@pytest.mark.parametrize("zipped", [False, True])
def test_gene_lines_of_both_spellings_are_read(gtf, zipped):
    if zipped:
        gtf.write_bytes(gzip.compress(GTF.encode()))  # told from the content, not from the name
    genes = Genes.read_gtf(gtf)
    assert genes.ids.tolist() == [f"ENSG0000000000{i}" for i in (1, 2, 3, 4)]
    assert genes.symbols.tolist() == ["PLUS", "MINUS; odd", "ENSG00000000003.1", "PAR"]
    assert genes.bodies.names.tolist() == ["chr1:10000-12000", "chr1:20000-25000", "chr2:500-900", "chrX:100-200"]
    assert (genes.strand.tolist(), genes.build) == (["+", "-", ".", "+"], "hg38")
    assert genes.with_promoters(2000).names.tolist() == [
        "chr1:8000-12000",
        "chr1:20000-27000",
        "chr2:500-900",
        "chrX:0-200",
    ]


def test_weights_of_peaks_by_hand(gtf):
    found = activity_weights(Regions.from_names(PEAKS), Genes.read_gtf(gtf), decay=1000, window=10_000).toarray()
    expected = np.zeros((6, 4))
    expected[0, 0] = 1  # in the promoter, which lies before a gene on the forward strand
    expected[1, 0] = np.exp(-1 / 1000)  # book-ended
    expected[1, 1] = np.exp(-7601 / 1000)  # up to 12,399, the gene from 20,000
    expected[2, 1] = 1  # behind the gene's end: the promoter on the reverse strand
    expected[4, 2] = np.exp(-51 / 1000)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_scores_equal_a_loop_over_peaks_and_genes(tmp_path):
    rng = np.random.default_rng(1)
    lines = []
    for i in range(40):
        start = rng.integers(1, 900_000)
        attributes = f'gene_id "G{i}"; gene_name "N{i}";'
        lines.append(
            f"chr{1 + i % 2}\tx\tgene\t{start}\t{start + rng.integers(1, 60_000)}\t.\t{'+-'[i % 3 > 0]}\t.\t{attributes}"
        )
    (tmp_path / "random.gtf").write_text("\n".join(lines))
    starts = rng.integers(0, 1_000_000, 80)
    names = [f"chr{1 + i % 3}:{s}-{s + 1 + rng.integers(0, 900)}" for i, s in enumerate(starts)]
    data = cells(names, 600)  # more than one block
    expected = np.zeros((600, 40))
    for g, line in enumerate(lines):
        chrom, _, _, first, last, _, strand, *_ = line.split("\t")
        body = set(range(int(first) - 1 - 2000 * (strand == "+"), int(last) + 2000 * (strand == "-")))
        low, high = min(body), max(body)
        for p, name in enumerate(names):
            where, _, span = name.partition(":")
            start, end = map(int, span.split("-"))
            if where == chrom:
                d = (
                    0
                    if any(x in body for x in (start, end - 1, *range(start, end)))
                    else max(low - (end - 1), start - high)
                )
                if d <= 100_000:
                    expected[:, g] += data.X[:, p] * np.exp(-d / 5000)
    found = gene_activity(data, tmp_path / "random.gtf")
    np.testing.assert_allclose(found.X.toarray(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.layers["counts"].toarray(), np.rint(found.X.toarray()))
    assert found.obs["t"].tolist() == data.obs["t"].tolist()
    assert found.var["symbol"].tolist() == [f"N{i}" for i in range(40)]
    data.write_h5ad(tmp_path / "data.h5ad")
    streamed = gene_activity(tmp_path / "data.h5ad", tmp_path / "random.gtf")
    np.testing.assert_array_equal(streamed.X.toarray(), found.X.toarray())


def test_without_window_it_is_the_sum_in_body_and_promoter(gtf):
    data = cells()
    found = gene_activity(data, gtf, window=0)
    np.testing.assert_array_equal(found.X.toarray()[:, 0], data.X[:, 0])
    assert found.var["peaks"].tolist() == [1, 1, 0, 0]
    assert found.uns["gene_activity"]["window"] == 0


def test_encoders_of_rna_read_the_scores(gtf):
    data = cells(n=40)
    scores = gene_activity(data, gtf)
    encoder = scfm.load("pca", device="cpu", components=2, top_genes=3)
    assert encoder.embed(scores, layer="counts", gene_column="symbol", empty_cells="embed").shape == (40, 2)


def test_genes_of_a_multiome_are_left_out(gtf):
    data = cells([*PEAKS, "TP53"])
    np.testing.assert_allclose(gene_activity(data, gtf).X.toarray(), gene_activity(data[:, :6].copy(), gtf).X.toarray())


def test_what_is_missing_or_wrong_is_named(gtf, tmp_path):
    data = cells()
    with pytest.raises(InputError, match=r"need the coordinates of genes, and the gene tables(.|\n)*genes='gencode"):
        gene_activity(data)
    with pytest.raises(InputError, match="6 of 6 features are not regions: 'A', 'B'"):
        gene_activity(cells(list("ABCDEF")), gtf)
    with pytest.raises(InputError, match=r"stated to be hg19; the annotation genes.gtf reads hg38"):
        gene_activity(data, gtf, build="hg19")
    with pytest.raises(SpeciesError, match=r"fit 'mm10' only; the annotation genes.gtf reads hg38"):
        gene_activity(
            cells(["chr19:60000000-60000100", "chr9:10-20", "chr4:156000000-156000010", "chrX:170000000-170000005"]),
            gtf,
        )
    (tmp_path / "exons.gtf").write_text('chr1\tx\texon\t1\t5\t.\t+\t.\tgene_id "A";\n')
    with pytest.raises(InputError, match=r"no line of type 'gene' \(types: 'exon'\)"):
        gene_activity(data, tmp_path / "exons.gtf")
    (tmp_path / "a.gff3").write_text("chr1\tx\tgene\t1\t5\t.\t+\t.\tID=gene:A;Name=B\n")
    with pytest.raises(InputError, match=r"line 1 of .*a.gff3 looks like GFF3"):
        gene_activity(data, tmp_path / "a.gff3")
    (tmp_path / "cut.gtf.gz").write_bytes(gzip.compress(GTF.encode() * 50)[:80])
    with pytest.raises(InputError, match="is truncated or damaged"):
        gene_activity(data, tmp_path / "cut.gtf.gz")
    with pytest.raises(InputError, match=r"window=-1; it must be 0 or more"):
        gene_activity(data, gtf, window=-1)
    with pytest.raises(InputError, match="No such file"):
        gene_activity(data, tmp_path / "none.gtf")
