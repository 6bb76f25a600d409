"""What a user types in a shell, in an empty folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scfm
from scfm.cli import main

FIXTURE = Path(__file__).parents[1] / "parity" / "scgpt"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with scGPT's files and data beside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    shutil.copytree(FIXTURE / "checkpoint", tmp_path / "scgpt_files")
    shutil.copy(FIXTURE / "input.h5ad", tmp_path / "cells.h5ad")
    return tmp_path


def scfm_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `scfm ...` in this process; the exit code."""
    monkeypatch.setattr(sys, "argv", ["scfm", *arguments])
    showwarning = __import__("warnings").showwarning
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        __import__("warnings").showwarning = showwarning
    return 0


EMBED = ("embed", "./scgpt_files", "cells.h5ad", "--gene-column", "feature_name")


def test_models_and_info_in_json_name_the_same_cards(folder, monkeypatch, capsys):
    assert scfm_command(monkeypatch, "models", "--json") == 0
    names = [card["name"] for card in json.loads(capsys.readouterr().out)]
    assert {"scgpt", "pca"} <= set(names)
    assert scfm_command(monkeypatch, "info", "scgpt", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["weights"]["repo"] == "wanglab/scGPT-human"


def test_models_prints_a_table(folder, monkeypatch, capsys):
    assert scfm_command(monkeypatch, "models") == 0
    assert "scgpt/brain" in capsys.readouterr().out


def test_an_unknown_model_is_answered_with_the_nearest_names(folder, monkeypatch, capsys):
    assert scfm_command(monkeypatch, "info", "scgtp") == 4
    assert "Did you mean 'scgpt'" in capsys.readouterr().err


def test_check_reports_and_refuses_like_embed(folder, monkeypatch, capsys):
    assert (
        scfm_command(monkeypatch, "check", "./scgpt_files", "cells.h5ad", "--gene-column", "feature_name", "--json")
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["genes"]["matched"] == 151
    for command in ("check", "embed"):
        out = ("-o", "z.npy") if command == "embed" else ()
        assert scfm_command(monkeypatch, command, "./scgpt_files", "cells.h5ad", *out) == 3
        assert "Pass gene_column='feature_name'" in capsys.readouterr().err
    assert not (folder / "z.npy").exists()


@pytest.mark.parametrize("ending", ["npy", "zarr", "h5ad"])
def test_embed_writes_what_python_returns(folder, monkeypatch, capsys, ending):
    assert scfm_command(monkeypatch, *EMBED, "-o", f"z.{ending}", "--quiet") == 0
    expected = scfm.load(folder / "scgpt_files").embed(folder / "cells.h5ad", gene_column="feature_name")
    if ending == "npy":
        found = np.load(folder / "z.npy")
    else:
        read = ad.read_zarr if ending == "zarr" else ad.read_h5ad
        written = read(folder / f"z.{ending}")
        found = written.obsm["X_scgpt"]
        assert json.loads(written.uns["scfm"]["X_scgpt"])["model"] == "scgpt/local"
        assert list(written.obs_names) == list(ad.read_h5ad(folder / "cells.h5ad").obs_names)
    np.testing.assert_array_equal(found, expected)
    assert sorted(p.name for p in folder.glob("*.part*")) == []


def test_embed_h5ad_keeps_the_input_and_adds_to_it(folder, monkeypatch):
    before = ad.read_h5ad(folder / "cells.h5ad")
    assert scfm_command(monkeypatch, *EMBED, "-o", "z.h5ad", "-q", "--key-added", "X_mine") == 0
    after = ad.read_h5ad(folder / "z.h5ad")
    assert list(after.obsm) == ["X_mine"]
    assert (after.X != before.X).nnz == 0 if hasattr(after.X, "nnz") else np.array_equal(after.X, before.X)
    assert list(after.layers) == list(before.layers)


def test_the_input_is_never_the_output(folder, monkeypatch, capsys):
    assert scfm_command(monkeypatch, *EMBED, "-o", "cells.h5ad") == 3
    assert "is the input itself" in capsys.readouterr().err


def test_several_files_are_embedded_one_after_another(folder, monkeypatch, capsys):
    shutil.copy(folder / "cells.h5ad", folder / "more.h5ad")
    arguments = (
        "embed",
        "./scgpt_files",
        "cells.h5ad",
        "more.h5ad",
        "--gene-column",
        "feature_name",
        "-o",
        "z.npy",
        "--json",
    )
    assert scfm_command(monkeypatch, *arguments) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == 60
    z = np.load(folder / "z.npy")
    np.testing.assert_array_equal(z[:30], z[30:])


def test_an_output_of_another_run_is_not_continued(folder, monkeypatch, capsys):
    assert scfm_command(monkeypatch, *EMBED, "-o", "z.npy", "-q") == 0
    assert scfm_command(monkeypatch, *EMBED, "-o", "z.npy", "-q", "--seed", "1") == 5
    assert "--no-resume" in capsys.readouterr().err
    assert scfm_command(monkeypatch, *EMBED, "-o", "z.npy", "-q", "--seed", "1", "--no-resume") == 0


def test_tokenizer_options_are_passed_and_unknown_ones_refused(folder, monkeypatch, capsys):
    assert scfm_command(monkeypatch, *EMBED, "-o", "z.npy", "-q", "-O", "ties=upstream") == 0
    expected = np.load(FIXTURE / "expected.npz")["cell_embedding"]
    np.testing.assert_allclose(np.load(folder / "z.npy"), expected, atol=1e-5)
    assert scfm_command(monkeypatch, *EMBED, "-o", "z.npy", "-O", "tie=upstream") == 3
    assert "no tokenizer option 'tie'" in capsys.readouterr().err
    assert scfm_command(monkeypatch, *EMBED, "-o", "z.npy", "-O", "ties") == 2


def test_load_options_are_passed_and_unknown_ones_refused(folder, monkeypatch, capsys):
    assert scfm_command(monkeypatch, *EMBED, "-o", "z.npy", "-q", "-L", "weights=best_model.pt") == 0
    assert scfm_command(monkeypatch, *EMBED, "-o", "y.npy", "-L", "weights=other.pt") == 4
    assert scfm_command(monkeypatch, *EMBED, "-o", "y.npy", "-L", "species=mouse") == 3
    assert "no load option 'species'" in capsys.readouterr().err
    assert scfm_command(monkeypatch, *EMBED, "-o", "y.npy", "-L", "device=cpu") == 2


def test_the_installed_command_runs_and_helps():
    done = subprocess.run([sys.executable, "-m", "scfm.cli", "--help"], capture_output=True, text=True, check=True)
    for verb in ("models", "info", "check", "embed", "demo"):
        assert verb in done.stdout
    assert "Exit codes" in done.stdout


def test_finetune_and_predict(folder, monkeypatch, capsys):
    from scfm.data import pbmc_demo

    pbmc_demo()[:40].write_h5ad("pbmc.h5ad")
    run = ("finetune", "mini", "pbmc.h5ad", "--method", "head", "--device", "cpu", "-O", "context=32", "--epochs", "1")
    assert scfm_command(monkeypatch, *run, "--objective", "cell_type", "--out", "tuned", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["trained_cells"] + summary["held_out_cells"] == 40
    assert summary["metrics"]["valid_accuracy"] >= 0
    assert scfm_command(monkeypatch, "predict", "./tuned", "pbmc.h5ad", "--out", "labels.csv", "--json") == 0
    assert json.loads(capsys.readouterr().out)["columns"][:2] == ["label", "probability"]
    assert len(Path("labels.csv").read_text().splitlines()) == 41
    assert scfm_command(monkeypatch, *run, "--objective", "nothing", "--out", "other") == 3
    assert "has no column 'nothing'" in capsys.readouterr().err
    assert not Path("other").exists()
    assert scfm_command(monkeypatch, "predict", "mini", "pbmc.h5ad", "--out", "labels.csv") == 3
