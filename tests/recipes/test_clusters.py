"""Recipes on several processes: the same loss curve as on one, resumed after a kill, and the files that start them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import scfm
from scfm.data import pbmc_demo
from scfm.errors import ResumeError
from scfm.plans import cluster_files, train

WEIGHTS = {"lora": "adapter_model.safetensors", "full": "weights.safetensors"}
RECIPE = {
    "kind": "finetune",
    "title": "small",
    "model": {"name": "mini", "device": "cpu", "tokenizer": {"context": 48}},
    "data": {"train": "cells.h5ad", "valid": 0.25},
    "objective": {"kind": "classification", "column": "cell_type"},
    "train": {"epochs": 3, "batch_size": 16, "learning_rate": 3e-4, "weight_decay": 0.0, "patience": None},
}
LOSS_TOLERANCE = 1e-5
"""Largest relative difference of an epoch's loss: sums are made in another order. Measured: 2e-7."""


KINDS = {"ddp": "false", "fsdp": "true"}


def prepared(folder: Path) -> Path:
    adata = pbmc_demo()
    adata[adata.obs["cell_type"].isin(["B", "NK", "CD14+ Mono"])][:64].write_h5ad(folder / "cells.h5ad")
    (folder / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


SESSION = """
import json, os, sys
from scfm.plans import train
for out, settings, shard in json.loads(sys.argv[1]):
    os.environ["ACCELERATE_USE_FSDP"] = shard
    train("small.yaml", {"out": out, **settings}, progress=False)
"""
"""Several runs by the same processes: most of a short run's time is the import of its libraries."""


def session(folder: Path, runs: Sequence[tuple[str, dict, str]], processes: int) -> None:
    (folder / "session.py").write_text(SESSION)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(several if processes > 1 else []), "session.py", json.dumps(runs)]
    done = subprocess.run(start, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of one process, and of two with half the batch each."""
    folder = prepared(tmp_path_factory.mktemp("runs"))
    methods, half = ("lora", "full"), {"train.batch_size": 8}
    session(folder, [(f"one-{m}", {"method": m}, "false") for m in methods], 1)
    two = [(f"{kind}-{m}", {"method": m, **half}, shard) for kind, shard in KINDS.items() for m in methods]
    session(folder, two, 2)
    return folder


def loaded(folder: Path, out: str) -> scfm.FineTuned:
    tuned = scfm.load(folder / out, device="cpu")
    assert isinstance(tuned, scfm.FineTuned)
    return tuned


def curve(tuned: scfm.FineTuned, name: str = "loss") -> list[float]:
    return [epoch[name] for epoch in tuned.history]


def tensors(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update({f"{path.name}:{key}": value for key, value in load_file(path).items()})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_give_the_loss_curve_of_one(runs: Path, method: str, kind: str) -> None:
    one, two = loaded(runs, f"one-{method}"), loaded(runs, f"{kind}-{method}")
    assert curve(one)[-1] < curve(one)[0]
    np.testing.assert_allclose(curve(two), curve(one), rtol=LOSS_TOLERANCE)
    np.testing.assert_allclose(curve(two, "valid_loss"), curve(one, "valid_loss"), rtol=LOSS_TOLERANCE)
    assert curve(two, "valid_accuracy") == curve(one, "valid_accuracy")
    assert two.split == one.split
    cells = runs / "cells.h5ad"
    np.testing.assert_allclose(two.embed(cells, progress=False), one.embed(cells, progress=False), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_artefacts_are_saved_once_and_whole(runs: Path, method: str, kind: str) -> None:
    one, two = runs / f"one-{method}", runs / f"{kind}-{method}"
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert {key: x.shape for key, x in tensors(two).items()} == {key: x.shape for key, x in tensors(one).items()}
    last = sorted(two.with_name(f"{two.name}.checkpoints").glob("checkpoint-*"))[-1]
    assert [path.name for path in last.glob("*.safetensors")] == ["trained.safetensors"]
    assert {path.name for path in last.iterdir()} >= {"optimizer.pt", "scheduler.pt", "trainer_state.json"}


@pytest.mark.slow
def test_a_run_of_another_number_of_processes_is_not_continued(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps are made of other cells."""
    monkeypatch.chdir(runs)
    with pytest.raises(ResumeError, match="it differs in processes"):
        train("small.yaml", {"method": "lora", "train.batch_size": 8, "out": "ddp-lora"}, progress=False)


@pytest.mark.slow
def test_a_killed_run_of_two_processes_continues(runs: Path) -> None:
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = ["method=lora", "train.batch_size=8", "out=cut", "--quiet"]
    command = [*several, "-m", "scfm.cli", "train", "small.yaml", *settings]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=runs, env=environment(), start_new_session=True, **quiet)
    wait_for_checkpoint(process, runs / "cut.checkpoints")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (runs / "cut").exists()
    subprocess.run(command, cwd=runs, env=environment(), check=True)
    assert_same(runs / "cut", runs / "ddp-lora")


def wait_for_checkpoint(process: subprocess.Popen, checkpoints: Path) -> None:
    deadline = time.monotonic() + 300
    while not list(checkpoints.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_same(one: Path, other: Path) -> None:
    assert loaded(one.parent, one.name).history == loaded(other.parent, other.name).history
    theirs = tensors(other)
    for key, value in tensors(one).items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)


# Files


def test_cluster_files_parse() -> None:
    found = {path.name: path for path in cluster_files()}
    assert set(found) == {"ddp.yaml", "fsdp.yaml", "slurm.sbatch"}
    pytest.importorskip("accelerate")
    from accelerate.commands.config.config_args import ClusterConfig

    for name in ("ddp.yaml", "fsdp.yaml"):
        content = yaml.safe_load(found[name].read_text())
        config = ClusterConfig.from_yaml_file(str(found[name]))  # refuses unknown keys
        assert config.distributed_type.value == content["distributed_type"]
    assert content["fsdp_config"]["fsdp_version"] == 2


def test_the_slurm_script_is_clean_bash() -> None:
    script = next(path for path in cluster_files() if path.suffix == ".sbatch")
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)
    directives = [line.split(maxsplit=1)[1] for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    for needed in ("--requeue", "--open-mode=append", "--signal=B:USR1@180"):
        assert needed in directives
    last = max(i for i, line in enumerate(script.read_text().splitlines()) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in script.read_text().splitlines()[: last + 1])  # SLURM stops at a command


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The commands of SLURM that the script calls, as they act on one machine; what is requeued is noted."""
    commands = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
        "scontrol": f'[[ "$1" == requeue ]] && echo "$2" >> "{tmp_path}/requeued"; [[ "$1" == show ]] && echo localhost; true',
    }
    (tmp_path / "bin").mkdir()
    for name, body in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return environment(
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        SLURM_JOB_ID="4242",
        SLURM_JOB_NODELIST="localhost",
        SLURM_NNODES="1",
        SLURM_CPUS_PER_TASK="2",
        SCFM_PROCESSES="2",
        SCFM_SHARD="true",
    )


@pytest.mark.slow
def test_a_slurm_job_out_of_time_is_queued_again_and_continues(
    runs: Path, slurm: dict[str, str], tmp_path: Path
) -> None:
    """Sharded, so that this also sees a sharded run continue."""
    script = next(path for path in cluster_files() if path.suffix == ".sbatch")
    command = ["bash", str(script), "small.yaml", "method=lora", "train.batch_size=8", "out=job", "--quiet"]
    process = subprocess.Popen(command, cwd=runs, env=slurm, start_new_session=True, stdout=subprocess.PIPE, text=True)
    wait_for_checkpoint(process, runs / "job.checkpoints")
    process.send_signal(signal.SIGUSR1)  # as SLURM does, to the script only
    output, _ = process.communicate()
    assert process.returncode == 0
    assert "queued again" in output
    assert (tmp_path / "requeued").read_text() == "4242\n"
    assert not (runs / "job").exists()
    subprocess.run(command, cwd=runs, env={**slurm, "SLURM_RESTART_COUNT": "1"}, check=True, capture_output=True)
    assert_same(runs / "job", runs / "fsdp-lora")
