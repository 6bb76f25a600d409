"""`scfm demo`: what it writes is what it says."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from scfm.recipes.demo import run


@pytest.mark.slow
def test_demo_writes_cells_picture_and_page(tmp_path: Path):
    result = run(tmp_path / "demo")
    cells = ad.read_h5ad(tmp_path / "demo" / "demo.h5ad")
    assert cells.n_obs == result.cells
    query = cells.obs["part"] == "query"
    accuracy = (cells.obs["predicted"] == cells.obs["cell_type"].astype(str))[query].mean()
    assert accuracy == pytest.approx(result.accuracy.value)
    assert result.accuracy.low <= result.accuracy.value <= result.accuracy.high
    assert np.isfinite(cells.obsm["X_umap"]).all()
    assert (tmp_path / "demo" / "umap.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "demo" / "index.html").read_text()
    assert f"{result.accuracy.value:.3f}" in page
    assert "http" not in page.split("<body>")[0]  # nothing is loaded from elsewhere
    assert 'src="data:image/png;base64,' in page
