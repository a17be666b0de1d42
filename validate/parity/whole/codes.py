"""A graph that shows the codes of its quantizers while it runs, and a reference that goes on with them.

Letters:  x what a quantized layer or an operand of attention gets;  q the graph's codes for it, less the zero point
"""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from erq_export.backends.onnxruntime import run, session
from erq_export.contract.errors import DataError
from erq_export.contract.followed import CODES
from erq_export.contract.manifest import GraphManifest, Quantized
from erq_export.contract.quantized import QuantLayer, QuantOperand, quant_linears, quant_operands

from ...metrics.distance import ROUNDING
from ..pieces import SAME_EXPORT, serialized
from ..teacher import in_front
from .ledger import Ledger
from .ties import rounded

LARGEST_MESSAGE = 2**30  # bytes of tensors; protobuf ends at twice that


class Watched:
    """A graph in ONNX Runtime with its codes, and other values by name, as further outputs.

    path: of the file that `model` was read from, which is run as it is once, to see that both give the same to the bit.
    DataError where there is no such value.
    """

    def __init__(
        self, path: Path, model: ir.Model, manifest: GraphManifest, *more: str, threads: int | None = None
    ) -> None:
        places: dict[str, list[Quantized]] = defaultdict(list)
        for site in (*manifest.sites, *manifest.operands):
            places[site.path].append(site)
        self.places: dict[str, list[Quantized]] = dict(places)
        self._path, self._threads = path, threads
        codes = [place.codes for places in self.places.values() for place in places]
        graph = model.graph
        values = {str(value.name): value for node in graph for value in node.outputs} | dict(graph.initializers)
        shown = {str(value.name) for value in graph.outputs}
        for name in dict.fromkeys((*codes, *more)):
            if name not in values:
                raise of_another_export(f"it has no {name}")
            if name not in shown:
                graph.outputs.append(values[name])
        self._running = _opened(model, threads)

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output by name."""
        return run(self._running, feeds)

    def runs_as_it_is(self, feeds: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> bool:
        """Are these values the file's own outputs to the bit? NaN is no value."""
        own = run(session(self._path, threads=self._threads), feeds)
        return all(torch.equal(y, values[name]) or bool(y.isnan().any()) for name, y in own.items())


def _opened(model: ir.Model, threads: int | None) -> Any:
    """A session of a model in memory; one that no message of protobuf's may hold goes through a folder."""
    weights = (value.const_value for value in model.graph.initializers.values())
    if sum(weight.nbytes for weight in weights if weight is not None) < LARGEST_MESSAGE:
        return session(serialized(model), threads=threads)
    with tempfile.TemporaryDirectory(prefix="erq-export-") as folder:
        path = Path(folder) / "watched.onnx"
        ir.save(model, path, external_data="watched.data")
        return session(path, threads=threads)


@contextmanager
def follows(
    reference: nn.Module,
    places: Mapping[str, Sequence[Quantized]],
    values: Mapping[str, Tensor],
    ledger: Ledger,
    *,
    rounding: float = ROUNDING,
) -> Iterator[None]:
    """Every layer and operand of the reference that has a place in the file gets, instead of x, the graph's codes for it, while
    this lasts. DataError where one is called more or less often than it stands in the file, but for layers that nothing reached.

    rounding: what x may be off by, as a share of the largest number on its grid.
    """
    calls = Counter[str]()

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not isinstance(module, QuantLayer | QuantOperand):
            raise TypeError(f"a {type(module).__name__} has no codes")
        x, own = args[0], places.get(module.path)
        if own is None:
            return None
        if calls[module.path] >= len(own) or values[own[calls[module.path]].codes].numel() != x.numel():
            raise of_another_export(f"{module.path} has other codes there")
        place = own[calls[module.path]]
        calls[module.path] += 1
        q = values[place.codes].reshape(x.shape).float() - place.zero_point
        ledger.tie(CODES, rounded(module.grid, x, q, off=rounding))
        return (module.grid.dequantize(q), *args[1:])

    with in_front(reference, hook):
        yield
    for path in quant_linears(reference) | quant_operands(reference):
        own = places.get(path, ())
        if calls[path] != len(own) and any(values[place.codes].numel() for place in own):
            raise of_another_export(f"{path} stands in it {len(own)} times, {calls[path]} were called")


def of_another_export(why: str) -> DataError:
    """The refusal of a graph that is not what its manifest says."""
    return DataError(f"the graph is not as it was exported: {why}", fix=SAME_EXPORT)
