"""Runners: the same logits from PyTorch and from ONNX Runtime, and a plain word where they cannot run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from erq_export.backends.machine import processor, sums_may_saturate
from erq_export.backends.onnxruntime import EXACT_SUMS, run_one, session, session_options
from erq_export.contract.errors import DataError, MachineError, OutputError
from erq_export.exporters.onnx.trace import trace
from erq_export.validate.runners import OnnxRuntimeRunner, Runner, TorchRunner

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
