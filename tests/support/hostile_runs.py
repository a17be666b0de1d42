"""Run folders as a stranger may hand them over: records, tensors and files of a finished run changed one at a time."""

import copy
import hashlib
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2.5, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, -1e308, float("inf"), float("nan")),
    *("", "a", "x" * 5000, "../../etc/passwd", "/etc/passwd", "w4a4", "w9a9", "reference", "\x00", "\ud800", "٣"),
    *([], {}, [[]], [1, 2, 3], [None], {"a": 1}, [[[[[[]]]]]], {"": {"": {}}}),
)
HOSTILE: tuple[tuple[str, Any], ...] = (
    *(
        ("timm_name", name)
        for name in (
            "local-dir:.",
            "hf-hub:a/b",
            "/etc",
            "resnet18",
            "vit_giant_patch14_224",
            "swin_tiny_patch4_window7_224",
        )
    ),
    *(("family", name) for name in ("swin", "os", "../vit", "")),
    *(
        ("model_args", {name: value})
        for name, value in (("checkpoint_path", "payload.pth"), ("pretrained_cfg", {"file": "payload.pth"}))
    ),
    *(
        ("model_args", {name: "payload.pth"})
        for name in ("pretrained", "pretrained_cfg_overlay", "cache_dir", "block_fn", "features_only")
    ),
    *(("model_args", {name: 10**6}) for name in ("img_size", "depth", "embed_dim", "num_classes", "num_heads")),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in JSON data."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*at, key))
    return found


def changed_record(chance: random.Random, data: Any) -> Any:
    """The data with one value, at any depth, dropped, doubled, renamed, or of another kind."""
    data = copy.deepcopy(data)
    *parents, last = chance.choice(places(data))
    inner = data
    for step in parents:
        inner = inner[step]
    match chance.randrange(6):
        case 0:
            del inner[last]
        case 1 if isinstance(inner, list):
            inner.insert(last, copy.deepcopy(inner[last]))
        case 1:
            inner[f"{last}_"] = inner.pop(last)
        case _:
            inner[last] = chance.choice(NASTY)
    return data


def written(data: Any) -> bytes:
    """As JSON, with NaN, infinity and lone surrogates as Python writes them."""
    return json.dumps(data).encode("utf-8", "surrogatepass")


def hostile_identity(data: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(data)
    data["model"][name] = {**data["model"][name], **value} if isinstance(value, dict) else value
    return data


def changed_tensors(chance: random.Random, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """(what was done, the tensors with one changed into what no calibration leaves)."""
    name = chance.choice(sorted(tensors))
    tensor = tensors[name]
    rest = {k: v for k, v in tensors.items() if k != name}
    ways: dict[str, Callable[[], dict[str, Tensor]]] = {
        "missing": lambda: {},
        "renamed": lambda: {f"{name}x": tensor},
        "surplus": lambda: {name: tensor, "layer.ghost.weight_q": torch.zeros(2, 2, dtype=torch.int8)},
        "another rank": lambda: {name: tensor[None].contiguous()},
        "empty": lambda: {name: tensor.flatten()[:0].clone()},
        "longer": lambda: {name: torch.cat([tensor.flatten(), tensor.flatten()]).clone()},
        "float64": lambda: {name: tensor.double()},
        "float16": lambda: {name: tensor.half()},
        "complex": lambda: {name: tensor.to(torch.complex64)},
        "int16": lambda: {name: tensor.to(torch.int32)},
    }
    if tensor.is_floating_point():
        ways["NaN"] = lambda: {name: torch.full_like(tensor, torch.nan)}
        ways["infinity"] = lambda: {name: torch.full_like(tensor, torch.inf)}
    if name.endswith("scale"):
        ways["zero"] = lambda: {name: torch.zeros_like(tensor)}
        ways["negative"] = lambda: {name: -tensor}
    if name.endswith(("weight_q", "weight_qmin")):
        ways["out of range"] = lambda: {name: torch.full_like(tensor, 127)}
        ways["one code out"] = lambda: {name: tensor + 120}
    how = chance.choice(sorted(ways))
    return f"{name}: {how}", rest | ways[how]()


def put_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Into a bundle, its description made to fit."""
    save_file(tensors, folder / "tensors.safetensors")
    data = json.loads((folder / "bundle.json").read_text())
    data["tensors_sha256"] = hashlib.sha256((folder / "tensors.safetensors").read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(data))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "tensors.safetensors")


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


# What may lie in the place of a file.
FILES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "no text": lambda path: path.write_bytes(b"\xff\xfe{}"),
    "a list": lambda path: path.write_bytes(b"[1, 2]"),
    "an empty object": lambda path: path.write_bytes(b"{}"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "deep in it": lambda path: path.write_bytes(b'{"format": 4, "spec": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001),
    "a number of a million digits": lambda path: path.write_bytes(b'{"format": ' + b"9" * 10**6 + b"}"),
    "a folder": lambda path: _replace(path, Path.mkdir),
    "a pipe": lambda path: _replace(path, os.mkfifo),
    "a device": lambda path: _replace(path, lambda p: p.symlink_to("/dev/zero")),
    "a link to nowhere": lambda path: _replace(path, lambda p: p.symlink_to("nowhere")),
    "a link to itself": lambda path: _replace(path, lambda p: p.symlink_to(p)),
    "a link to a secret": lambda path: _replace(path, lambda p: p.symlink_to("/etc/passwd")),
}


class Payload:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def put_payload(path: Path, trace: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Payload(trace)}))
    pickle.loads(path.read_bytes())
    assert trace.exists()  # it works
    trace.unlink()
