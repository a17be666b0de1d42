"""What a checkpoint's shapes tell of the model that it was saved from: the --model-arg that would fit."""

import math
import re

from torch import Tensor


def fitting_args(state: dict[str, Tensor], want: dict[str, Tensor]) -> str:
    """The --model-arg values that the file's own shapes suggest, where the model's shapes suggest others."""
    have, now = _suggested(state), _suggested(want)
    differing = [f"--model-arg {k}={_word(v)}" for k, v in have.items() if now.get(k) != v]
    return "the file's shapes suggest " + " ".join(differing) if differing else "name the model the file was saved from"


def _word(value: int | tuple[int, ...]) -> str:
    """As it is typed behind `--model-arg NAME=`; a tuple needs no quotes from the shell."""
    return str(value) if isinstance(value, int) else ",".join(str(n) for n in value)


def _suggested(state: dict[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
    """A plain ViT's or Swin's arguments, as far as shapes tell them."""
    guess: dict[str, int | tuple[int, ...]] = {}
    if (head := state.get("head.weight", state.get("head.fc.weight"))) is not None and head.ndim == 2:
        guess["num_classes"] = head.shape[0]
    if (token := state.get("cls_token")) is not None:
        guess["embed_dim"] = token.shape[-1]
    if (patch := state.get("patch_embed.proj.weight")) is not None and patch.ndim == 4:
        size = guess["patch_size"] = patch.shape[-1]
        if (position := state.get("pos_embed")) is not None and position.ndim == 3:
            n_side = math.isqrt(position.shape[1] - (token is not None))
            guess["img_size"] = n_side * size
    if blocks := {k.split(".")[1] for k in state if k.startswith("blocks.")}:
        guess["depth"] = len(blocks)
    return guess | _suggested_swin(state)


def _suggested_swin(state: dict[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
    """Arguments that every block's table of position biases tells: one row for each of (2w − 1)² offsets, a column a head."""
    tables: dict[int, list[Tensor]] = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.attn\.relative_position_bias_table", name):
            tables.setdefault(int(match[1]), []).append(tensor)
    patch = state.get("patch_embed.proj.weight")
    if not tables or patch is None:
        return {}
    stages = [tables[i] for i in sorted(tables)]
    return {
        "embed_dim": patch.shape[0],
        "depths": tuple(len(blocks) for blocks in stages),
        "num_heads": tuple(blocks[0].shape[1] for blocks in stages),
        "window_size": (math.isqrt(stages[0][0].shape[0]) + 1) // 2,
    }
