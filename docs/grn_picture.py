"""The network of docs/grn.md: best edges by correlation in the PBMC that ship with scfm.

python docs/grn_picture.py
"""

from __future__ import annotations

from pathlib import Path

import scfm
from scfm.data import pbmc_demo


def main() -> None:
    """Write images/grn_network.png."""
    encoder = scfm.load("mini", device="cpu")
    result = scfm.tasks.grn(encoder, pbmc_demo(), methods=["spearman"])
    result.plot(top=40, save=Path(__file__).parent / "images" / "grn_network.png")


if __name__ == "__main__":
    main()
