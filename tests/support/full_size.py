"""Full-size models with random weights, quantized without a search, and the files that are made of them.

What is tested on them is export, not calibration: weight ranges are the rows' least and largest values, input ranges those
of two images. Values do not change what a graph is made of, so one trace serves all bits, as in a comparison.

    python tests/support/full_size.py        writes the plans under tests/golden again, with the tensorrt_rtx that is installed
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from asked import asked
from msgspec import structs
from torch import Tensor, nn

from erq_export.backends.tensorrt import Engine, available, build_engine
from erq_export.calibrate.observers import activation_grid
from erq_export.calibrate.operands import softmax_grid
from erq_export.calibrate.setting import Setting
from erq_export.calibrate.solve.weight_grid import weight_grid
from erq_export.contract.bundle import Bundle, DataFingerprint
from erq_export.contract.manifest import Claims, GraphManifest
from erq_export.contract.quantized import QuantizedLayer, QuantizedOperand
from erq_export.contract.sites import OperandSite, Site
from erq_export.contract.spec import ModelSpec, Quantization
from erq_export.contract.targets import named
from erq_export.exporters.onnx.twin import half_graph
from erq_export.exporters.onnx.write import lowered, marker_graph, rebound, save
from erq_export.exporters.tensorrt.build import claims_broken, unfused
from erq_export.exporters.tensorrt.plan import attention_by_operator, compiled, plan_text, precision_by_node, summarize
from erq_export.models.loading import Loaded, load
from erq_export.models.rebuild import reference_model
from erq_export.validate.parity.check import check_parity
from erq_export.validate.parity.executed import FLOAT_GEMMS, INTEGER_GEMMS
from erq_export.validate.runners import OnnxRuntimeRunner, TorchRunner

BITS = ("w8a8", "w4a8", "w4a4", "w3a4")
ATTENTION = ("fp16", "int8")
TARGETS = ("onnx", "tensorrt-rtx")
CAPABILITIES = ("8.6", "12.0")
HALF_EPSILON = 2.0**-11  # the largest relative error of one rounding to float16
CALIBRATED_ON = DataFingerprint(n_images=2, names=("noise/0", "noise/1"), pixels_sha256="0" * 64)
GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_MODELS = ("vit_s", "swin_t")
GOLDEN_BITS = "w4a4"


def noise(n: int, *, seed: int = 0) -> Tensor:
    """n images of white noise, already preprocessed."""
    return torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


def random_model(name: str) -> Loaded:
    """Random weights; LayerNorms included, which timm starts at γ = 1, β = 0, and the trace would merge."""
    loaded, generator = load(ModelSpec(name=name, pretrained=False), seed=0), torch.Generator().manual_seed(0)
    for module in loaded.model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.copy_(torch.exp(0.2 * torch.randn(module.weight.shape, generator=generator)))
            module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
    return loaded


@dataclass(frozen=True)
class File:
    """One target's graph at some bits, with everything that it is compared with."""

    path: Path
    manifest: GraphManifest
    bundle: Bundle


@dataclass
class FullSize:
    """A float model, its input ranges, and the files made of it so far."""

    name: str
    folder: Path
    files: dict[tuple[str, str, str], File] = field(default_factory=dict)
    traces: dict[str, ir.Model] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)

    @cached_property
    def loaded(self) -> Loaded:
        return random_model(self.name)

    @cached_property
    def sites(self) -> dict[str, Site]:
        return {site.path: site for stage in self.loaded.stages for site in stage.sites}

    @cached_property
    def operands(self) -> dict[str, OperandSite]:
        return {site.path: site for stage in self.loaded.stages for site in stage.operands}

    @cached_property
    @torch.no_grad()
    def ranges(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Least and largest input of every site and operand."""
        found: dict[str, tuple[Tensor, Tensor]] = {}

        def hook(path: str) -> Callable[..., None]:
            return lambda _module, args: found.update({path: (args[0].min(), args[0].max())})

        watched = [*self.sites, *self.operands]
        handles = [self.loaded.model.get_submodule(p).register_forward_pre_hook(hook(p)) for p in watched]
        self.loaded.model(noise(2))
        for handle in handles:
            handle.remove()
        return found

    def markers(self, attention: str) -> ir.Model:
        """One trace for each setting of attention."""
        if attention not in self.traces:
            self.traces[attention] = marker_graph(self.bundle(GOLDEN_BITS, attention=attention))
        return self.traces[attention]

    def bundle(self, bits: str, **options: Any) -> Bundle:
        """Rounded to nearest on legal grids of these bits."""
        spec = asked(bits, TARGETS, method="rtn", **options)
        layers = {path: self._layer(site, spec) for path, site in self.sites.items()}
        operands = {} if spec.attention == "fp16" else {p: self._operand(s, spec) for p, s in self.operands.items()}
        own = tuple(f"{path}." for path in layers)
        state = self.loaded.model.state_dict()
        return Bundle(
            spec=spec,
            identity=self.loaded.identity,
            layers=layers,
            operands=operands,
            leftovers={name: t for name, t in state.items() if not name.startswith(own)},
            data=CALIBRATED_ON,
        )

    def _layer(self, site: Site, spec: Quantization) -> QuantizedLayer:
        linear = self.loaded.model.get_submodule(site.path)
        assert isinstance(linear, nn.Linear)
        weight, (lo, hi), a_bits = linear.weight.detach(), self.ranges[site.path], Setting.of(spec).act_bits(site)
        grid = weight_grid(weight, bits=spec.bits.w, rules=spec.rules, percentiles=(1.0,))
        return QuantizedLayer(
            weight_q=grid.quantize(weight).to(torch.int8),
            weight_scale=grid.scale[:, 0].contiguous(),
            weight_qmin=grid.qmin[:, 0].to(torch.int16),
            bias=torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach(),
            act=activation_grid(lo, hi, bits=a_bits, rules=spec.rules, per_channel=False),
            w_bits=spec.bits.w,
            a_bits=a_bits,
        )

    def _operand(self, site: OperandSite, spec: Quantization) -> QuantizedOperand:
        bits, (lo, hi) = Setting.of(spec).options.attention_bits, self.ranges[site.path]
        if site.role == "softmax":
            grid = softmax_grid(hi, bits=bits, rules=spec.rules)
        else:
            grid = activation_grid(lo, hi, bits=bits, rules=spec.rules, per_channel=False)
        return QuantizedOperand(grid=grid, bits=bits, role=site.role)

    def file(self, bits: str, target: str, *, attention: str = "fp16") -> File:
        """Lowered, saved, and past onnx's full check."""
        key = bits, target, attention
        if key not in self.files:
            bundle = self.bundle(bits, attention=attention)
            markers = rebound(self.markers(attention), bundle)
            assert markers is not None
            graph, manifest = lowered(markers, named(target), None)
            path = self.folder / f"{self.name}-{bits}-{attention}-{target}.onnx"
            save(graph, path)
            self.files[key] = File(path, manifest, bundle)
        return self.files[key]

    def engine(self, *, attention: str = "fp16") -> Engine:
        """One plan for both ends of the range of GPUs."""
        if attention not in self.engines:
            path = self.file(GOLDEN_BITS, "tensorrt-rtx", attention=attention).path
            self.engines[attention] = build_engine(path, package="tensorrt_rtx", compute_capabilities=CAPABILITIES)
        return self.engines[attention]


def golden(model: str, attention: str) -> Path:
    return GOLDEN / f"{model}-{GOLDEN_BITS}-{attention}.txt"


def golden_text(model: str, attention: str, engine: Engine) -> str:
    """What the builder compiled: who said so, the counts, one line per kernel."""
    counts = " ".join(f"{name}={n}" for name, n in structs.asdict(summarize(compiled(engine))).items())
    head = f"{model} {GOLDEN_BITS}, attention {attention}, tensorrt_rtx {engine.version}, for {', '.join(CAPABILITIES)}"
    return f"# {head}\n# {counts}\n{plan_text(compiled(engine))}"


needs_rtx = pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def check_layers(model: FullSize, bits: str, target: str, *, n_layers: int, n_attentions: int) -> None:
    """Levels 1 to 3 of parity on one image: codes and integer sums are equal in every layer, outputs up to rounding, the
    whole model up to its noise floor. On `onnx` the optimized graph has an integer product for every layer, and no other
    matrix product than the two of each attention."""
    file = model.file(bits, target)
    report = check_parity(
        reference_model(file.bundle), file.path, file.manifest, file.bundle.layers, noise(1, seed=3), draws=1
    )
    assert report.problems() == []
    assert len(report.layers) == report.weights.n_layers == n_layers
    assert sum(layer.codes.mismatches + layer.accumulators.mismatches for layer in report.layers) == 0
    assert file.manifest.claims == Claims(gemm={"int8": n_layers}, attention={named(target).carrier: n_attentions})
    if target == "onnx":
        assert set(report.executed.values()) <= INTEGER_GEMMS
        assert sum(n for op, n in report.ops.items() if op in INTEGER_GEMMS) == n_layers
        assert sum(n for op, n in report.ops.items() if op in FLOAT_GEMMS) == 2 * n_attentions


def check_batches(model: FullSize, bits: str, target: str) -> None:
    """Five images at once and one by one: to the bit, in one thread. Integer sums do not depend on the order; what is left
    in float works on rows of its own (LayerNorm, softmax, GELU) or on one image's heads (attention's products)."""
    runner, pixels = OnnxRuntimeRunner(model.file(bits, target).path, threads=1), noise(5, seed=7)
    together, alone = runner.logits(pixels), torch.cat([runner.logits(image[None]) for image in pixels])
    assert together.shape == (5, 1000)
    assert torch.equal(together, alone)
    assert (alone.std(0) > 0).all()  # five different images


def check_plan(model: FullSize, attention: str, *, n_layers: int, n_attentions: int) -> None:
    """Every claimed layer is an INT8 GEMM of the plan, nothing else is multiplied but one fused attention a block."""
    layers = compiled(model.engine(attention=attention))
    manifest = model.file(GOLDEN_BITS, "tensorrt-rtx", attention=attention).manifest
    fused = attention_by_operator(layers, manifest.attention_operators)
    assert claims_broken(manifest, layers, precision_by_node(layers), fused) == []
    assert unfused(manifest, fused) == []
    plan, precision = summarize(layers), "float16" if attention == "fp16" else "int8"
    assert (plan.gemm, plan.conv) == ({"int8": n_layers}, {})
    assert list(fused.values()) == [precision] * n_attentions
    assert plan.attention == {precision: n_attentions}


def check_twin(model: FullSize, *, n_layers: int, n_attentions: int) -> None:
    """The float model in FP16: logits within a few roundings to float16 of float32's, and a plan of as many FP16 products as
    layers, every attention fused, nothing in integers."""
    graph, manifest = half_graph(model.loaded.model, model.loaded.identity.preprocess.input_size, named("tensorrt-rtx"))
    path = model.folder / f"{model.name}-twin.onnx"
    save(graph, path)
    pixels = noise(2, seed=5)
    exact = TorchRunner(model.loaded.model, torch.device("cpu")).logits(pixels)
    error = float((OnnxRuntimeRunner(path).logits(pixels) - exact).norm() / exact.norm())
    assert HALF_EPSILON / 10 < error < 4 * HALF_EPSILON
    plan = summarize(compiled(build_engine(path, package="tensorrt_rtx", compute_capabilities=CAPABILITIES)))
    assert (plan.gemm, plan.attention) == ({"float16": n_layers}, {"float16": n_attentions})
    assert manifest.claims == Claims(gemm=plan.gemm, attention=plan.attention)


def check_golden(model: FullSize, attention: str) -> None:
    """The whole plan, kernel by kernel, is the committed one; another version of the builder may have another."""
    kept, now = golden(model.name, attention).read_text(encoding="utf-8"), model.engine(attention=attention)
    if f"tensorrt_rtx {now.version}," not in kept.splitlines()[0]:
        pytest.skip(f"kept for another builder: {kept.splitlines()[0]}")
    assert golden_text(model.name, attention, now) == kept


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        for model in GOLDEN_MODELS:
            it = FullSize(model, Path(made))
            for attention in ATTENTION:
                text = golden_text(model, attention, it.engine(attention=attention))
                golden(model, attention).write_text(text, encoding="utf-8")
