"""Name the first place where a graph differs from what was calibrated, with what is needed to see it again."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from erq_export.backends.machine import sums_may_saturate
from erq_export.backends.onnxruntime import DISABLED, EXACT_SUMS
from erq_export.contract.bisection import Bisection, checked
from erq_export.contract.errors import DataError
from erq_export.contract.files import graph_sha256, write_bytes, write_text
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.output.folder import RECORD, REPRODUCTION
from erq_export.contract.parity import ParityReport
from erq_export.contract.records import encode

from .first import differences
from .reproduce import Reproduction, reproduction

SCRIPT = '''"""Run piece.onnx on the kept input and compare with what the calibrated reference gives."""

from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).parent
kept = np.load(here / "tensors.npz")
options = onnxruntime.SessionOptions()
{exact}session = onnxruntime.InferenceSession(
    str(here / "piece.onnx"), options, providers=["CPUExecutionProvider"], disabled_optimizers={disabled}
)
names = [output.name for output in session.get_outputs()]
outputs = session.run(names, {{given.name: kept[f"input/{{given.name}}"] for given in session.get_inputs()}})
for name, output in zip(names, outputs):
    want, start = kept[f"expected/{{name}}"].astype(np.float64), int(kept[f"offset/{{name}}"])
    have = output.reshape(-1)[start : start + len(want)].astype(np.float64)
    error = np.linalg.norm(have - want) / (np.linalg.norm(want) or 1.0)
    print(f"{{name}}: {{np.count_nonzero(have != want)}} of {{len(want)}} differ, relative L2 {{error:.3e}}")
'''


def bisect(
    reference: nn.Module,
    path: Path,
    manifest: GraphManifest,
    report: ParityReport,
    pixels: Tensor,
    *,
    bundle: str,
    foreign: Iterable[str] = (),
    not_executed: Iterable[str] = (),
) -> tuple[Bisection, Reproduction | None]:
    """Of a graph and its parity report on the same `pixels`; foreign: files that are not those of the run, in words."""
    found = differences(report)
    first = found[0] if found else None
    kept = None if first is None else reproduction(reference, ir.load(path), manifest, report, first, pixels)
    record = Bisection(
        target=report.target,
        graph_sha256=graph_sha256(path),
        bundle_sha256=bundle,
        n_images=len(pixels),
        foreign=tuple(foreign),
        first=first,
        n_differences=len(found),
        checked=checked(report),
        summary=report.says(),
        reproduction=() if kept is None else REPRODUCTION,
        not_executed=tuple(not_executed),
    )
    return record, kept


def write(folder: Path, record: Bisection, kept: Reproduction | None) -> None:
    """bisect.json, and beside it the piece, its tensors, a program that runs it, and how to read them."""
    write_bytes(folder / RECORD, encode(record))
    if kept is None:
        return
    piece, tensors, script, page = REPRODUCTION
    write_bytes(folder / piece, kept.piece)
    save_tensors(folder / tensors, kept.tensors())
    exact = f'options.add_session_config_entry("{EXACT_SUMS}", "1")\n' if sums_may_saturate() else ""
    write_text(folder / script, SCRIPT.format(exact=exact, disabled=list(DISABLED)))
    write_text(folder / page, _page(record, kept))


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """As an .npz file of arrays by name, read back without pickle."""
    with path.open("wb") as f:
        np.savez(f, **{name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]


def _page(record: Bisection, kept: Reproduction) -> str:
    if record.first is None:
        raise DataError("nothing differs, so there is nothing to write", fix="write the record alone")
    first, total = record.first, sum(t.nbytes for t in kept.tensors().values())
    lines = [
        f"# The first difference: {first.block} {first.site} ({first.kind})",
        "",
        f"{first.says}.",
        "",
        f"- `piece.onnx`: these nodes of the graph for {record.target}, as they are; where sums are compared every scale is 1.",
        "- `tensors.npz`: what the reference gives the piece (`input/…`), what it makes of it itself (`expected/…`), and what",
        f"  this graph made of it (`found/…`), for one image; {total / 2**20:.1f} MiB.",
        "- `python reproduce.py` runs the piece in ONNX Runtime and says how far it is off; it needs numpy and onnxruntime.",
        f"- `bisect.json`: the same as a record. Graph {record.graph_sha256[:12]}…, bundle {record.bundle_sha256[:12]}….",
    ]
    if not kept.inputs:
        lines.append("- The input of the piece is too large to be kept: no tensors are in `tensors.npz`.")
    return "\n".join(lines) + "\n"
