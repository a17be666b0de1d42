"""State dicts in files of unknown origin: tensors come out, whole and plain, or an error; nothing in a file is executed."""

import argparse
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from erq_export.contract.errors import DataError, ErqError, MachineError
from erq_export.contract.inputs import encodable, regular_file, shown
from erq_export.contract.memory import require_memory
from erq_export.models.pickles import check_ends

FIX = "a safetensors file, or a .pt that holds only tensors (torch.save(model.state_dict(), FILE))"
AVERAGED, PLAIN = (
    ("state_dict_ema", "model_ema"),
    ("state_dict", "model", "module"),
)  # where training scripts keep weights
PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")  # of torch.compile and DistributedDataParallel, either way round
ARCHIVE = b"PK\3\4"  # how torch tells its newer format from its older one
OLD_PICKLES = 5  # in the older format: a magic number, the version, the system, the content, the names of the storages
LONGEST_NAME = 512  # of a tensor
MOST_NESTED = 4  # state dicts within dicts


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pt that torch reads with weights_only, by name.

    A training checkpoint may hold them under "state_dict" or the like; averaged weights (EMA) are preferred, as in timm.
    DataError for whatever else is in there; MachineError where the file asks for more memory than there is.
    """
    found = regular_file(path, "checkpoint", fix="--checkpoint FILE (.safetensors, or .pt of a state dict)")
    if encodable(str(path)) != str(path):
        raise DataError(f"cannot read the checkpoint {shown(path)}: its name is not UTF-8", fix="rename the file")
    if not found.st_size:
        raise DataError(f"cannot read the checkpoint {shown(path)}: it is empty", fix=FIX)
    require_memory(found.st_size, f"the checkpoint {shown(path)}", fix="a machine with more memory")
    try:
        content = load_file(path) if path.suffix.lower() == ".safetensors" else _unpickled(path)
    except ErqError:
        raise
    except MemoryError as e:
        raise MachineError(f"the checkpoint {shown(path)} does not fit into memory", fix="another file") from e
    except Exception as e:  # damaged files make the readers raise whatever they like
        raise DataError(f"cannot read the checkpoint {shown(path)}: {_reason(e)}", fix=FIX) from e
    state = _unwrapped(content, path)
    _check_plain(state, path)
    n_bytes = sum(t.numel() * t.element_size() for t in state.values())
    require_memory(n_bytes, f"the tensors of the checkpoint {shown(path)}", fix="a machine with more memory")
    return state


def _unpickled(path: Path) -> Any:
    """torch.load, restricted to tensors and plain containers.

    Mapped into memory where the format allows: a size that lies then ends at the file's end, not in foreign memory.
    """
    with path.open("rb") as file:
        mapped = file.read(len(ARCHIVE)) == ARCHIVE
        file.seek(0)
        if mapped:
            _check_archive(path)
            check_ends(io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")))
        else:
            for _ in range(OLD_PICKLES):
                check_ends(file)
    with torch.serialization.safe_globals(
        [argparse.Namespace]
    ):  # training options lie beside the weights of timm and DeiT
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _check_archive(path: Path) -> None:
    """torch.save packs nothing: an archive that does could grow without end when it is read."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > path.stat().st_size:
                raise DataError(
                    f"the checkpoint {shown(path)} is compressed, or lies about its size: {shown(entry.filename)}",
                    fix=FIX,
                )


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        if match := re.search(r"(?:GLOBAL|global|class|function)\s+([\w.]+\.[\w.]+)", text):
            return f"it holds more than tensors, {shown(match[1])} among it; nothing of it was run"
        return "it holds more than tensors, or is no pickle; nothing of it was run"
    if isinstance(error, SafetensorError):
        return f"it is no whole safetensors file ({shown(text)[:200]})"
    return shown(text.splitlines()[0])[:200] if text.strip() else type(error).__name__


def _unwrapped(content: Any, path: Path) -> dict[str, Any]:
    """The dict of tensors within a training checkpoint, without the prefixes of wrappers. DataError where there is none,
    or where two hold tensors and neither is the average."""
    for _ in range(MOST_NESTED):
        if not isinstance(content, dict):
            break
        inner = [k for k in AVERAGED if _holds_tensors(content.get(k))][:1]
        inner = inner or [k for k in PLAIN if _holds_tensors(content.get(k))]
        if len(inner) > 1:
            raise DataError(
                f"the checkpoint {shown(path)} holds several state dicts: {', '.join(inner)}",
                fix=f"a file of one: torch.save(torch.load(FILE)[{inner[0]!r}], NEW_FILE)",
            )
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, dict):
        raise DataError(f"the checkpoint {shown(path)} holds a {type(content).__name__}, no state dict", fix=FIX)
    state: dict[str, Any] = {}
    for key, value in content.items():
        if not isinstance(key, str) or len(key) > LONGEST_NAME:
            what = f"a name of {len(key)} characters" if isinstance(key, str) else f"a {type(key).__name__} for a name"
            raise DataError(f"the checkpoint {shown(path)} holds {what}", fix=FIX)
        name = key
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if name in state:
            raise DataError(f"the checkpoint {shown(path)} holds {shown(name)} twice, once as {shown(key)}", fix=FIX)
        state[name] = value
    return state


def _holds_tensors(value: Any) -> bool:
    """Is this a dict of tensors, or of a dict that may be one?"""
    return isinstance(value, Mapping) and (
        any(isinstance(v, Tensor) for v in value.values())
        or any(isinstance(value.get(k), dict) for k in AVERAGED + PLAIN)
    )


def _check_plain(state: dict[str, Any], path: Path) -> None:
    """DataError naming the first value that is no tensor with its numbers lying densely in memory."""
    if not state:
        raise DataError(f"the checkpoint {shown(path)} holds no tensor", fix=FIX)
    for name, value in state.items():
        if problem := _not_plain(value):
            raise DataError(f"the checkpoint {shown(path)}: {shown(name)} is {problem}", fix=FIX)


def _not_plain(value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}, no tensor"
    if value.is_meta:
        return "a tensor without numbers (meta)"
    if value.is_quantized:
        return "a quantized tensor"
    if value.layout != torch.strided or value.is_nested:
        return f"a sparse or nested tensor ({value.layout})"
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f"a {type(value).__name__}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"a view of {tuple(value.shape)} over fewer numbers"
    return None
