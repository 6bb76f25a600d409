"""Holds the memory that `scfm train --dry-run` estimates against the peak of the run itself: recipes/results/memory.json.

python -m scfm.recipes.memory_check
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "memory.json"
CHILD = """
import json, resource, sys, warnings
import torch
from scfm.plans import read
torch.set_num_threads(1)
warnings.simplefilter("ignore")
what, recipe, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
chosen = read(recipe, settings)
print(str(chosen.plan()) if what == "plan" else chosen.run(progress=False) and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _child(what: str, recipe: str, settings: Mapping[str, Any]) -> str:
    command = [sys.executable, "-c", CHILD, what, recipe, json.dumps(settings)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def scgpt_size(folder: Path) -> str:
    """A network of scGPT's published sizes with random weights, over the genes of `pbmc_demo`."""
    from scfm.adapters.scgpt.adapter import ScGPT
    from scfm.adapters.scgpt.network import ScGPTConfig
    from scfm.data import pbmc_demo
    from scfm.genes import Vocabulary
    from scfm.registry import find

    special = {"pad": "<pad>", "cls": "<cls>"}
    names = (*special.values(), *map(str, pbmc_demo().var_names))
    vocabulary = Vocabulary(names, ids="symbol", species=("human",), special=special)
    card = find("scgpt")[1]
    assert card is not None
    ScGPT.build(ScGPTConfig(genes=len(vocabulary), pad=vocabulary.id("pad")), vocabulary, card).save(folder / "scgpt")
    return str(folder / "scgpt")


def main() -> None:
    from scfm.data import pbmc_demo

    with tempfile.TemporaryDirectory(prefix="scfm-memory-") as name:
        folder = Path(name)
        pbmc_demo()[:96].write_h5ad(folder / "some.h5ad")
        pbmc_demo()[:12].write_h5ad(folder / "few.h5ad")
        common = {"model.device": "cpu", "train.epochs": 1, "data.valid": None}
        mini = {**common, "data.train": str(folder / "some.h5ad"), "train.batch_size": 32}
        large = {
            **common,
            "data.train": str(folder / "few.h5ad"),
            "train.batch_size": 4,
            "model.name": scgpt_size(folder),
        }
        cases = {
            "mini, LoRA, 32 cells a step": ("annotation_lora_mini", mini),
            "mini, full, 32 cells a step": ("annotation_lora_mini", {**mini, "method": "full"}),
            "scGPT's size, LoRA, 4 cells a step": ("annotation_lora_scgpt", large),
            "scGPT's size, full, 4 cells a step": ("annotation_lora_scgpt", {**large, "method": "full"}),
        }
        rows = []
        for number, (what, (recipe, settings)) in enumerate(cases.items()):
            given = {**settings, "out": str(folder / f"out{number}")}
            found = re.search(r"peak +at least ([\d.]+) (MB|GB)", _child("plan", recipe, given))
            assert found is not None
            estimated = float(found[1]) * {"MB": 1e-3, "GB": 1.0}[found[2]]
            measured = int(_child("run", recipe, given)) * 1024 / 1e9
            rows.append({"run": what, "estimated": round(estimated, 2), "measured": round(measured, 2)})
            print(rows[-1], flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"command": "python -m scfm.recipes.memory_check", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
