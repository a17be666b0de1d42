"""How near honest graphs come to their limits, block by block, over many seeds: `python tests/support/honest_graphs.py 30`.

Figures of docs/backends.md, "Parity"; a minute for ten seeds.
"""

import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "validate"))

from test_planted_faults import CASES, deployed

MORE = [("vit", "onnx", "int8"), ("swin", "tensorrt", "fp16"), ("swin", "tensorrt", "int8")]


def main() -> None:
    """For every case: problems, the largest share of its limit that a block used, the largest limit."""
    with tempfile.TemporaryDirectory() as folder:
        for case in (*CASES, *MORE):
            reports = [deployed(Path(folder), *case, seed).report() for seed in range(int(sys.argv[1]))]
            blocks = [block for report in reports for block in report.blocks]
            used = max(block.relative_l2 / block.limit for block in blocks)
            problems = sum(bool(report.problems()) for report in reports)
            limits = max(block.limit for block in blocks if block.path != "head")
            sys.stdout.write(
                f"{' '.join(case)}: {len(reports)} graphs, {problems} with problems, {len(blocks)} blocks, "
                f"at most {used:.2f} of a limit, limits to {limits:.1e} (head aside)\n"
            )


if __name__ == "__main__":
    main()
