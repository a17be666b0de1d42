"""Which arguments a model may be built with: those that shape an architecture of the known families, each with its range.

timm hands everything on to constructors and loaders. Some of what they take reads files (`checkpoint_path`), replaces
code (`block_fn`) or makes another kind of model (`features_only`), so only what stands in this table gets through.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from erq_export.contract.errors import SpecError
from erq_export.contract.inputs import shown
from erq_export.contract.registry import nearest


class Rule(Protocol):
    """What a value must be."""

    def accepts(self, value: Any) -> bool: ...

    @property
    def says(self) -> str: ...


@dataclass(frozen=True)
class Whole:
    """One whole number; True and 2.0 are none."""

    least: int
    most: int

    def accepts(self, value: Any) -> bool:
        return type(value) is int and self.least <= value <= self.most

    @property
    def says(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True)
class Several:
    """A tuple of whole numbers of one of the lengths, or a single one where length 1 is among them."""

    each: Whole
    lengths: range

    def accepts(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return len(value) in self.lengths and all(self.each.accepts(v) for v in value)
        return 1 in self.lengths and self.each.accepts(value)

    @property
    def says(self) -> str:
        return f"{self.each.says}, or up to {self.lengths[-1]} of them: one for each stage"


@dataclass(frozen=True)
class OneOrTwo:
    """A whole number, or the pair (height, width)."""

    each: Whole

    def accepts(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return len(value) == 2 and all(self.each.accepts(v) for v in value)
        return self.each.accepts(value)

    @property
    def says(self) -> str:
        return f"{self.each.says}, or two of them: height,width"


@dataclass(frozen=True)
class Number:
    """A number, whole or not."""

    least: float
    most: float

    def accepts(self, value: Any) -> bool:
        return type(value) in (int, float) and self.least <= value <= self.most

    @property
    def says(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Switch:
    """True or False."""

    def accepts(self, value: Any) -> bool:
        return type(value) is bool

    @property
    def says(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Word:
    """One of these words."""

    words: tuple[str, ...]

    def accepts(self, value: Any) -> bool:
        return type(value) is str and value in self.words

    @property
    def says(self) -> str:
        return f"one of {', '.join(w or repr(w) for w in self.words)}"


HEADS, WINDOW = Whole(1, 4096), Whole(1, 4096)
STAGES = range(1, 9)

# The upper ends only keep sizes below 2⁶³ bytes, where torch can still say what they are; memory decides below them.
ARGUMENTS: dict[str, Rule] = {
    "img_size": OneOrTwo(Whole(1, 10**6)),
    "patch_size": OneOrTwo(Whole(1, 4096)),
    "in_chans": Whole(1, 1024),
    "num_classes": Whole(0, 10**9),
    "embed_dim": Whole(1, 10**6),
    "depth": Whole(1, 10**6),
    "depths": Several(Whole(1, 10**6), STAGES),
    "num_heads": Several(HEADS, STAGES),
    "head_dim": Several(HEADS, STAGES),
    "window_size": Several(WINDOW, STAGES),
    "mlp_ratio": Number(0.01, 1000),
    "init_values": Number(1e-12, 1000),
    "reg_tokens": Whole(0, 4096),
    "qkv_bias": Switch(),
    "qk_norm": Switch(),
    "proj_bias": Switch(),
    "scale_attn_norm": Switch(),
    "scale_mlp_norm": Switch(),
    "class_token": Switch(),
    "no_embed_class": Switch(),
    "pool_include_prefix": Switch(),
    "pre_norm": Switch(),
    "final_norm": Switch(),
    "fc_norm": Switch(),
    "dynamic_img_size": Switch(),
    "dynamic_img_pad": Switch(),
    "strict_img_size": Switch(),
    "always_partition": Switch(),
    "pos_embed": Word(("", "none", "learn")),
    "global_pool": Word(("", "avg", "avgmax", "catavgmax", "max", "token", "map", "prr")),
    "act_layer": Word(("gelu", "gelu_tanh", "quick_gelu", "relu", "relu6", "silu", "hard_swish", "mish", "elu")),
    "norm_layer": Word(("layernorm", "layernormfp32", "rmsnorm", "rmsnormfp32", "simplenorm")),
}

OTHER_WEIGHTS = "names weights, not a shape", "--checkpoint FILE for your own weights; --no-pretrained for random ones"
OTHER_MODEL = "makes something else than a classifier of the known families", "leave it out"
CODE = "takes code, which is not given in words", "leave it out; a model of other blocks needs its own family"
TRAINING = "acts in training alone", "leave it out"
PLACE = "says where the model is built, which is not its shape", "--device cpu or cuda"
PREPARED = "changes how timm's own layers run, which are replaced here", "leave it out"

# Known to timm and refused: (why, what to do instead).
REFUSED: dict[str, tuple[str, str]] = {
    "checkpoint_path": (
        "makes timm load a file of its own accord",
        "--checkpoint FILE, which is read without running code",
    ),
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn"),
        OTHER_WEIGHTS,
    ),
    **dict.fromkeys(
        ("pretrained_model_args", "pretrained_tag", "hf_hub_id", "url", "file", "state_dict"), OTHER_WEIGHTS
    ),
    "cache_dir": ("says where timm keeps downloads", "set HF_HOME to the folder of the cache"),
    **dict.fromkeys(
        ("features_only", "out_indices", "feature_cls", "feature_cfg", "pruned", "use_naflex", "kwargs_filter"),
        OTHER_MODEL,
    ),
    **dict.fromkeys(("model_cfg", "model_name", "model_cls", "variant", "ref_feat_shape"), OTHER_MODEL),
    **dict.fromkeys(("block_fn", "mlp_layer", "attn_layer", "embed_layer", "embed_norm_layer"), CODE),
    **dict.fromkeys(("scriptable", "exportable", "no_jit", "fused_attn"), PREPARED),
    **dict.fromkeys(
        ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
        TRAINING,
    ),
    **dict.fromkeys(("weight_init", "fix_init"), TRAINING),
    **dict.fromkeys(("device", "dtype"), PLACE),
}


def checked(args: Mapping[str, Any], *, source: str = "--model-arg") -> dict[str, Any]:
    """The arguments, lists (as JSON has them) made tuples. SpecError naming the first that is not in the table, or out of
    its range, or does not go with another; `source` says where they were typed."""
    found = {}
    for name, value in args.items():
        words = f"{source} {shown(str(name))}={given(value)}"
        if name in REFUSED:
            why, fix = REFUSED[name]
            raise SpecError(f"{words} is not taken: it {why}", fix=fix)
        if name not in ARGUMENTS:
            close = nearest(str(name)[:100], ARGUMENTS)
            known = f"did you mean {' or '.join(close)}?" if close else f"one of: {', '.join(sorted(ARGUMENTS))}"
            raise SpecError(f"{words}: there is no such argument", fix=known)
        if not (rule := ARGUMENTS[name]).accepts(value):
            raise SpecError(f"{words} is not {rule.says}", fix=f"{source} {name}=VALUE with {rule.says}")
        found[name] = tuple(value) if isinstance(value, list) else value
    _check_together(found, source)
    return found


def _check_together(args: Mapping[str, Any], source: str) -> None:
    dim, heads, depths = args.get("embed_dim"), args.get("num_heads"), args.get("depths")
    if dim is not None and type(heads) is int and "depths" not in args and dim % heads:
        raise SpecError(
            f"{source} embed_dim={dim} is no multiple of num_heads={heads}",
            fix=f"{source} embed_dim={math.ceil(dim / heads) * heads}, or another num_heads",
        )
    if isinstance(heads, tuple) and isinstance(depths, tuple) and len(heads) != len(depths):
        raise SpecError(
            f"{source} depths={given(depths)} has {len(depths)} stages, num_heads={given(heads)} has {len(heads)}",
            fix="one number of blocks and one of heads for each stage",
        )


def given(value: Any) -> str:
    """The value as it may be shown: short, on one line; a tuple as it is typed."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints; lists within lists
        return f"a {type(value).__name__}"
    return shown(text) if len(text) <= 80 else f"{shown(text[:80])}…"
