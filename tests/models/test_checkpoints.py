"""Files with the names of the original repositories are read; files of other models are refused, with what would fit."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_swin import SWIN_ARGS, TINY_SWIN
from tiny_vit import TINY, TINY_ARGS
from torch import Tensor

from erq_export.contract.errors import DataError
from erq_export.models.checkpoints import read_checkpoint
from erq_export.models.names import architecture

DISTILLED = "deit_tiny_distilled_patch16_224"
SHIFTED = {"relative_position_index": torch.zeros(16, 16, dtype=torch.long), "attn_mask": torch.zeros(16, 16, 16)}


def microsoft(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Microsoft's Swin names it: merging ends a stage, the head is a Linear, index and mask are kept."""
    old = {}
    for name, tensor in state.items():
        name = re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        old[name.replace("head.fc.", "head.")] = tensor
    blocks = {m[0] for name in state if (m := re.match(r"layers\.\d+\.blocks\.\d+\.attn", name))}
    return old | {f"{block}.{name}": tensor for block in blocks for name, tensor in SHIFTED.items()}


def flat_patches(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As timm's first ViTs had it: the patch embedding as a matrix; and a LayerNorm that nothing uses."""
    weight = state["patch_embed.proj.weight"]
    return state | {"patch_embed.proj.weight": weight.flatten(1), "pre_logits.fc.weight": torch.zeros(2, 2)}


def write(folder: Path, state: dict[str, Any]) -> Path:
    torch.save(state, folder / "file.pth")
    return folder / "file.pth"


@pytest.mark.parametrize(
    ("name", "args", "rename"),
    [
        (TINY_SWIN, SWIN_ARGS, microsoft),
        (TINY_SWIN, SWIN_ARGS | {"depths": (1, 1, 1), "num_heads": (1, 2, 4)}, microsoft),
        (TINY, TINY_ARGS, dict),
        (TINY, TINY_ARGS, flat_patches),
        (DISTILLED, TINY_ARGS, dict),  # Facebook's DeiT: {"model": state}, timm's own names
    ],
)
def test_original_names_are_read(tmp_path: Path, name: str, args: dict[str, Any], rename: Any) -> None:
    """Every tensor arrives, unchanged, in a model that had others."""
    source, model = architecture(name, args, seed=1), architecture(name, args, seed=2)
    read_checkpoint(model, write(tmp_path, {"model": rename(source.state_dict()), "epoch": 300}))
    want, got = source.state_dict(), model.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) for k in want)
    assert any(not torch.equal(v, want[k]) for k, v in architecture(name, args, seed=2).state_dict().items())


def test_a_renamed_file_is_still_read_strictly(tmp_path: Path) -> None:
    """One tensor missing, one too many, one of another size that timm's filter would resample: refused, each."""
    old = microsoft(architecture(TINY_SWIN, SWIN_ARGS).state_dict())
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    for change in (
        {k: v for k, v in old.items() if k != "norm.weight"},
        old | {"norm.extra": torch.zeros(1)},
        old | {table: torch.zeros(13 * 13, 2)},
        old | {"patch_embed.proj.weight": torch.zeros(32, 3, 4, 4)},
    ):
        with pytest.raises(DataError, match="does not fit the model"):
            read_checkpoint(architecture(TINY_SWIN, SWIN_ARGS), write(tmp_path, {"model": change}))


@pytest.mark.parametrize("rename", [dict, microsoft])
def test_a_swin_of_other_shapes_suggests_arguments_that_fit(tmp_path: Path, rename: Any) -> None:
    args = SWIN_ARGS | {"depths": (1, 2), "num_heads": (1, 2), "window_size": 8, "embed_dim": 16, "num_classes": 3}
    path = write(tmp_path, rename(architecture(TINY_SWIN, args, seed=1).state_dict()))
    with pytest.raises(DataError) as caught:
        read_checkpoint(architecture(TINY_SWIN, SWIN_ARGS), path)
    words = dict(re.findall(r"--model-arg (\w+)=(\S+)", caught.value.fix))
    assert words == {
        "depths": "1,2", "num_heads": "1,2", "window_size": "8", "embed_dim": "16", "num_classes": "3"
    }  # fmt: skip
    read_checkpoint(architecture(TINY_SWIN, args), path)
