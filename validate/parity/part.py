"""One part of a detector in a file beside the same part in PyTorch: integers, and every layer on the inputs that it gets there.

Letters:  x a layer's input, (…, k) or (B, c, H, W);  q its integer codes;  w (n, k) integer weight;  a = Σ q·w accumulators
A layer that is called several times, on each level of a pyramid, stands as often in the file: call i is its i-th place.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from erq_export.backends.onnxruntime import session
from erq_export.contract.detection import PartParity
from erq_export.contract.errors import DataError
from erq_export.contract.manifest import GraphManifest, LoweredSite, by_path
from erq_export.contract.parity import FloatParity, LayerParity
from erq_export.contract.progress import Progress
from erq_export.contract.quantized import QuantizedLayer, QuantLayer
from erq_export.contract.targets import named

from ..metrics.distance import relative_l2
from .between import float_parity
from .executed import gemm_by_layer, optimized_session
from .layers import check_layer
from .pieces import SAME_EXPORT
from .weights import check_weights


@torch.no_grad()
def check_part(
    part: nn.Module,
    path: Path,
    manifest: GraphManifest,
    layers: dict[str, QuantizedLayer],
    x: Tensor,
    *,
    takes: str,
    gives: tuple[str, ...],
    progress: Progress = lambda *_: None,
) -> PartParity:
    """part: of the fake-quant reference, its layers under the paths of the manifest;  x: what it is given, rows of a batch;
    layers: of the bundle, those of this part;  takes, gives: the file's input and outputs.

    DataError where manifest and file do not belong together.
    """
    graph = ir.load(path).graph
    places: dict[str, list[LoweredSite]] = defaultdict(list)
    for site in manifest.sites:
        places[site.path].append(site)
    found, calls = list[LayerParity](), Counter[str]()
    first, between = dict[str, Tensor](), dict[str, tuple[str, Tensor]]()

    def see(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        if isinstance(module, QuantLayer):
            claims, i = places[module.path], calls[module.path]
            calls[module.path] += 1
            if i >= len(claims):
                raise _other_calls(module.path)
            progress(module.path, len(found), len(manifest.sites))
            found.append(check_layer(graph, claims[i], module, args[0]))
            first[claims[i].output] = y
            between[claims[i].input] = (module.path if i == 0 else f"{module.path}, level {i + 1}", args[0])

    handles = [m.register_forward_hook(see) for m in part.modules() if isinstance(m, QuantLayer)]
    try:
        wanted = _flat(part(x))
    finally:
        for handle in handles:
            handle.remove()
    if missing := [path for path, claims in places.items() if calls[path] != len(claims)]:
        raise _other_calls(missing[0])
    runs_here = named(manifest.target).package is None
    running, nodes = optimized_session(path) if runs_here else (session(path), [])
    given = x.half() if running.get_inputs()[0].type == "tensor(float16)" else x
    outputs = (torch.from_numpy(y).float() for y in running.run(list(gives), {takes: given.numpy()}))
    return PartParity(
        n=len(x),
        weights=check_weights(graph, by_path(manifest.sites), layers),
        layers=tuple(found),
        executed=_executed(nodes, places) if runs_here else {},
        between=_between(graph, {takes: x}, first, between, dict(zip(gives, wanted, strict=True))),
        outputs={name: relative_l2(y, y0) for name, y, y0 in zip(gives, outputs, wanted, strict=True)},
    )


def _other_calls(path: str) -> DataError:
    return DataError(
        f"{path} stands in the file another number of times than the part calls it",
        fix=SAME_EXPORT,
    )


def _executed(nodes: Sequence[Any], places: Mapping[str, Sequence[LoweredSite]]) -> dict[str, str]:
    """What multiplies each layer, at all of its places: several operators joined by "+" where they are not the same."""
    found: dict[str, str] = {}
    for path, claims in places.items():
        every = {gemm_by_layer(nodes, {path: claim})[path] for claim in claims}
        found[path] = "+".join(sorted(every))
    return found


def _between(
    graph: ir.Graph,
    given: dict[str, Tensor],
    behind: dict[str, Tensor],
    before: dict[str, tuple[str, Tensor]],
    outputs: dict[str, Tensor],
) -> FloatParity:
    """The float operators between the layers: given the part's input and every layer's output, what reaches every layer and
    what leaves the part, where no layer gives it as it is."""
    known = given | behind
    wanted = before | {name: (name, y) for name, y in outputs.items()}
    return float_parity(graph, known, {name: one for name, one in wanted.items() if name not in known})


def _flat(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)
