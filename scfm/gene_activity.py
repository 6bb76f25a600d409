"""Gene scores from peaks: open chromatin around a gene as a stand-in for its expression, so that RNA encoders can be tried on ATAC.

    score(cell, gene) = sum over peaks p of count(cell, p) * w(p, gene)
    w = exp(-d / decay) where d <= window, else 0

d is the distance in base pairs from the peak to the gene's body with its promoter (`upstream` bp before the start of transcription); 0
where they overlap. The decay is that of ArchR's gene score (Granja et al. 2021, doi:10.1038/s41588-021-00790-6: exp(-d / 5000), 100 kb),
without its constant term, its boundaries at neighbouring genes and its weight by gene length. With ``window=0`` the score is the sum of
the counts in body and promoter, as in Signac's GeneActivity (Stuart et al. 2021, doi:10.1038/s41592-021-01282-5), from peaks instead of
fragments.
"""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scfm.cells import Source, check_values
from scfm.errors import InputError, listing
from scfm.files import is_gzip
from scfm.genes import feature_names, strip_version
from scfm.regions import BUILDS, RegionIndex, Regions, build_in, possible_builds, require_build, with_prefix

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Genes", "activity_weights", "gene_activity", "require_same_build"]

_ATTRIBUTE = re.compile(r'(\w+)\s+(?:"([^"]*)"|([^";\s]+))')


@dataclass(frozen=True)
class Genes:
    """Genes of an annotation, in its order.

    Parameters
    ----------
    ids
        (n,) object; Ensembl versions are stripped.
    symbols
        (n,) object; the id where the annotation has no name.
    bodies
        Where they are, n regions.
    strand
        (n,) object: "+", "-" or "." (not known).
    source
        Name of the file.
    build
        Genome build that its header states, e.g. "hg38"; None where it states none.
    """

    ids: np.ndarray
    symbols: np.ndarray
    bodies: Regions
    strand: np.ndarray
    source: str
    build: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def read_gtf(cls, path: str | PathLike[str]) -> Genes:
        """The lines of type "gene" of a GTF file, plain or gzipped; of equal ids, and in chrY's copies of chrX, the first counts.

        Raises
        ------
        InputError
            The file is cut, is no GTF, or has no gene lines.
        """
        path, build = Path(path), None
        found: dict[str, tuple[str, str, int, int, str]] = {}
        kinds: set[str] = set()
        try:
            with (gzip.open if is_gzip(path) else open)(path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.startswith("#"):
                        build = build or build_in(line)
                    elif line.strip():
                        fields = line.rstrip("\n").split("\t", 8)
                        kinds.add(fields[2] if len(fields) > 2 else "")
                        if len(fields) < 9 or fields[2] == "gene":
                            gene, row = _gene(fields, path, number)
                            if not gene.endswith("_PAR_Y"):
                                found.setdefault(gene, row)
        except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
            raise InputError(f"{path} is truncated or damaged: {error}", "Copy or download it again.") from error
        if not found:
            raise InputError(
                f"{path} has no line of type 'gene' (types: {listing(sorted(kinds)) or 'none'}).",
                "Use a GTF with gene lines, such as those of GENCODE or Ensembl.",
            )
        symbols, chrom, start, end, strand = zip(*found.values(), strict=True)
        prefixed = [with_prefix(name) for name in chrom]
        bodies = Regions(np.array(prefixed, dtype=object), np.array(start, np.int64), np.array(end, np.int64))
        ids = np.array(strip_version(list(found)), dtype=object)
        return cls(
            ids, np.array(symbols, dtype=object), bodies, np.array(strand, dtype=object), source=path.name, build=build
        )

    def with_promoters(self, upstream: int) -> Regions:
        """Bodies and `upstream` base pairs before the start of transcription; those of unknown strand as they are."""
        start = self.bodies.start - upstream * (self.strand == "+")
        return Regions(self.bodies.chrom, np.maximum(start, 0), self.bodies.end + upstream * (self.strand == "-"))


def _gene(fields: list[str], path: Path, number: int) -> tuple[str, tuple[str, str, int, int, str]]:
    """Id, and (symbol, chromosome, start, end, strand) of a gene line; GTF counts from 1 and includes the end."""
    attributes = (
        {key: quoted or bare for key, quoted, bare in _ATTRIBUTE.findall(fields[8])} if len(fields) == 9 else {}
    )
    if "gene_id" not in attributes or not (fields[3].isdigit() and fields[4].isdigit()):
        what = "looks like GFF3" if "ID=" in fields[-1] else "is no GTF line with a gene_id"
        raise InputError(
            f"line {number:,} of {path} {what}: {chr(9).join(fields)[:80]!r}.",
            'Use a GTF: nine fields by tabs, the last with gene_id "..."; gene_name "...".',
        )
    gene = attributes["gene_id"]
    symbol = attributes.get("gene_name") or attributes.get("gene") or gene
    return gene, (symbol, fields[0], int(fields[3]) - 1, int(fields[4]), fields[6])


def activity_weights(
    peaks: Regions, genes: Genes, *, upstream: int = 2000, decay: float = 5000.0, window: int = 100_000
) -> sparse.csr_matrix:
    """Weights of peaks in genes (n_peaks, n_genes) float64 CSR; the arguments are those of `gene_activity`."""
    reach = genes.with_promoters(upstream)
    wide = Regions(reach.chrom, reach.start - window, reach.end + window)
    peak, gene = RegionIndex(wide).query(peaks.chrom, peaks.start, peaks.end)
    before, behind = reach.start[gene] - peaks.end[peak] + 1, peaks.start[peak] - reach.end[gene] + 1
    distance = np.maximum(np.maximum(before, behind), 0)
    return sparse.csr_matrix((np.exp(-distance / decay), (peak, gene)), shape=(len(peaks), len(genes)))


def gene_activity(
    data: AnnData | str | PathLike[str],
    genes: Genes | str | PathLike[str] | None = None,
    *,
    layer: str | None = None,
    region_column: str | None = None,
    build: str | None = None,
    upstream: int = 2000,
    decay: float = 5000.0,
    window: int = 100_000,
) -> AnnData:
    """Gene scores of cells from their peaks.

    Parameters
    ----------
    data
        Cells x peaks (counts or 0/1), an AnnData or the path of an `.h5ad` or `.zarr`, which is read in blocks. Features that are no
        regions, such as the genes of a multiome, are left out.
    genes
        A GTF file of the peaks' genome build, e.g. GENCODE's ``gencode.v44.annotation.gtf.gz``, or what `Genes.read_gtf` made of one.
    layer
        Matrix to read; None is `X`.
    region_column
        Column of `var` with the regions; None reads `var_names`.
    build
        Build of the peaks, e.g. "hg38"; None looks at the lengths of the chromosomes alone.
    upstream
        Length of the promoter, base pairs.
    decay
        Distance at which a peak's weight has fallen to 1/e, base pairs.
    window
        Farthest peaks that count, base pairs from body and promoter.

    Returns
    -------
    AnnData
        (n_cells, n_genes) float32 CSR: `X` the scores, `layers["counts"]` the same rounded to whole numbers, for encoders that read
        counts; `obs` of the data; `var_names` gene ids, `var["symbol"]`, `var["peaks"]` (how many count); `uns["gene_activity"]` the
        settings.

    Raises
    ------
    InputError
        No annotation is given, its build is not the peaks', or the features are no regions.
    """
    if genes is None:
        raise InputError(
            "gene scores need the coordinates of genes, and the gene tables that ship with scfm have none.",
            "Pass a GTF of the peaks' genome build, e.g. genes='gencode.v44.annotation.gtf.gz' from gencodegenes.org.",
        )
    for name, value in (("upstream", upstream), ("window", window)):
        if value < 0:
            raise InputError(f"{name}={value}; it must be 0 or more base pairs.")
    if not decay > 0:
        raise InputError(f"decay={decay}; it must be more than 0 base pairs.")
    annotation = genes if isinstance(genes, Genes) else Genes.read_gtf(genes)
    source = Source(data, layer)
    try:
        names = feature_names(source.var, region_column)
        peaks, columns = Regions.among(names)
        if not len(peaks):
            Regions.from_names(names)  # refuses, and lists them
        require_same_build(peaks, annotation, build)
        weights = activity_weights(peaks, annotation, upstream=upstream, decay=decay, window=window)
        settings = {"genes": annotation.source, "upstream": upstream, "decay": decay, "window": window}
        return _scored(source, columns, weights, annotation, settings)
    finally:
        source.close()


def require_same_build(peaks: Regions, genes: Genes, stated: str | None) -> None:
    """Refuse peaks and genes of different genome builds, as far as stated builds and the lengths of chromosomes tell.

    Raises
    ------
    InputError
        Saying which build each is of.
    """
    if genes.build in BUILDS:
        require_build(peaks, genes.build, stated=stated, model=f"the annotation {genes.source}")
        return
    if stated is not None and genes.build is not None and stated != genes.build:
        raise InputError(f"the peaks are stated to be {stated}, {genes.source} is {genes.build}.")
    ours, theirs = possible_builds(peaks), possible_builds(genes.bodies)
    if ours and theirs and not set(ours) & set(theirs):
        raise InputError(
            f"the peaks fit {listing(ours)}, the genes of {genes.source} {listing(theirs)}.",
            "Use an annotation of the peaks' genome build.",
        )


def _scored(
    source: Source, columns: np.ndarray, weights: sparse.csr_matrix, genes: Genes, settings: dict[str, object]
) -> AnnData:
    import pandas as pd
    from anndata import AnnData

    blocks = [sparse.csr_matrix((0, len(genes)), dtype=np.float32)]
    for rows in source.ranges():
        matrix = source.take(rows)
        check_values(matrix, "any", source, rows, "gene_activity")
        blocks.append(sparse.csr_matrix(matrix[:, columns] @ weights, dtype=np.float32))
    scores = sparse.vstack(blocks, format="csr")
    scores.sort_indices()
    whole = scores.copy()
    whole.data = np.rint(whole.data)
    whole.eliminate_zeros()
    near = weights.getnnz(axis=0)
    var = pd.DataFrame({"symbol": genes.symbols, "peaks": near}, index=pd.Index(genes.ids, dtype=object))
    return AnnData(scores, obs=source.obs.copy(), var=var, layers={"counts": whole}, uns={"gene_activity": settings})
