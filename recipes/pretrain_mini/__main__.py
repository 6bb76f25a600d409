"""Pre-train mini, evaluate it on held-out data and write what is shipped.

python -m scfm.recipes.pretrain_mini --shared ../shared
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scfm.plans import read
from scfm.recipes.pretrain_mini import recipe
from scfm.recipes.pretrain_mini.config import PretrainMini

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scfm.recipes.pretrain_mini", description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/, the data sets")
    parser.add_argument("--config", default="pretrain_mini", help="a recipe of this kind")
    parser.add_argument("--results", type=Path, default=HERE, help="folder for log, figure and evaluation")
    parser.add_argument("--weights", type=Path, default=recipe.SHIPPED, help="folder for the weights")
    parser.add_argument("--evaluate", action="store_true", help="evaluate the weights that are there; do not train")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the order of sums, and so the weights, depend on it
    chosen = read(arguments.config)
    assert isinstance(chosen, PretrainMini)
    config, data = chosen.config, arguments.shared / "data"
    if not arguments.evaluate:
        recipe.pretrain(config, data, weights=arguments.weights, results=arguments.results)
    print(recipe.evaluate(config, data, weights=arguments.weights, results=arguments.results))


if __name__ == "__main__":
    main()
