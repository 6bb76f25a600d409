"""The conformance kit: what every encoder promises, one small check a promise.

>>> from scfm.testing import check_encoder
>>> check_encoder(encoder)                                          # doctest: +SKIP
>>> check_encoder(encoder, checks=["cell_order", "batch_size"])     # doctest: +SKIP

A check is a function ``(encoder, data) -> None`` that raises `ConformanceError` with what it found; `CHECKS` has them by name.
None of them knows the right numbers: those are for a parity test against the original code.
"""

from scfm.testing import cells, guest, inputs, outputs, tuning  # noqa: F401 - their checks register themselves
from scfm.testing.example import example_data
from scfm.testing.kit import CHECKS, TOLERANCE, Check, ConformanceError, applicable, check_encoder

__all__ = ["CHECKS", "TOLERANCE", "Check", "ConformanceError", "applicable", "check_encoder", "example_data"]
