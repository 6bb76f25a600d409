"""docs/performance.md from the tables that the benchmarks wrote.

.venv/bin/python benchmarks/report.py
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
PARTS = ("scgpt", "geneformer", "models", "memory", "inexact", "int8", "distill", "finetune", "atac")
HEAD = """# Performance

Written by `benchmarks/report.py` from what the benchmarks of the folder `benchmarks/` last measured (`make bench` runs them); each part names its
command. No figure is asserted by a test. Machines: 2 cores, 24 GiB, no GPU; scGPT and most rows of the table of models on an AMD EPYC (AVX2), the rest on
an Intel Xeon (AVX-512, VNNI): compare only inside one table.
"""


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    for name in PARTS:
        path = HERE / "results" / f"{name}.md"
        if path.exists():
            parts.append(
                "\n".join(f"#{line}" if line.startswith("#") else line for line in path.read_text().splitlines()) + "\n"
            )
    PAGE.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
