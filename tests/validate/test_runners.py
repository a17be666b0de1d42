"""Runners: the same logits from PyTorch and from ONNX Runtime, and a plain word where they cannot run."""

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from erq_export.backends import onnxruntime as backend
from erq_export.backends.machine import processor, sums_may_saturate
from erq_export.backends.onnxruntime import EXACT_SUMS, run_one, session, session_options
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import DataError, MachineError, OutputError
from erq_export.contract.targets import named
from erq_export.exporters.onnx.trace import trace
from erq_export.exporters.onnx.write import lowered, marker_graph, save
from erq_export.flow.stages import origin
from erq_export.validate.openvino_runner import OpenVinoRunner
from erq_export.validate.runners import OnnxRuntimeRunner, Runner, TorchRunner, compiled

SIZE = (3, 8, 8)
CPU = torch.device("cpu")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(nn.functional.gelu(self.first(x.flatten(2)))).mean(1))  # (B, 4)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def graph(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runners") / "small.onnx"
    ir.save(trace(model, SIZE), path)
    return path


def images(n: int) -> Tensor:
    return torch.randn(n, *SIZE, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("optimize", [True, False])
def test_runners_agree_on_any_batch(model: nn.Module, graph: Path, n: int, optimize: bool) -> None:
    runners: list[Runner] = [
        TorchRunner(model, CPU, name="a"),
        OnnxRuntimeRunner(graph, threads=1, optimize=optimize, name="b"),
    ]
    want = model(images(n))
    for runner in runners:
        got = runner.logits(images(n))
        assert (got.shape, got.dtype, got.device) == ((n, 4), torch.float32, CPU)
        torch.testing.assert_close(got, want, rtol=0, atol=64 * 2**-24)  # logits are about 1; sums of 64
    assert [runner.name for runner in runners] == ["a", "b"]


def test_several_outputs_lie_side_by_side(tmp_path: Path) -> None:
    """As a detector's body has them; where one is expected, several are refused."""

    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :2] + 1, x.flatten(1)[:, :5] * 2  # (B, 2, 8, 8), (B, 5)

    path, x = tmp_path / "two.onnx", images(3)
    ir.save(trace(Two(), SIZE, gives=("first", "second")), path)
    want = torch.cat([(x[:, :2] + 1).flatten(1), x.flatten(1)[:, :5] * 2], 1)
    runners: list[Runner] = [TorchRunner(Two(), CPU), OnnxRuntimeRunner(path, threads=1, n_outputs=2)]
    if importlib.util.find_spec("openvino"):
        runners.append(OpenVinoRunner(path, threads=1, n_outputs=2))
    for runner in runners:
        assert torch.equal(runner.logits(x), want)
        runner.prepared(x)()
    with pytest.raises(DataError, match="1 inputs and 2 outputs, not one of each"):
        OnnxRuntimeRunner(path, threads=1)


def test_a_runner_takes_pixels_of_any_float_type_and_layout(graph: Path) -> None:
    runner, pixels = OnnxRuntimeRunner(graph, threads=1), images(2)
    turned = pixels.transpose(2, 3).contiguous().transpose(2, 3)  # same values, other strides
    assert torch.equal(runner.logits(turned.double()), runner.logits(pixels))


def test_torch_runs_without_gradients_and_without_dropout() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Dropout(0.5)).train()
    runner = TorchRunner(model, CPU)
    got = runner.logits(images(2))
    assert torch.equal(got, runner.logits(images(2)))
    assert not got.requires_grad


def test_threads_are_the_sessions_own(graph: Path) -> None:
    assert session(graph, threads=1).get_session_options().intra_op_num_threads == 1
    assert session(graph).get_session_options().intra_op_num_threads == 0  # ONNX Runtime's choice


def test_the_optimized_copy_is_what_runs(graph: Path, tmp_path: Path) -> None:
    def ops(*, optimize: bool) -> list[str]:
        copy = tmp_path / f"{optimize}.onnx"
        session(graph, optimize=optimize, optimized_copy=copy)
        return [node.op_type for node in ir.load(copy).graph]

    assert len(ops(optimize=True)) < len(ops(optimize=False))


def test_a_missing_graph_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no graph"):
        OnnxRuntimeRunner(tmp_path / "model.onnx")


def test_a_damaged_graph_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(DataError, match=r"ONNX Runtime refuses .*model\.onnx"):
        OnnxRuntimeRunner(tmp_path / "model.onnx")


def test_an_absent_provider_is_the_machines_lack(graph: Path) -> None:
    with pytest.raises(MachineError, match="has no NoSuchProvider") as caught:
        OnnxRuntimeRunner(graph, providers=["NoSuchProvider"])
    assert "CPUExecutionProvider" in caught.value.fix


def test_importing_the_room_loads_no_onnxruntime() -> None:
    code = (
        "import sys, erq_export.validate.parity.check, erq_export.validate.latency;"
        "sys.exit('onnxruntime' in sys.modules and 'onnxruntime is loaded')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_processor_is_named_with_its_telling_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    core = "model name\t: Some CPU @ 2GHz\nflags\t\t: fpu amx_int8 avx512_vnni avx2 avx512_vnni_not\n"
    cpuinfo.write_text(f"processor\t: 0\n{core}\nprocessor\t: 1\n{core}")
    assert processor(cpuinfo) == "Some CPU @ 2GHz (avx2 avx512_vnni amx_int8)"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert processor(cpuinfo).endswith("(asimddp)")
    assert processor(tmp_path / "absent").endswith("(no flags known)")


@pytest.mark.parametrize(
    ("flags", "may"),
    [("avx2", True), ("avx2 avx512f", True), ("avx2 avx_vnni", False), ("avx512f avx512_vnni", False), (None, True)],
)
def test_exact_sums_are_asked_for_only_where_sums_may_saturate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, may: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"model name\t: Some CPU\nflags\t\t: {flags}\n")
    assert sums_may_saturate(cpuinfo) is may
    monkeypatch.setattr("erq_export.backends.onnxruntime.sums_may_saturate", lambda: may)
    options = session_options(threads=1)
    if may:
        assert options.get_session_config_entry(EXACT_SUMS) == "1"
    else:
        with pytest.raises(RuntimeError):  # ONNX Runtime's way to say that an entry is not set
            options.get_session_config_entry(EXACT_SUMS)


def test_full_range_sums_are_exact_on_any_cpu() -> None:
    """255 · 127 twice is more than 16 bits hold: kernels without VNNI would saturate on it."""
    info, k, n = onnx.helper.make_tensor_value_info, 64, 8
    w = np.where(np.arange(k * n).reshape(k, n) % 3, 127, -128).astype(np.int8)
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "w": w,
        "s": np.ones(n, np.float32),
        "z": np.zeros(n, np.int8),
    }
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["x_hat"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "s", "z"], ["w_hat"], axis=1),
        onnx.helper.make_node("MatMul", ["x_hat", "w_hat"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "full_range",
        [info("x", onnx.TensorProto.FLOAT, [None, 4, k])],
        [info("y", onnx.TensorProto.FLOAT, [None, 4, n])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    x = torch.full((2, 4, k), 255.0)
    assert torch.equal(run_one(session(model.SerializeToString()), x), x @ torch.from_numpy(w).float())


@pytest.mark.parametrize("n", [1, 3])
def test_a_prepared_run_reads_the_pixels_it_was_given_and_reuses_its_buffers(
    model: nn.Module, graph: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    runner, seen = OnnxRuntimeRunner(graph, threads=1), []
    bind = backend.onnxruntime().OrtValue.ortvalue_from_numpy

    def noted(array: np.ndarray, *device: object) -> object:
        seen.append(bind(array, *device))
        return seen[-1]

    monkeypatch.setattr(backend.onnxruntime().OrtValue, "ortvalue_from_numpy", noted)
    run = runner.prepared(images(n))
    given, found = seen
    for _ in range(2):
        run()
        runner.synchronize()
    assert len(seen) == 2
    assert np.array_equal(given.numpy(), images(n).numpy())
    torch.testing.assert_close(torch.from_numpy(found.numpy()), model(images(n)), rtol=0, atol=64 * 2**-24)


def test_a_torch_runner_takes_its_threads_when_it_runs(model: nn.Module) -> None:
    before = torch.get_num_threads()
    try:
        runner = TorchRunner(model, CPU, threads=before + 1)
        assert torch.get_num_threads() == before
        runner.prepared(images(1))()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_logits() -> None:
    model = nn.Sequential(nn.Flatten(), nn.ReLU()).eval()
    assert torch.equal(compiled(copy.deepcopy(model), CPU, name="compiled").logits(images(2)), model(images(2)))


def test_openvino_runs_the_same_graph(model: nn.Module, graph: Path) -> None:
    pytest.importorskip("openvino")
    runner: Runner = OpenVinoRunner(graph, threads=1)
    for n in (2, 1):
        torch.testing.assert_close(runner.logits(images(n)), model(images(n)), rtol=0, atol=64 * 2**-24)
    runner.prepared(images(3))()
    assert torch.equal(runner.logits(images(3)), runner.logits(images(3)))
    assert set(runner.products) == {"f32"}  # type: ignore[attr-defined]


def test_openvino_refuses_what_is_no_graph_in_words(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(DataError, match="OpenVINO refuses"):
        OpenVinoRunner(tmp_path / "model.onnx")


def test_openvino_runs_a_quantized_graph_in_integers_and_gives_onnxruntimes_logits(
    bundle: Bundle, tmp_path: Path
) -> None:
    """Every product is reported u8; codes are equal, so logits differ by the order of float sums alone."""
    pytest.importorskip("openvino")
    lowered_graph, _ = lowered(marker_graph(bundle.deployed()), named("onnx"), origin(bundle, "0" * 64), pack="int8")
    save(lowered_graph, tmp_path / "model.onnx")
    theirs, ours = OpenVinoRunner(tmp_path / "model.onnx", threads=1), OnnxRuntimeRunner(tmp_path / "model.onnx")
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert theirs.products["u8"] >= len(bundle.layers)
    torch.testing.assert_close(theirs.logits(pixels), ours.logits(pixels), rtol=0, atol=2e-6)


def test_without_openvino_its_installation_is_named(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MachineError, match="openvino cannot be imported") as caught:
        OpenVinoRunner(graph)
    assert "erq-export[openvino]" in caught.value.fix
