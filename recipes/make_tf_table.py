"""Make scfm/data/transcription_factors.tsv.gz: genes with a DNA-binding profile in JASPAR 2026, and their orthologs.

pip download --no-deps pyjaspar==4.0.0 && unzip pyjaspar-*.whl
python -m scfm.recipes.make_tf_table pyjaspar/data/JASPAR2026.sqlite
"""

from __future__ import annotations

import gzip
import re
import sqlite3
import sys
from pathlib import Path

from scfm import data
from scfm.gene_tables import to_ensembl
from scfm.orthologs import ortholog_pairs

TAXA = {"human": "9606", "mouse": "10090"}
PROFILES = """
    SELECT DISTINCT MATRIX.NAME FROM MATRIX JOIN MATRIX_SPECIES ON MATRIX.ID = MATRIX_SPECIES.ID
    WHERE MATRIX.COLLECTION IN ('CORE', 'UNVALIDATED') AND MATRIX_SPECIES.TAX_ID = ?
"""


def main(database: Path) -> None:
    """Write the table: columns species and symbol, sorted."""
    found = {}
    with sqlite3.connect(database) as connection:
        for species, taxon in TAXA.items():
            profiles = [name for (name,) in connection.execute(PROFILES, (taxon,))]
            names = {re.sub(r"\(.*?\)", "", part).strip() for name in profiles for part in name.split("::")}  # dimers
            if species == "mouse":
                names = {name.capitalize() if name.isupper() else name for name in names}
            ordered = sorted(names)
            known = to_ensembl(ordered, species)
            found[species] = {name for name, gene in zip(ordered, known, strict=True) if gene is not None}
    pairs = ortholog_pairs()
    for here, there in (("human", "mouse"), ("mouse", "human")):
        found[here] = found[here] | set(pairs[here][pairs[there].isin(set(found[there]))])
    rows = [f"{species}\t{symbol}\n" for species in TAXA for symbol in sorted(found[species])]
    target = Path(data.__file__).parent / "transcription_factors.tsv.gz"
    target.write_bytes(gzip.compress(("species\tsymbol\n" + "".join(rows)).encode(), mtime=0))
    print({species: len(names) for species, names in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
