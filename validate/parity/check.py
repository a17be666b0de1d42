"""Does the exported file compute what was calibrated: its integers, each of its layers, the whole of it.

Equality is claimed where it holds (docs/backends.md, "Parity"): weights, codes and integer sums are equal; a layer's
output and the float operators between layers are equal up to rounding; the whole model up to the reference's own noise
floor.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from erq_export.contract.manifest import attention, operands, sites
from erq_export.contract.quantized import QuantizedLayer, QuantLinear, QuantOperand, quant_linears, quant_operands
from erq_export.contract.targets import named

from ..runners import OnnxRuntimeRunner
from .attention import AttentionCheck, OperandParity, ProductParity
from .between import FloatParity, check_float
from .executed import INTEGER_GEMMS, count_ops, gemm_by_layer, is_integer, optimized_session, products_by_attention
from .layers import LayerParity, check_layer
from .model import DRAWS, FACTOR, FLOAT_E, HALF_E, ModelParity, check_model
from .teacher import teach
from .weights import WeightParity, check_weights

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """All levels. `executed`: what multiplies each layer in ONNX Runtime, `attention`: both products of every attention
    claimed integer; empty where the graph is for another."""

    target: str
    n_images: int
    weights: WeightParity
    layers: tuple[LayerParity, ...]
    operands: tuple[OperandParity, ...]
    products: tuple[ProductParity, ...]
    missing_operands: tuple[str, ...]  # of the reference, that the file does not have
    between: FloatParity
    model: ModelParity
    executed: dict[str, str]
    attention: dict[str, str]
    ops: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"model": self.model.to_json(), "problems": self.problems()}

    def problems(self) -> list[str]:
        """What is not as claimed, in plain words; empty when all is."""
        return [
            *self.weights.problems(),
            *(
                f"{path}: the reference has this operand, the file has no integers for it"
                for path in self.missing_operands
            ),
            *(problem for layer in self.layers for problem in layer.problems()),
            *(problem for operand in self.operands for problem in operand.problems()),
            *(problem for product in self.products for problem in product.problems()),
            *(
                f"{path}: claimed integer, ONNX Runtime multiplies it in float ({op})"
                for path, op in self.executed.items()
                if op not in INTEGER_GEMMS
            ),
            *(
                f"{path}: claimed integer attention, ONNX Runtime runs {products}"
                for path, products in self.attention.items()
                if not is_integer(products)
            ),
            *self.between.problems(),
            *self.model.problems(),
        ]

    def says(self) -> str:
        """The report in one sentence, with its figures."""
        all_codes = [*(layer.codes for layer in self.layers), *(operand.codes for operand in self.operands)]
        all_sums = [*(layer.accumulators for layer in self.layers), *(product.sums for product in self.products)]
        codes, wrong_codes = sum(c.n for c in all_codes), sum(c.mismatches for c in all_codes)
        sums, wrong_sums = sum(s.n for s in all_sums), sum(s.mismatches for s in all_sums)
        operands = f", {len(self.operands)} operands of attention" if self.operands else ""
        worst = max((layer.output.relative_l2 for layer in self.layers), default=0.0)
        model = self.model
        return (
            f"against the fake-quant reference on {self.n_images} images and {len(self.layers)} layers{operands}, same inputs: "
            f"{wrong_codes} of {codes} activation codes and {wrong_sums} of {sums} integer sums differ, layer outputs "
            f"by at most {worst:.0e}, float operators by at most {self.between.worst:.0e}; whole model "
            f"{model.relative_l2:.1e} beside a noise floor of {model.floor.relative_l2:.1e}, same class on "
            f"{model.top1_agreement:.0%}."
        )


def check_parity(
    reference: nn.Module,
    path: Path,
    manifest: Mapping[str, Any],
    bundle_layers: Mapping[str, QuantizedLayer],
    pixels: Tensor,
    *,
    threads: int | None = None,
    draws: int = DRAWS,
    factor: float = FACTOR,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> ParityReport:
    """All levels for one exported file in ONNX Runtime on the CPU. The reference is moved to the CPU.

    pixels (B, 3, H, W): a handful of images (2 to 4) is enough, each layer sees hundreds of rows of them. Memory: the
    file, the reference, one layer's tensors, and the layers' inputs and outputs for one image. Raises OutputError,
    MachineError, or ParityError where file and manifest do not belong together; what merely differs is in the report.
    """
    runner = OnnxRuntimeRunner(path, threads=threads)
    graph, claimed, claimed_operands = ir.load(path).graph, sites(manifest), operands(manifest)
    modules = quant_linears(reference.cpu()) | quant_operands(reference)
    layers: list[LayerParity] = []
    target = named(manifest["target"])
    integer = [operator for operator in attention(manifest) if operator.precision == "int8"]
    deployed_here = target.package is None  # elsewhere ONNX Runtime multiplies floats, whose sums prove nothing
    inner = AttentionCheck(graph, integer if deployed_here else [], claimed_operands)

    def visit(name: str, x: Tensor, _y: Tensor) -> None:
        progress(name, len(layers) + len(inner.operands), len(modules))
        module = modules[name]
        if name in claimed and isinstance(module, QuantLinear):
            layers.append(check_layer(graph, claimed[name], module, x))
        elif name in claimed_operands and isinstance(module, QuantOperand):
            inner.see(name, module, x)

    weights = check_weights(graph, claimed, bundle_layers)
    teach(reference, pixels, visit)
    progress("between the layers", len(modules), len(modules))
    between = check_float(reference, graph, {**claimed, **claimed_operands}, pixels[:1])
    progress("whole model", len(modules), len(modules))
    e = HALF_E if target.carrier == "float16" else FLOAT_E
    model = check_model(reference, runner, pixels, start=e, draws=draws, factor=factor, seed=seed)
    nodes = optimized_session(path)[1]
    return ParityReport(
        target=target.name,
        n_images=len(pixels),
        weights=weights,
        layers=tuple(layers),
        operands=tuple(inner.operands),
        products=tuple(inner.products),
        missing_operands=tuple(
            name for name, m in modules.items() if isinstance(m, QuantOperand) and name not in claimed_operands
        ),
        between=between,
        model=model,
        executed=gemm_by_layer(nodes, claimed) if deployed_here else {},
        attention=products_by_attention(nodes, integer) if deployed_here else {},
        ops=count_ops(nodes),
    )
