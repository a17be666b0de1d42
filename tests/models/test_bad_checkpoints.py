"""A checkpoint of unknown origin is read whole, or refused with the file, the tensor and the reason; it never runs."""

import argparse
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import damaged, value_or_error
from safetensors.torch import save
from tiny_vit import TINY, TINY_ARGS
from torch import Tensor, nn

from erq_export.contract.errors import DataError, ErqError, MachineError
from erq_export.models.checkpoints import read_checkpoint
from erq_export.models.names import architecture
from erq_export.models.state_files import read_state

NAME = "blocks.0.attn.proj.weight"
MODEL = architecture(TINY, TINY_ARGS | {"depth": 1})
STATE = {k: v.clone() for k, v in MODEL.state_dict().items()}


def pt(content: Any, **options: Any) -> bytes:
    data = io.BytesIO()
    torch.save(content, data, **options)
    return data.getvalue()


OLD = {"_use_new_zipfile_serialization": False}
WHOLE_PT = (pt(STATE), pt({"model": STATE, "epoch": 3, "args": argparse.Namespace(lr=0.1)}), pt(STATE, **OLD))


class Touch:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def write(folder: Path, content: Any, name: str = "w.pt", **options: Any) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else pt(content, **options))
    return path


def refused(path: Path, *, match: str, error: type[ErqError] = DataError) -> ErqError:
    """The error; and the model is what it was."""
    before = {k: v.clone() for k, v in MODEL.state_dict().items()}
    with pytest.raises(error, match=match) as caught:
        read_checkpoint(MODEL, path)
    assert all(torch.equal(v, before[k]) for k, v in MODEL.state_dict().items())
    assert len(str(caught.value)) < 1500
    return caught.value


@pytest.mark.parametrize("options", [{}, OLD], ids=["zip", "old"])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        OrderedDict,
        lambda s: {"model": s, "epoch": 300, "args": argparse.Namespace(lr=1e-3), "optimizer": {"state": {}}},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {"module": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"state_dict_ema": None, "state_dict": s},
        lambda s: {"model_ema": s, "model": {k: torch.zeros_like(v) for k, v in s.items()}},
        lambda s: {k: nn.Parameter(v) for k, v in s.items()},
        lambda s: {k: v.double() for k, v in s.items()},
    ],
)
def test_training_checkpoints_are_unwrapped(tmp_path: Path, wrap: Any, options: dict[str, Any]) -> None:
    """Averaged weights are preferred to the last ones, as timm does."""
    state = {k: v + 1 for k, v in STATE.items()}
    read_checkpoint(MODEL, write(tmp_path, wrap(state), **options))
    assert all(torch.equal(v, state[k]) for k, v in MODEL.state_dict().items())


def test_two_state_dicts_are_not_chosen_between(tmp_path: Path) -> None:
    assert "['state_dict']" in refused(write(tmp_path, {"model": STATE, "state_dict": STATE}), match="several").fix


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_common_width_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    for name, content in (("w.pt", {k: v.to(dtype) for k, v in STATE.items()}),):
        read_checkpoint(MODEL, write(tmp_path, content, name))
    read_checkpoint(MODEL, write(tmp_path, save({k: v.to(dtype) for k, v in STATE.items()}), "w.safetensors"))
    assert all(torch.equal(v, STATE[k].to(dtype).float()) for k, v in MODEL.state_dict().items())


def test_an_eight_bit_float_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, STATE | {NAME: STATE[NAME].to(torch.float8_e4m3fn)})
    refused(path, match=f"{NAME}: torch.float8_e4m3fn in the file")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: 1.5, "a float, no tensor"),
        (lambda t: None, "a NoneType, no tensor"),
        (lambda t: [t], "a list, no tensor"),
        (lambda t: {"x": t}, "a dict, no tensor"),
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: t.to_sparse_csr(), "sparse"),
        (lambda t: t.to("meta"), "meta"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantized"),
        (lambda t: t.to(torch.complex64), "complex64 in the file"),
        (lambda t: t.to(torch.int64), "int64 in the file"),
        (lambda t: t.to(torch.int8), "int8 in the file"),
        (lambda t: t.bool(), "bool in the file"),
        (lambda t: t.sum(), "a number in the file"),
        (lambda t: torch.zeros(1).expand(t.shape), "a view"),
        (lambda t: torch.zeros(1).expand(10**6, 10**6), "a view"),
        (lambda t: t[:1], "1×32 in the file"),
        (lambda t: t[:0], "0×32 in the file"),
    ],
)
@pytest.mark.parametrize("options", [{}, OLD], ids=["zip", "old"])
def test_a_value_that_is_no_plain_tensor_is_refused_by_name(
    tmp_path: Path, change: Any, says: str, options: dict[str, Any]
) -> None:
    path = write(tmp_path, STATE | {NAME: change(STATE[NAME])}, **options)
    assert says in refused(path, match=NAME).problem


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_numbers_that_are_not_finite_in_float32_are_refused(tmp_path: Path, value: float) -> None:
    from erq_export.models.checkpoints import refuse_non_finite

    state = {k: v.double() for k, v in STATE.items()}
    state[NAME][0, 0] = value
    model = architecture(TINY, TINY_ARGS | {"depth": 1})
    read_checkpoint(model, write(tmp_path, state))
    with pytest.raises(DataError, match=NAME):
        refuse_non_finite(model)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "a list, no state dict"),
        (torch.zeros(3), "a Tensor, no state dict"),
        (3, "an? int, no state dict"),
        (None, "a NoneType"),
        ({}, "no tensor"),
        ({"model": {}}, "a dict, no tensor"),
        ({1: torch.zeros(1)}, "a int for a name"),
        ({("a", "b"): torch.zeros(1)}, "a tuple for a name"),
        ({"x" * 2**20: torch.zeros(1)}, "a name of 1048576 characters"),
        ({"module.x": torch.zeros(1), "x": torch.zeros(1)}, "twice"),
        (STATE | {"\x1b[2J\n": torch.zeros(1)}, r"\\x1b\[2J\\n: not in the model"),
        (STATE | {"\udcff": torch.zeros(1)}, "not in the model"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_content_that_is_no_state_dict_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    error = refused(write(tmp_path, content), match=says)
    assert str(error).encode()


@pytest.mark.parametrize("options", [{}, OLD], ids=["zip", "old"])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, options: dict[str, Any]) -> None:
    mark = tmp_path / "it ran"
    error = refused(write(tmp_path, STATE | {"extra": Touch(mark)}, **options), match="nothing of it was run")
    assert "pathlib" in error.problem or "more than tensors" in error.problem
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors", "w.npz", "w"])
def test_a_bare_pickle_does_not_run_whatever_it_is_called(tmp_path: Path, protocol: int, name: str) -> None:
    mark = tmp_path / "it ran"
    refused(write(tmp_path, pickle.dumps(Touch(mark), protocol), name), match="cannot read")
    assert not mark.exists()


def test_code_does_not_run_where_the_environment_trusts_every_file(tmp_path: Path) -> None:
    """torch lets this variable lift its restriction for callers who did not ask for it by name; we did."""
    mark, path = tmp_path / "it ran", write(tmp_path, STATE | {"extra": Touch(tmp_path / "it ran")})
    program = (
        "import sys, torch; from pathlib import Path; from erq_export.models.state_files import read_state\n"
        "try: read_state(Path(sys.argv[1]))\n"
        "except Exception as e: print(type(e).__name__)\n"
        "else: print('read')\n"
        "print(Path(sys.argv[2]).exists())\n"
        "torch.load(sys.argv[1]); print(Path(sys.argv[2]).exists())"
    )
    environment = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    command = [sys.executable, "-W", "ignore", "-c", program, path, mark]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["DataError", "False", "True"]  # from the other side: torch alone would have run it


def test_archives_that_grow_are_refused(tmp_path: Path) -> None:
    """A compressed record, and one whose size is a lie."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    refused(tmp_path / "bomb.pt", match="compressed, or lies about its size")


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize(("levels", "says"), [(3, "a tuple for a name"), (40, "tuples within tuples")])
def test_a_pickle_that_would_never_end_is_refused_at_once(tmp_path: Path, levels: int, says: str, old: bool) -> None:
    """A dict's key of 2^levels parts: 25 levels take a second to hash, 40 take nine hours. From both sides: 3 are read."""
    key: Any = (1, 2)
    for _ in range(levels):
        key = (key, key)

    class Forged(dict[Any, Any]):  # written without hashing the key
        def __reduce__(self) -> Any:
            return OrderedDict, (), None, None, iter([(key, 1)])

    path = tmp_path / "w.pt"
    torch.save(Forged(), path, _use_new_zipfile_serialization=not old)
    refused(path, match=says)


def safetensors(header: Any, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({}, length=2**63),
        safetensors({}, length=200_000_000),
        safetensors(b"{" * 100_000),
        safetensors(b"[1]"),
        safetensors(b"\xff\xfe"),
        safetensors({"a": ENTRY, "b": ENTRY}, bytes(8)),  # both at the same place
        safetensors({"a": ENTRY | {"data_offsets": [0, 16]}}, bytes(8)),
        safetensors({"a": ENTRY | {"data_offsets": [8, 0]}}, bytes(8)),
        safetensors({"a": ENTRY | {"data_offsets": [-8, 0]}}, bytes(8)),
        safetensors({"a": ENTRY | {"shape": [2**62, 2**62]}}, bytes(8)),
        safetensors({"a": ENTRY | {"shape": [-1]}}, bytes(8)),
        safetensors({"a": ENTRY | {"dtype": "F128"}}, bytes(8)),
        safetensors({"a": ENTRY}, bytes(4)),
        safetensors({"a": ENTRY}, bytes(80)),
        safetensors({"a": 3}, bytes(8)),
        safetensors({"a": ENTRY}, bytes(8)),  # well-formed, and of another model
        pt(STATE),
    ],
    ids=range(17),
)
def test_a_safetensors_file_whose_header_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    refused(write(tmp_path, content, "w.safetensors"), match=r"cannot read the checkpoint|does not fit the model")


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "gone.pt").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "socket.pt"))
    for name, says in [
        ("pipe.pt", "a named pipe"),
        ("folder.pt", "a folder"),
        ("socket.pt", "a socket"),
        ("loop.pt", "symbolic links"),
        ("gone.pt", "there is no checkpoint"),
        ("none.pt", "there is no checkpoint"),
        ("x" * 300, "too long"),
        ("nul\0.pt", "null"),
        ("empty.pt", "empty"),
    ]:
        if name == "empty.pt":
            (tmp_path / name).write_bytes(b"")
        refused(tmp_path / name, match=says)
    refused(Path("/dev/zero"), match="a device")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_name_that_is_not_utf8_is_refused_as_what_it_is(tmp_path: Path, suffix: str) -> None:
    """Neither torch nor safetensors can open it; the error can be written into any file."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/w\xff" + suffix.encode()))
    path.write_bytes(pt(STATE))
    assert "rename" in (error := refused(path, match=r"w\\xff\.(pt|safetensors)")).fix
    assert str(error).encode()


def test_a_file_larger_than_memory_is_refused_unread(tmp_path: Path) -> None:
    """A sparse file of 16 TiB takes no room on the disk."""
    path = tmp_path / "w.pt"
    with path.open("wb") as file:
        try:
            file.truncate(2**43)
        except OSError:
            pytest.skip("this file system holds no file so large")
    refused(path, match=r"8,192\.0 GiB of memory are needed", error=MachineError)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=damaged(WHOLE_PT))
@pytest.mark.filterwarnings("ignore")
def test_any_damaged_pt_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    outcome = value_or_error(lambda: read_state(write(tmp_path, content)))
    assert isinstance(outcome, ErqError) or all(isinstance(v, Tensor) for v in outcome.values())


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=damaged((save(STATE), safetensors({"a": ENTRY}, bytes(8)))))
def test_any_damaged_safetensors_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    outcome = value_or_error(lambda: read_state(write(tmp_path, content, "w.safetensors")))
    assert isinstance(outcome, ErqError) or all(isinstance(v, Tensor) for v in outcome.values())


leaves = (
    st.none()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([torch.zeros(2), torch.zeros(()), torch.ones(2, dtype=torch.int64), STATE[NAME]])
)
keys = (
    st.sampled_from(["model", "state_dict", "module", "state_dict_ema", "model_ema", NAME, "module.x", "x"])
    | st.integers()
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.recursive(leaves, lambda inner: st.dictionaries(keys, inner) | st.lists(inner), max_leaves=8))
def test_any_content_is_read_or_refused(tmp_path: Path, content: Any) -> None:
    outcome = value_or_error(lambda: read_checkpoint(MODEL, write(tmp_path, content)))
    assert isinstance(outcome, DataError)
