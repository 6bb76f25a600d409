"""`kill -9` at random moments, at least 20 times, and the same call again: bit for bit what an uninterrupted run writes."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scfm
from scfm.data import pbmc_demo


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["npy", "zarr", "h5ad"])
def test_killed_at_random_points_and_continued(tmp_path, ending):
    data, out = tmp_path / "cells.h5ad", tmp_path / f"z.{ending}"
    cells = pbmc_demo()[:480].copy()
    cells.write_h5ad(data)
    script = Path(__file__).with_name("killed.py")
    run = subprocess.run([sys.executable, script, data, out, "0"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 20
    whole = scfm.load("mini", device="cpu").with_options(context=16).embed(cells)
    if ending == "npy":
        found = np.load(out)
    else:
        found = (ad.read_zarr(out) if ending == "zarr" else ad.read_h5ad(out)).obsm["X_mini"]
    np.testing.assert_array_equal(found, whole)
    left = {path.name for path in tmp_path.iterdir()} - {"cells.h5ad", f"z.{ending}", f"z.{ending}.journal"}
    assert not [name for name in left if not name.startswith(".")]
