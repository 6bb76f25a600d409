"""8-bit Linears on this CPU: torch's dynamic quantisation against torchao's, on the layers of scGPT and Geneformer V2.

    pip install --no-deps --target /tmp/ao torchao==0.18.0
    .venv/bin/python benchmarks/int8.py --torchao /tmp/ao

Residual stacks of Linears alone, 650 tokens, one thread, random weights. Writes results/int8.md.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent / "results"


class Layer(nn.Module):
    """The Linears of a transformer layer, added to their input."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.ModuleList([nn.Linear(dim, dim) for _ in range(4)])
        self.ff1, self.ff2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, dim)."""
        for linear in self.attention:
            x = x + linear(x)
        return x + self.ff2(torch.relu(self.ff1(x)))


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--torchao", help="Folder with torchao.")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.torchao:
        sys.path.append(args.torchao)
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "# 8-bit Linears on this CPU",
        "",
        f"`python benchmarks/int8.py`: torch {torch.__version__}, torchao 0.18.0, one thread, 650 tokens, the Linears of four layers.",
        "",
        "| dim, hidden | variant | CPU ms | times float32 | cosine of the states |",
        "| --- | --- | --- | --- | --- |",
    ]
    for dim, hidden in ((512, 512), (768, 3072)):
        exact = nn.Sequential(*[Layer(dim, hidden) for _ in range(4)]).eval()
        x = torch.randn(650, dim)
        variants: dict[str, nn.Module] = {
            "float32": exact,
            "torch dynamic int8": torch.ao.quantization.quantize_dynamic(exact, {nn.Linear}, dtype=torch.qint8),
        }
        for name, config in (
            ("activations and weights", Int8DynamicActivationInt8WeightConfig()),
            ("weights", Int8WeightOnlyConfig()),
        ):
            made = copy.deepcopy(exact)
            quantize_(made, config)
            variants[f"torchao int8 {name}"] = made
        with torch.inference_mode():
            reference = exact(x)
            base = 0.0
            for name, module in variants.items():
                module(x)
                begin = time.process_time()
                for _ in range(8):
                    y = module(x)
                spent = (time.process_time() - begin) / 8
                base = base or spent
                cosine = float(torch.cosine_similarity(reference, y, dim=1).mean())
                lines.append(f"| {dim}, {hidden} | {name} | {1000 * spent:.0f} | {base / spent:.2f} | {cosine:.5f} |")
    (HERE / "int8.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
