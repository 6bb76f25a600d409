"""Geneformer V2: compared as V1 is."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "scfm_parity_geneformer", Path(__file__).parents[1] / "geneformer_v1" / "outputs.py"
)
assert _spec is not None
assert _spec.loader is not None
_both = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_both)
outputs, TOLERANCE, NOT_COMPARED = _both.outputs, _both.TOLERANCE, _both.NOT_COMPARED
