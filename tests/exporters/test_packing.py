"""Packed weights are the same integers in half the bytes; sizes are said exactly; no float copy lies beside them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from tiny_swin import SIZE, tiny_swin
from tiny_vit import TINY, calibrated_bundle, random_images, tiny_spec, tiny_vit

from erq_export.backends.tensorrt import available, build_engine
from erq_export.calibrate.solve.weight_grid import weight_grid
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import EngineError, SpecError
from erq_export.contract.records import choices, hints, plain_of
from erq_export.contract.spec import DeploySpec
from erq_export.contract.targets import TARGETS, grid_rules
from erq_export.exporters.lint.check import check
from erq_export.exporters.onnx.packing import packable
from erq_export.exporters.onnx.sizes import float_bytes
from erq_export.exporters.onnx.write import float_graph, lowered, marker_graph, rebound, save
from erq_export.exporters.tensorrt.plan import compiled, summarize
from erq_export.flow.job import resolve
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import reference_model
from erq_export.validate.parity.check import check_parity
from erq_export.validate.parity.executed import float_matmuls_among_sites
from erq_export.validate.runners import OnnxRuntimeRunner

PACKS = choices(hints(DeploySpec)["pack"])
BOTH = ("onnx", "tensorrt-rtx")
BITS = ("w4a4", "w3a4", "w2a8")
# What a file needs beside its tensors: a node with its names, types and shapes, an initializer's name and header.
PER_NODE, PER_INITIALIZER, HEADER = 700, 120, 2000


def model(family: str) -> Loaded:
    """With biases, which timm starts at 0: the trace would merge equal ones."""
    loaded = tiny_vit(embed_dim=64) if family == "vit" else tiny_swin()
    generator = torch.Generator().manual_seed(0)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
    return loaded


@pytest.fixture(scope="module", params=["vit", "swin"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundles(family: str) -> dict[str, Bundle]:
    """Calibrated for packing."""
    images = random_images(size=16 if family == "vit" else SIZE)
    specs = {bits: tiny_spec(bits, BOTH, method="rtn", pack="int4") for bits in BITS}
    return {bits: calibrated_bundle(model(family), images, spec) for bits, spec in specs.items()}


@pytest.fixture(scope="module")
def markers(bundles: dict[str, Bundle]) -> ir.Model:
    return marker_graph(bundles[BITS[0]])


@pytest.fixture(scope="module", params=BITS)
def packed(request: pytest.FixtureRequest, bundles: dict[str, Bundle], markers: ir.Model) -> tuple[Bundle, ir.Model]:
    """A bundle and its marker graph."""
    again = rebound(markers, bundles[request.param])
    assert again is not None
    return bundles[request.param], again


@pytest.fixture(scope="module")
def files(packed: tuple[Bundle, ir.Model], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """(target, pack) → (path, manifest)."""
    folder, made = tmp_path_factory.mktemp("packed"), {}
    for target in BOTH:
        for pack in PACKS:
            graph, manifest = lowered(packed[1], TARGETS[target], None, pack=pack)
            path = folder / f"{target}-{pack}.onnx"
            save(graph, path)
            made[target, pack] = path, manifest
    return made


def tensors(path: Path) -> Iterator[onnx.TensorProto]:
    yield from onnx.load(path).graph.initializer


def overhead(path: Path) -> int:
    graph = onnx.load(path).graph
    return HEADER + PER_NODE * len(graph.node) + PER_INITIALIZER * len(graph.initializer)


@pytest.mark.parametrize("target", BOTH)
def test_packed_integers_are_the_bundles(packed: tuple[Bundle, ir.Model], files: Any, target: str) -> None:
    """Every layer with an even number of outputs lies in INT4; the heads of 5 classes stay int8."""
    path, manifest = files[target, "int4"]
    held = {t.name: t for t in tensors(path)}
    for site in manifest.sites:
        layer, tensor = packed[0].layers[site.path], held[site.weight]
        n, k = layer.weight_q.shape
        int4 = n % 2 == 0
        assert (site.weight_container, tensor.data_type) == (
            ("int4", onnx.TensorProto.INT4) if int4 else ("int8", onnx.TensorProto.INT8)
        )
        assert len(tensor.raw_data) == (n * k // 2 if int4 else n * k)
        assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), layer.weight_q.numpy().T)
    assert {site.weight_container for site in manifest.sites} == {"int4", "int8"}


@pytest.mark.parametrize("target", BOTH)
def test_both_forms_compute_the_same_to_the_bit(files: Any, family: str, target: str) -> None:
    pixels = random_images(3, seed=5, size=16 if family == "vit" else SIZE).pixels
    logits = [OnnxRuntimeRunner(files[target, pack][0], threads=1).logits(pixels) for pack in PACKS]
    assert torch.equal(*logits)
    assert logits[0].std() > 0


@pytest.mark.parametrize("target", BOTH)
def test_packed_files_are_the_reference(packed: tuple[Bundle, ir.Model], files: Any, family: str, target: str) -> None:
    pixels = random_images(2, seed=5, size=16 if family == "vit" else SIZE).pixels
    path, manifest = files[target, "int4"]
    report = check_parity(reference_model(packed[0]), path, manifest, packed[0].layers, pixels, draws=1)
    assert report.problems() == []
    assert report.weights.n_layers == len(packed[0].layers)


@pytest.mark.parametrize("pack", PACKS)
def test_onnx_runtime_multiplies_in_integers_whatever_the_packing(files: Any, pack: str) -> None:
    assert float_matmuls_among_sites(*files["onnx", pack]) == []


@pytest.mark.parametrize("target", BOTH)
def test_the_linter_has_nothing_against_packed_files(files: Any, target: str) -> None:
    assert check(files[target, "int4"][0], target).findings == ()


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("target", BOTH)
def test_no_file_holds_a_float_tensor_of_a_weights_size(
    packed: tuple[Bundle, ir.Model], files: Any, target: str, pack: str
) -> None:
    """Apart from the tokens' positions and the windows' biases, which are no weights of a quantized layer."""
    sizes = {layer.weight_q.numel() for layer in packed[0].layers.values()}
    kept = {tuple(t.shape) for t in packed[0].leftovers.values()}
    floats = [t for t in tensors(files[target, pack][0]) if t.data_type in (onnx.TensorProto.FLOAT, 10)]
    assert [t.name for t in floats if np.prod(t.dims) in sizes and tuple(t.dims) not in kept] == []
    held = {t.name for t in tensors(files[target, pack][0]) if t.data_type in (onnx.TensorProto.INT8, 22)}
    assert {f"{path}.weight_q" for path in packed[0].layers} <= held


@pytest.mark.parametrize("target", BOTH)
def test_sizes_are_those_of_the_files(files: Any, target: str) -> None:
    """What is computed for one form from the other's graph is what its file takes, besides names and nodes."""
    said = [plain_of(files[target, pack][1].bytes) for pack in PACKS]
    assert {k: v for k, v in said[0].items() if k != "written"} == {k: v for k, v in said[1].items() if k != "written"}
    for pack, bytes_ in zip(PACKS, said, strict=True):
        path, _ = files[target, pack]
        assert bytes_["written"] == bytes_[pack]
        assert bytes_[pack] == sum(len(t.raw_data) or 4 * len(t.int32_data) for t in tensors(path))
        assert 0 < path.stat().st_size - bytes_[pack] < overhead(path)
    assert said[0]["int4"] < said[0]["int8"] < said[0]["float32"]


def test_the_float32_size_is_that_of_the_float_models_file(markers: ir.Model, family: str, tmp_path: Path) -> None:
    loaded = model(family)
    path = tmp_path / "float.onnx"
    save(float_graph(loaded.model, loaded.identity.preprocess.input_size), path)
    held = sum(len(t.raw_data) for t in tensors(path))
    # Patch merging has no bias in timm, and one in every deployed layer: 64 outputs of the tiny Swin.
    more = 4 * 64 if family == "swin" else 0
    assert float_bytes(markers) - more == pytest.approx(held, abs=64)  # a few integers of shapes


@pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_tensorrt_keeps_its_integer_products_and_adds_a_kernel_a_layer(files: Any) -> None:
    plans = {}
    for pack in PACKS:
        path, manifest = files["tensorrt-rtx", pack]
        plans[pack] = summarize(compiled(build_engine(path, package="tensorrt_rtx", compute_capabilities=("8.9",))))
        assert plans[pack].gemm == {"int8": len(manifest.sites)}
    n_packed = sum(site.weight_container == "int4" for site in files["tensorrt-rtx", "int4"][1].sites)
    assert plans["int4"].kernels - plans["int8"].kernels == n_packed


def test_four_bit_grids_of_a_packed_run_are_symmetric_and_narrower_ones_fit_as_they_are() -> None:
    W = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).exp()  # all positive: codes 0 … 15 otherwise
    free, bound = grid_rules(BOTH), grid_rules(BOTH, int4_weights=True)
    assert int(weight_grid(W, bits=4, rules=free).qmax.max()) == 15
    grid = weight_grid(W, bits=4, rules=bound)
    assert (grid.qmin == -8).all()
    assert (grid.qmax == 7).all()
    for bits in (2, 3):
        for sign in (-1, 1):
            grids = [weight_grid(sign * W, bits=bits, rules=rules) for rules in (free, bound)]
            assert torch.equal(grids[0].scale, grids[1].scale)
            assert grids[1].qmin.min() >= -8
            assert grids[1].qmax.max() <= 7


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(SpecError, match="w5a8: 5 bits") as caught:
        resolve({"name": TINY, "bits": "w5a8", "targets": BOTH, "pack": "int4"}, typed=True)
    assert "--pack int8" in caught.value.fix
    with pytest.raises(SpecError, match="--pack 'int3'"):
        tiny_spec("w3a8", BOTH, pack="int3")


def test_codes_outside_int4_name_the_layer() -> None:
    """What was calibrated for int8 has codes of its own range."""
    bundle = calibrated_bundle(tiny_vit(), random_images(), tiny_spec("w4a4", BOTH))
    outside = [path for path, layer in bundle.layers.items() if layer.weight_q.min() < -8 or layer.weight_q.max() > 7]
    first = next(path for path in outside if packable(len(bundle.layers[path].bias), 4))
    with pytest.raises(EngineError, match=rf"{first}: weight codes .* do not fit INT4") as caught:
        lowered(marker_graph(bundle), TARGETS["onnx"], None, pack="int4")
    assert "--pack int4" in caught.value.fix
