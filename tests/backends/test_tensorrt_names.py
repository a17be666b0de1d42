"""Every name that the backend uses was looked up in the bindings of TensorRT 11.4, and what is not there is asked for first."""

import pytest
from tensorrt_names import FILES, guarded, listed, look_up, mended, used

SOURCES = {path.name: path.read_text(encoding="utf-8") for path in FILES}
# Names of TensorRT-RTX alone that are used behind a question about another one.
BEHIND = {
    "EngineValidity": "get_engine_validity",
    "INVALID": "get_engine_validity",
    "create_runtime_cache": "create_runtime_cache",
    "deserialize": "create_runtime_cache",
    "set_runtime_cache": "create_runtime_cache",
    "CudaGraphStrategy": "cuda_graph_strategy",
    "WHOLE_GRAPH_CAPTURE": "cuda_graph_strategy",
    "DynamicShapesKernelSpecializationStrategy": "dynamic_shapes_kernel_specialization_strategy",
    "EAGER": "dynamic_shapes_kernel_specialization_strategy",
    "num_compute_capabilities": "ComputeCapability",  # `targets` refuses capabilities of a package without them
    "set_compute_capability": "ComputeCapability",
}


def test_every_name_in_use_is_in_the_bindings_or_asked_for_first() -> None:
    found, asked = listed(), set().union(*map(guarded, SOURCES.values()))
    names = set().union(*map(used, SOURCES.values()))
    assert len(names) > 40
    assert names - found.keys() == set(), "python tests/support/tensorrt_names.py looks them up"
    absent = {name for name in names if found[name] == "absent"}
    assert {name for name in absent if BEHIND.get(name, name) not in asked} == set()
    assert {"execute_async_v3", "set_tensor_address", "set_input_shape"} <= {n for n in names if found[n] == "exact"}


def test_the_list_holds_nothing_else() -> None:
    assert listed().keys() == set().union(*map(used, SOURCES.values()))
    assert BEHIND.keys() <= listed().keys()


def test_only_this_folder_imports_the_packages() -> None:
    root = FILES[0].parents[2]
    for path in (*root.rglob("*.py"), *(root.parent / "validate").rglob("*.py")):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        if path.parent.name != "tensorrt" or path.parent.parent.name != "backends":
            assert not [line for line in lines if line.startswith(("import tensorrt", "from tensorrt"))], path


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("trt.BuilderFlag.VERSION_COMPATIBLE", {"BuilderFlag", "VERSION_COMPATIBLE"}),
        ("self._context.execute_async_v3(1)", {"execute_async_v3"}),
        ("config.progress_monitor = monitor", {"progress_monitor"}),
        ("cast(Any, context).set_input_shape(1)", {"set_input_shape"}),
        ("tensor.shape", set()),
        ("logger(trt).recording()", set()),
    ],
)
def test_a_use_is_seen_where_there_is_one(source: str, names: set[str]) -> None:
    assert used(source) == names


def test_a_question_is_seen_and_a_name_is_found_whole_or_as_an_end() -> None:
    assert guarded('hasattr(trt, "a") or getattr(trt.b, "c", None) or f(trt, "d")') == {"a", "c"}
    library = b"\0set_flag\0get_tensor_format_desc\0"
    assert [look_up(n, library) for n in ("set_flag", "desc", "format", "flags")] == [
        "exact",
        "pooled",
        "absent",
        "absent",
    ]
    stub = "from __future__ import annotations\ndef f(self, in: list[int], shift: W = None, channel_axis: int) -> bool: ..."
    compile(mended(stub), "stub", "exec")
