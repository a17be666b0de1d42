"""Real engines, compiled ahead of time without a GPU: what the builder runs in INT8, and what the adapter refuses."""

import importlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vit_graph import DEPTH, DIM, LINEARS, ViT

from erq_export.backends.tensorrt import Engine, available, build_engine, require
from erq_export.backends.tensorrt import package as package_module
from erq_export.backends.watch import Watch
from erq_export.contract.errors import EngineError, MachineError, SpecError
from erq_export.exporters.tensorrt.plan import compiled, plan_text, precision_by_node, summarize

needs_rtx = pytest.mark.skipif(available("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def rtx(path: Path, **options: Any) -> Engine:
    return build_engine(path, package="tensorrt_rtx", **{"compute_capabilities": ("8.9",), **options})


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ViT().save(tmp_path_factory.mktemp("onnx") / "vit.onnx")


@pytest.fixture(scope="module")
def engine(vit: Path) -> Engine:
    return rtx(vit)


@needs_rtx
def test_every_quantized_layer_runs_in_int8(engine: Engine) -> None:
    summary = summarize(compiled(engine))
    assert summary.gemm == {"int8": len(LINEARS)}
    assert summary.attention == {"float16": DEPTH}
    assert precision_by_node(compiled(engine)) == dict.fromkeys(LINEARS, "int8")


@needs_rtx
def test_the_floating_graph_runs_none_in_int8(tmp_path: Path) -> None:
    layers = compiled(rtx(ViT("float").save(tmp_path / "float.onnx")))
    summary = summarize(layers)
    assert (summary.gemm, summary.attention) == ({"float16": len(LINEARS)}, {"float16": DEPTH})
    assert precision_by_node(layers) == dict.fromkeys(LINEARS, "float16")


@needs_rtx
def test_the_silent_fallback_of_a_per_channel_qkv_is_seen(tmp_path: Path) -> None:
    precisions = precision_by_node(compiled(rtx(ViT("channel").save(tmp_path / "channel.onnx"))))
    assert [path for path, precision in precisions.items() if precision == "float16"] == [
        f"blocks.{i}.attn.qkv" for i in range(DEPTH)
    ]


@needs_rtx
def test_clipping_to_four_bits_keeps_int8(tmp_path: Path) -> None:
    summary = summarize(compiled(rtx(ViT(bits=4).save(tmp_path / "clip.onnx"))))
    assert (summary.gemm, summary.attention) == ({"int8": len(LINEARS)}, {"float16": DEPTH})


@needs_rtx
def test_one_plan_serves_several_compute_capabilities(vit: Path, engine: Engine) -> None:
    several = rtx(vit, compute_capabilities=("8.6", "8.9", "12.0"))
    assert several.compute_capabilities == ("8.6", "8.9", "12.0")
    assert sum("Layers:\n" in message for _, message in several.records) == 1
    assert plan_text(compiled(several)) == plan_text(compiled(engine))


@needs_rtx
def test_an_engine_says_where_it_comes_from(engine: Engine) -> None:
    assert (engine.package, engine.version) == ("tensorrt_rtx", available("tensorrt_rtx"))
    assert engine.seconds > 0
    assert len(engine.blob) > sum(DIM * n for n in (3 * DIM, DIM, 4 * DIM, 4 * DIM)) * DEPTH  # a byte per weight
    assert "[VERBOSE] Layers:" in engine.log


@needs_rtx
def test_the_batch_is_what_was_asked_for(vit: Path, engine: Engine, tmp_path: Path) -> None:
    gemm = next(layer for layer in compiled(engine) if "head/MatMul" in layer.nodes and layer.role == "gemm")
    assert gemm.inputs == (("i8", (-1, DIM)),)
    fixed = rtx(ViT().save(tmp_path / "fixed.onnx", batch=4))
    assert (("i8", (4, DIM)),) in {layer.inputs for layer in compiled(fixed)}
    assert "MinShape: [2,3,32,32], OptShape: [3,3,32,32], MaxShape: [5,3,32,32]" in rtx(vit, batch=(2, 3, 5)).log


@needs_rtx
def test_an_impossible_batch_is_refused(vit: Path) -> None:
    for batch in ((8, 1, 32), (0, 1, 2), (1, 8, 4)):
        with pytest.raises(SpecError, match="batch="):
            rtx(vit, batch=batch)


@needs_rtx
def test_only_the_batch_may_be_dynamic(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"'image'.*only its first dim") as caught:
        rtx(ViT().save(tmp_path / "sizes.onnx", image="height"))
    assert "fixed image size" in caught.value.fix


@needs_rtx
def test_a_uint8_zero_point_is_refused(tmp_path: Path) -> None:
    """The parser would read codes 128 … 255 as negative numbers, and only warn."""
    with pytest.raises(EngineError, match=r"retype.*node head/Quantize.*INT8") as caught:
        rtx(ViT(zero_type=np.uint8).save(tmp_path / "uint8.onnx"))
    assert caught.value.exit_code == 6
    assert "int8 zero point" in caught.value.fix


@needs_rtx
def test_a_parse_error_names_the_node(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot parse.*head/Quantize \(QuantizeLinear\): .*zero point"):
        rtx(ViT(zero_point=3).save(tmp_path / "shifted.onnx"))
    with pytest.raises(EngineError, match=r"nowhere\.onnx"):
        rtx(tmp_path / "nowhere.onnx")


@needs_rtx
def test_a_failed_build_gives_the_builders_reason(vit: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot build.*workspace") as caught:
        rtx(vit, workspace_mib=0)
    assert "workspace_mib=0" in caught.value.fix
    assert "Cuda" not in caught.value.problem


@needs_rtx
def test_an_unknown_capability_names_the_known_ones(vit: Path) -> None:
    for name in ("9.0", "SM89", "89", "8.9 "):
        with pytest.raises(SpecError, match=r"8\.6, 8\.9, 12\.0") as caught:
            rtx(vit, compute_capabilities=("8.9", name))
        assert f"compute capability {name}:" in caught.value.problem


@needs_rtx
def test_progress_is_reported_and_a_False_cancels(vit: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    rtx(vit, on_progress=lambda *step: steps.append(step))
    assert all(0 <= done <= total for _, done, total in steps)
    assert any(done == total > 1 for _, done, total in steps)
    seen = itertools.count()
    with pytest.raises(EngineError, match="cancelled"):
        rtx(vit, on_progress=lambda *_: next(seen) < 5)
    assert next(seen) == 6  # not asked again


@needs_rtx
def test_a_cancelled_build_is_told_to_stop() -> None:
    watch = Watch(lambda *step: step[1] < 2)
    monitor = watch.monitor(require("tensorrt_rtx"))
    monitor.phase_start("compile", None, 5)
    assert [monitor.step_complete("compile", step) for step in range(3)] == [True, False, False]
    assert watch.stopped.is_set()


@needs_rtx
def test_an_error_in_on_progress_arrives(vit: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        rtx(vit, on_progress=lambda *_: 1 // 0)


@needs_rtx
def test_ctrl_c_arrives(vit: Path) -> None:
    """In a process of its own: the interrupt goes to the main thread while the builder is in the middle of a phase."""
    script = f"""
import os, pathlib, signal, time
from erq_export.backends.tensorrt import build_engine
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off
steps = []
def interrupt(*step):
    steps.append(step)
    if len(steps) == 20:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
try:
    build_engine(pathlib.Path({str(vit)!r}), package="tensorrt_rtx", on_progress=interrupt)
except KeyboardInterrupt:
    print("interrupted after", len(steps))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("interrupted after 20\n", "")


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_a_missing_package_is_the_machines_fault(package: str, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert available(package) is None
    with pytest.raises(MachineError, match=f"{package} cannot be imported") as caught:
        require(package)
    assert caught.value.exit_code == 3
    assert "tensorrt-rtx" in caught.value.fix


@needs_rtx
def test_tensorrt_itself_needs_a_gpu(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RTX stands in for tensorrt: the adapter asks what a package has, never what it is called."""
    monkeypatch.setitem(sys.modules, "tensorrt", importlib.import_module("tensorrt_rtx"))
    monkeypatch.setattr(package_module, "cuda_device_count", lambda: 0)
    with pytest.raises(MachineError, match="GPU") as caught:
        build_engine(vit, package="tensorrt")
    assert "--to tensorrt-rtx" in caught.value.fix
    monkeypatch.setattr(package_module, "cuda_device_count", lambda: 1)
    assert summarize(compiled(build_engine(vit, package="tensorrt"))).gemm["int8"] == len(LINEARS)
