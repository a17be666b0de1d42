"""What each package is asked for while it builds, loads and runs: recorded by packages that have what 10, 11 and RTX have.

Not a line of this has run on a GPU: what is shown is the order of calls, and that none is made that a package lacks.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_tensorrt import FakeStream, Surface, enumeration, expected, fake, images

from erq_export.backends.tensorrt import build_engine
from erq_export.backends.tensorrt import package as package_module
from erq_export.backends.tensorrt.execute import LoadedEngine
from erq_export.contract.errors import EngineError, MachineError, SpecError
from erq_export.validate.engine_runner import EngineRunner

SURFACES: tuple[Surface, ...] = ("10", "11", "rtx")
EVERY = pytest.mark.parametrize("surface", SURFACES)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(surface: Surface, **faults: Any) -> Any:
        trt = fake(surface, **faults)
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        monkeypatch.setattr(package_module, "cuda_device_count", lambda: 1)
        return trt

    return call


def built(trt: Any, **asked: Any) -> Any:
    return build_engine(Path("model.onnx"), package=trt.__name__, **asked)


def loaded(trt: Any, *, captures: bool = True, **asked: Any) -> LoadedEngine:
    stream = FakeStream(trt.calls, captures=captures)
    return LoadedEngine(b"blob", package=trt.__name__, device=torch.device("cpu"), stream=stream, **asked)


def names(trt: Any) -> list[str]:
    return [call[0] for call in trt.calls]


# ---------------------------------------------------------------- build


@EVERY
def test_a_profile_and_the_workspace_are_what_was_asked(surface: Surface, install: Any) -> None:
    trt = install(surface)
    assert built(trt, batch=(2, 4, 6), workspace_mib=64).blob == b"engine"
    profile = next(call for call in trt.calls if call[0] == "add_optimization_profile")
    assert profile == ("add_optimization_profile", "pixels", (2, 3, 2, 2), (4, 3, 2, 2), (6, 3, 2, 2))
    assert ("set_memory_pool_limit", "WORKSPACE", 64 * 2**20) in trt.calls
    assert ("profiling_verbosity", "DETAILED") in trt.calls
    assert names(trt).index("parse_from_file") < names(trt).index("build_serialized_network")


@pytest.mark.parametrize(("surface", "flags"), [("10", 2), ("11", 0), ("rtx", 2)])
def test_the_network_is_strongly_typed_wherever_that_is_a_choice(surface: Surface, flags: int, install: Any) -> None:
    trt = install(surface)
    built(trt)
    assert ("create_network", flags) in trt.calls


@pytest.mark.parametrize("surface", ["10", "11"])
def test_a_package_that_times_kernels_goes_on_from_what_was_timed(surface: Surface, install: Any) -> None:
    trt = install(surface)
    first = built(trt)
    assert first.timing_cache == b"+"
    again = built(trt, timing_cache=b"timed before")
    assert ("create_timing_cache", b"timed before") in trt.calls
    assert ("set_timing_cache", False) in trt.calls  # of another GPU or version: refused, not taken
    assert (again.timing_cache, again.flags) == (b"timed before+", ("timing_cache",))


def test_timings_that_do_not_fit_are_left_out(install: Any) -> None:
    assert built(install("10", refuses="set_timing_cache"), timing_cache=b"of another GPU").flags == ()


def test_ahead_of_time_nothing_is_timed(install: Any) -> None:
    """TensorRT-RTX has the functions, and calling one makes its build ask for a GPU."""
    trt = install("rtx")
    engine = built(trt, compute_capabilities=("8.9", "12.0"), timing_cache=b"x")
    assert (engine.timing_cache, engine.flags) == (None, ())
    assert not any("timing" in name for name in names(trt))
    asked = [call for call in trt.calls if "compute_capab" in call[0]]
    assert asked == [
        ("num_compute_capabilities", 2),
        ("set_compute_capability", "SM89", 0),
        ("set_compute_capability", "SM120", 1),
    ]


@pytest.mark.parametrize("surface", ["10", "11"])
def test_engines_for_other_gpus_and_versions(surface: Surface, install: Any) -> None:
    for hardware, level in (("ampere", "AMPERE_PLUS"), ("capability", "SAME_COMPUTE_CAPABILITY")):
        trt = install(surface)
        engine = built(trt, hardware=hardware, any_version=True)
        assert ("hardware_compatibility_level", level) in trt.calls
        assert ("set_flag", "VERSION_COMPATIBLE") in trt.calls
        assert engine.flags == (f"hardware={hardware}", "any_version", "timing_cache")
    trt = install(surface)
    built(trt)
    assert not {"hardware_compatibility_level", "set_flag"} & set(names(trt))


@pytest.mark.parametrize("asked", [{"hardware": "ampere"}, {"hardware": "capability"}, {"any_version": True}])
def test_what_a_package_lacks_is_refused_before_any_work(asked: dict[str, Any], install: Any) -> None:
    trt = install("rtx")
    with pytest.raises(SpecError, match=r"--hardware|--any-version") as caught:
        built(trt, **asked)
    assert "--capability" in caught.value.fix
    assert trt.calls == []
    trt = install("10")
    trt.HardwareCompatibilityLevel = enumeration("HardwareCompatibilityLevel", "NONE")
    trt.BuilderFlag = enumeration("BuilderFlag", "TF32")
    with pytest.raises(SpecError, match="does not have it"):
        built(trt, **asked)
    assert trt.calls == []


# ---------------------------------------------------------------- load and run


@EVERY
def test_an_engine_computes_on_torch_tensors_in_any_batch_it_takes(surface: Surface, install: Any) -> None:
    engine = loaded(install(surface, batch=(1, 4, 8)))
    for n in (1, 3, 8, 3):
        pixels = images(n, seed=n)
        torch.testing.assert_close(engine.run({"pixels": pixels})["logits"], expected(pixels))
    for n in (9, 0):
        with pytest.raises(EngineError, match=f"a batch of {n}: the engine takes 1 to 8"):
            engine.run({"pixels": images(n)})


@EVERY
def test_shapes_then_addresses_then_the_run(surface: Surface, install: Any) -> None:
    trt = install(surface)
    engine = loaded(trt)
    trt.calls.clear()
    engine.run({"pixels": images(2)})
    assert trt.calls == [
        ("set_input_shape", "pixels", (2, 3, 2, 2)),
        ("set_tensor_address", "pixels"),
        ("set_tensor_address", "logits"),
        ("infer_shapes",),
        ("execute_async_v3", 77),
    ]


def test_buffers_are_made_once_a_batch_and_results_are_copies(install: Any) -> None:
    engine, pixels = loaded(install("10")), images(2)
    first = engine.run({"pixels": pixels})["logits"]
    buffers = engine._buffers[2]
    second = engine.run({"pixels": pixels + 1})["logits"]
    assert engine._buffers[2] is buffers
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, expected(pixels))


def test_rtx_has_a_runtime_config_and_the_others_none(install: Any, tmp_path: Path) -> None:
    trt = install("rtx")
    loaded(trt)
    assert ("cuda_graph_strategy", "WHOLE_GRAPH_CAPTURE") in trt.calls
    assert ("dynamic_shapes_kernel_specialization_strategy", "EAGER") in trt.calls
    assert ("create_execution_context", "RuntimeConfig") in trt.calls
    assert names(trt).index("get_engine_validity") < names(trt).index("deserialize_cuda_engine")
    for surface in ("10", "11"):
        trt = install(surface)
        loaded(trt, runtime_cache=tmp_path / "none.cache").close()
        assert ("create_execution_context",) in trt.calls
    assert not (tmp_path / "none.cache").exists()


def test_rtx_keeps_its_kernels_in_the_file_that_was_named(install: Any, tmp_path: Path) -> None:
    file, trt = tmp_path / "user" / "e.cache", install("rtx")
    with loaded(trt, runtime_cache=file):
        assert not file.exists()
    assert file.read_bytes() == b"kernels"
    assert "deserialize" not in names(trt)
    trt = install("rtx", cache_fits=False)
    with loaded(trt, runtime_cache=file):
        pass
    assert ("deserialize", b"kernels") in trt.calls
    with pytest.raises(KeyError), loaded(trt, runtime_cache=tmp_path / "other.cache"):
        raise KeyError
    assert not (tmp_path / "other.cache").exists()


def test_a_call_is_captured_after_it_has_run_and_by_nobody_twice(install: Any) -> None:
    trt = install("10")
    engine = loaded(trt)
    trt.calls.clear()
    call, how = engine.captured({"pixels": images(4)})
    assert how == "CUDA graph"
    order = [
        name for name in names(trt) if name in ("execute_async_v3", "synchronize", "capture begins", "capture ends")
    ]
    once = "execute_async_v3"
    assert order == [once, once, "synchronize", "capture begins", once, "capture ends"]
    assert names(trt)[0] == "create_execution_context"  # its own: another batch in between changes no captured shape
    call()
    assert trt.calls[-1] == ("replay",)
    trt = install("rtx")
    call, how = loaded(trt).captured({"pixels": images(4)})
    assert how == "own graph"
    assert "capture begins" not in names(trt)
    call()
    assert trt.calls[-1][0] == "execute_async_v3"


@pytest.mark.parametrize("fault", [{"capturable": False}, {"captures": False}])
def test_what_cannot_be_captured_is_enqueued_and_says_so(fault: dict[str, bool], install: Any) -> None:
    trt = install("rtx", **{k: v for k, v in fault.items() if k == "capturable"})
    engine = loaded(trt, own_graphs=False, captures=fault.get("captures", True))
    assert not engine.own_graphs
    call, how = engine.captured({"pixels": images(4)})
    assert how.startswith("no CUDA graph: ")
    assert "\n" not in how
    call()
    assert trt.calls[-1][0] == "execute_async_v3"


def test_captured_calls_keep_their_inputs_apart(install: Any) -> None:
    trt = install("rtx")
    engine = loaded(trt)
    pixels = images(2)
    engine.captured({"pixels": pixels})
    before = pixels.clone()
    engine.run({"pixels": pixels + 1})
    assert torch.equal(pixels, before)
    assert names(trt).count("create_execution_context") == 2
    assert names(trt).count("create_runtime_cache") == 1


@pytest.mark.parametrize(
    ("surface", "faults", "error", "says"),
    [
        ("rtx", {"validity": "INVALID"}, MachineError, "another compute capability"),
        ("10", {"refuses": "deserialize_cuda_engine"}, EngineError, "cannot load"),
        ("11", {"refuses": "create_execution_context"}, EngineError, "GPU memory"),
        ("10", {"refuses": "set_input_shape"}, EngineError, "refuses"),
        ("10", {"refuses": "set_tensor_address"}, EngineError, "buffer of pixels"),
        ("10", {"refuses": "infer_shapes"}, EngineError, "wants more"),
        ("rtx", {"refuses": "execute_async_v3"}, EngineError, "enqueued"),
        ("10", {"dtype": "FP8"}, EngineError, "type FP8"),
    ],
)
def test_every_refusal_of_the_package_is_an_error_of_ours(
    surface: Surface, faults: dict[str, Any], error: type[EngineError], says: str, install: Any
) -> None:
    trt = install(surface, **faults)
    with pytest.raises(error, match=says) as caught:
        loaded(trt).run({"pixels": images(1)})
    assert type(caught.value) is error
    assert caught.value.fix


def test_an_engine_that_carries_its_runtime_is_let_to_run_it_only_when_asked(install: Any) -> None:
    trt = install("10")
    loaded(trt)
    assert "engine_host_code_allowed" not in names(trt)
    loaded(trt, host_code=True)
    assert ("engine_host_code_allowed", True) in trt.calls


def test_its_memory_is_what_the_engine_says(install: Any) -> None:
    assert loaded(install("11")).memory_bytes() == 1000


# ---------------------------------------------------------------- the runner


@EVERY
def test_a_runner_splits_what_is_too_large_and_fills_up_what_is_too_small(surface: Surface, install: Any) -> None:
    runner = EngineRunner(loaded(install(surface, batch=(2, 2, 4))), name="ours")
    for n in (1, 2, 4, 5, 9):
        pixels = images(n, seed=n)
        torch.testing.assert_close(runner.logits(pixels), expected(pixels))
    assert (runner.name, runner.device, runner.graph) == ("ours", torch.device("cpu"), "")


def test_a_runner_takes_a_graph_of_one_batch(install: Any) -> None:
    runner = EngineRunner(loaded(install("10", fixed=3)))
    pixels = images(7)
    torch.testing.assert_close(runner.logits(pixels), expected(pixels))


def test_a_prepared_call_copies_nothing_and_says_how_it_is_enqueued(install: Any) -> None:
    trt = install("10")
    runner = EngineRunner(loaded(trt))
    call = runner.prepared(images(2))
    trt.calls.clear()
    call()
    assert trt.calls == [("replay",)]
    assert runner.graph == "CUDA graph"
    runner.synchronize()
    assert trt.calls[-1] == ("synchronize",)
