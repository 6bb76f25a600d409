"""Our outputs against arrays recorded from the authors' own code, for every model.

Each folder holds the authors' checkpoint format, the input, `expected.npz` and `meta.json`, all as recorded, and `outputs.py` of ours with

- ``outputs(folder) -> Iterator[(array name, our array)]``
- ``TOLERANCE: dict[pattern, float]``: largest absolute difference allowed, first matching pattern wins; 0 is exact
- ``NOT_COMPARED: dict[pattern, reason]``: recorded arrays that are inputs, or that no output of ours corresponds to

so that every recorded array is accounted for. Set SCFM_PARITY_TABLE=<file> to write what was measured.
"""

import importlib.util
import json
import os
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

HERE = Path(__file__).parent
MODELS = sorted(path.parent.name for path in HERE.glob("*/outputs.py"))


def load(model: str) -> ModuleType:
    name = f"scfm_parity_{model}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / model / "outputs.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def first_match(patterns: dict, name: str):
    return next((value for pattern, value in patterns.items() if fnmatch(name, pattern)), None)


def difference(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference; NaN and infinity must stand at the same places."""
    assert ours.shape == expected.shape
    if expected.dtype.kind in "iubUSO":
        return float((ours != expected).sum())
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected))
    finite = np.isfinite(expected)
    return float(np.abs(ours[finite].astype(np.float64) - expected[finite].astype(np.float64)).max(initial=0.0))


@pytest.mark.parametrize("model", MODELS)
def test_outputs_equal_those_of_the_original_code(model: str) -> None:
    module = load(model)
    expected = dict(np.load(HERE / model / "expected.npz", allow_pickle=False))
    measured: dict[str, float] = {}
    failures = []
    for name, ours in module.outputs(HERE / model):
        tolerance = first_match(module.TOLERANCE, name)
        assert tolerance is not None, f"{name} has no tolerance"
        try:
            measured[name] = difference(np.asarray(ours), expected[name])
        except AssertionError as error:
            failures.append(f"{name}: {error}")
            continue
        if not measured[name] <= tolerance:
            failures.append(f"{name}: {measured[name]:.3g} > {tolerance:g}")
    assert not failures, "\n".join(failures)
    left = [name for name in expected if name not in measured and first_match(module.NOT_COMPARED, name) is None]
    assert not left, f"recorded arrays neither compared nor explained: {left}"
    if table := os.environ.get("SCFM_PARITY_TABLE"):
        path = Path(table)
        rows = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**rows, model: measured}, indent=1, sort_keys=True))
