"""Does the exported file compute what was calibrated: its integers, each of its layers, the whole of it.

Equality is claimed where it holds (docs/backends.md, "Parity"): weights, scales, codes and integer sums are equal; a layer's
output and the float operators between layers are equal up to rounding, and so are the outputs of the whole model where the
reference breaks its ties as the graph does; a block and the whole model by itself up to the reference's own noise floor. Where
that of the whole model says nothing, decisions over many images are compared.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import onnx_ir as ir
from torch import Tensor, nn

from erq_export.contract.manifest import GraphManifest, by_path
from erq_export.contract.parity import LayerParity, ParityReport
from erq_export.contract.progress import Progress
from erq_export.contract.quantized import QuantizedLayer, QuantLinear, QuantOperand, quant_linears, quant_operands
from erq_export.contract.targets import named

from ..runners import OnnxRuntimeRunner
from .attention import AttentionCheck
from .between import check_float
from .blocks import blocks_of, check_block, inputs_of
from .constants import check_constants, check_origin
from .decision import check_decision
from .executed import count_ops, gemm_by_layer, optimized_session, products_by_attention
from .floor import DRAWS, FLOAT_E, HALF_E
from .layers import check_layer
from .model import FACTOR, check_model
from .teacher import teach
from .weights import check_weights
from .whole.classifier import follow_classifier


def check_parity(
    reference: nn.Module,
    path: Path,
    manifest: GraphManifest,
    bundle_layers: Mapping[str, QuantizedLayer],
    pixels: Tensor,
    *,
    threads: int | None = None,
    draws: int = DRAWS,
    factor: float = FACTOR,
    seed: int = 0,
    bundle: str | None = None,
    many: Callable[[], Iterable[Tensor]] | None = None,
    progress: Progress = lambda *_: None,
) -> ParityReport:
    """All levels for one exported file in ONNX Runtime on the CPU. The reference is moved to the CPU.

    pixels (B, 3, H, W): a handful of images (2 to 4) is enough, each layer sees hundreds of rows of them.  bundle: the hash of
    what the layers come from.  many: batches of further images, taken only where the whole model's floor says nothing and there
    are classes.  Memory: the file, the reference, one layer's or one block's tensors, the layers' inputs and outputs for one
    image, and all codes for all images, a byte each.  Raises OutputError, MachineError, or DataError where the file is no graph,
    or manifest and file do not belong together; what merely differs is in the report.
    """
    runner = OnnxRuntimeRunner(path, threads=threads)
    file, claimed, claimed_operands = ir.load(path), by_path(manifest.sites), by_path(manifest.operands)
    graph, quantized = file.graph, {**claimed, **claimed_operands}
    modules = quant_linears(reference.cpu()) | quant_operands(reference)
    layers: list[LayerParity] = []
    target = named(manifest.target)
    integer = [operator for operator in manifest.attention_operators if operator.precision == "int8"]
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
    between = check_float(reference, graph, quantized, pixels[:1])
    blocks = []
    for block, x in inputs_of(blocks_of(reference, graph, quantized, pixels), pixels):
        progress(f"block {block.path}", len(modules), len(modules))
        blocks.append(check_block(reference, graph, block, x, seed=seed))
    progress("whole model", len(modules), len(modules))
    e = HALF_E if target.carrier == "float16" else FLOAT_E
    headless = getattr(reference, "num_classes", None) == 0
    model = check_model(reference, runner, pixels, start=e, draws=draws, factor=factor, seed=seed, headless=headless)
    decision = None
    if many is not None and not model.telling and not headless:
        progress("decisions", len(modules), len(modules))
        decision = check_decision(reference, runner, many(), perturbation=model.floor.perturbation, seed=seed)
    progress("whole model, ties apart", len(modules), len(modules))
    followed = follow_classifier(reference, path, manifest, pixels, threads=threads)
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
        origin=check_origin(file, manifest, bundle),
        constants=check_constants(graph, quantized, bundle_layers, reference),
        blocks=tuple(blocks),
        decision=decision,
        followed=followed,
    )
