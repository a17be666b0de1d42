"""Convolutions in a graph: integers in ONNX Runtime and in TensorRT-RTX's plan, and the reference's outputs."""

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from erq_export.backends.onnxruntime import run_one, session
from erq_export.backends.tensorrt import available, build_engine
from erq_export.calibrate.observers import activation_grid
from erq_export.calibrate.solve.weight_grid import weight_grid
from erq_export.contract.kernel import Kernel
from erq_export.contract.manifest import LoweredSite
from erq_export.contract.part import install
from erq_export.contract.quantized import QuantizedConv, QuantLayer
from erq_export.contract.targets import TARGETS, grid_rules
from erq_export.exporters.onnx.graph import Editor, name_by_module
from erq_export.exporters.onnx.half import to_half
from erq_export.exporters.onnx.linear import lower
from erq_export.exporters.onnx.trace import trace
from erq_export.exporters.onnx.write import save
from erq_export.exporters.tensorrt.plan import compiled, summarize
from erq_export.validate.parity.executed import executed_ops

SIZE = (3, 32, 48)
BITS = (4, 8)
N_CONVOLUTIONS = 4


class Pyramid(nn.Module):
    """Patches, then two levels: a lateral 1×1, a 3×3 with a border on both, as in an FPN."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.lateral = nn.Conv2d(16, 32, 1, bias=False)
        self.smooth = nn.Conv2d(32, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 16, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        level = self.smooth(self.lateral(self.patches(x).relu()))
        out: Tensor = self.down(level.relu())
        return out.flatten(1)


@torch.no_grad()
def quantized(bits: int) -> nn.Module:
    """Rounded to nearest, on the ranges of two images."""
    torch.manual_seed(0)
    model, rules = Pyramid().eval().requires_grad_(False), grid_rules(("onnx", "tensorrt-rtx"))
    ranges: dict[str, tuple[Tensor, Tensor]] = {}
    for path, conv in model.named_children():
        conv.register_forward_pre_hook(lambda _m, a, path=path: ranges.update({path: (a[0].min(), a[0].max())}))
    model(images(2))
    for path, (lo, hi) in ranges.items():
        conv = model.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight.flatten(1)
        grid = weight_grid(weight, bits=bits, rules=rules, percentiles=(1.0,))
        part = QuantizedConv(
            weight_q=grid.quantize(weight).to(torch.int8),
            weight_scale=grid.scale[:, 0].contiguous(),
            weight_qmin=grid.qmin[:, 0].to(torch.int16),
            bias=torch.zeros(len(weight)) if conv.bias is None else conv.bias,
            act=activation_grid(lo, hi, bits=bits, rules=rules, per_channel=False),
            w_bits=bits,
            a_bits=bits,
            kernel=Kernel.of(conv),
        )
        install(model, path, part)
    return model


def images(n: int, *, seed: int = 0) -> Tensor:
    return torch.randn(n, *SIZE, generator=torch.Generator().manual_seed(seed))


def written(model: nn.Module, target: str, folder: Path) -> tuple[Path, list[LoweredSite]]:
    graph = trace(model, SIZE)
    name_by_module(graph)
    if TARGETS[target].carrier == "float16":
        to_half(graph)
    sites, _ = lower(graph, TARGETS[target])
    Editor(graph).finish()
    path = folder / f"{target}.onnx"
    save(graph, path)
    return path, sites


@pytest.mark.parametrize("bits", BITS)
def test_onnx_runtime_multiplies_integers_and_gives_the_references_outputs(bits: int, tmp_path: Path) -> None:
    model = quantized(bits)
    path, sites = written(model, "onnx", tmp_path)
    ops = executed_ops(path)
    assert (ops.get("ConvInteger"), ops.get("Conv", 0)) == (N_CONVOLUTIONS, 0)
    held = ir.load(path).graph.initializers
    assert {str(held[site.weight].dtype) for site in sites} == {"UINT8"}  # signed ones have no fast kernel
    assert [site.path for site in sites] == ["patches", "lateral", "smooth", "down"]
    pixels = images(3, seed=4)
    want = model(pixels)
    assert torch.allclose(run_one(session(path), pixels), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("bits", BITS)
def test_the_sums_are_exact(bits: int, tmp_path: Path) -> None:
    """Read out of the file as they leave the kernel: the border, at the zero point's code, adds nothing to them."""
    model = quantized(bits)
    path, sites = written(model, "onnx", tmp_path)
    seen: dict[str, Tensor] = {}
    for module in model.modules():
        if isinstance(module, QuantLayer):
            module.register_forward_pre_hook(lambda m, a: seen.update({m.path: a[0]}))
    pixels = images(2, seed=5)
    model(pixels)
    site = sites[0]  # the only one whose input is the same in both, to the bit
    graph = ir.load(path)
    (node,) = [node for node in graph.graph if node.name == site.gemm]
    graph.graph.outputs[:] = [node.outputs[0]]
    sums = tmp_path / "sums.onnx"
    ir.save(graph, sums)
    layer = model.get_submodule(site.path)
    assert isinstance(layer, QuantLayer)
    codes = layer.grid.quantize(seen[site.path]).double()
    exact = Kernel.convolve(layer.kernel, codes, layer.weight_q.double(), torch.zeros(16).double())  # type: ignore[arg-type]
    assert torch.equal(run_one(session(sums), pixels).double(), exact)


@pytest.mark.parametrize("bits", BITS)
def test_tensorrts_graph_gives_them_within_float16(bits: int, tmp_path: Path) -> None:
    """A value between two codes may become the other one. So the graph is held to what such values do to the reference: it
    lies no further from it than the reference on pixels rounded to float16."""
    model = quantized(bits)
    path, _ = written(model, "tensorrt-rtx", tmp_path)
    pixels = images(3, seed=4)
    want = model(pixels)
    floor = (model(pixels.half().float()) - want).norm()
    assert 0 < float((run_one(session(path), pixels).float() - want).norm()) < 1.5 * float(floor)


@pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("bits", BITS)
def test_tensorrt_rtx_compiles_them_to_int8(bits: int, tmp_path: Path) -> None:
    path, _ = written(quantized(bits), "tensorrt-rtx", tmp_path)
    plan = summarize(compiled(build_engine(path, package="tensorrt_rtx", compute_capabilities=("8.9",))))
    assert plan.conv.get("int8", 0) + plan.gemm.get("int8", 0) == N_CONVOLUTIONS
    assert sum(plan.conv.values()) + sum(plan.gemm.values()) == N_CONVOLUTIONS
