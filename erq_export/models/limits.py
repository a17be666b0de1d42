"""Which attention can be quantized, and which a target runs in integers: refused with its numbers before anything is done."""

from collections.abc import Iterable

from erq_export.contract.errors import SpecError
from erq_export.contract.sites import AttentionShape
from erq_export.contract.targets import Target, named


def check_attention(shapes: Iterable[AttentionShape], targets: Iterable[str], attention: str = "int8") -> None:
    """SpecError naming the first attention whose operands cannot be quantized, or whose fused integer kernel a target lacks."""
    rows = [named(name) for name in targets]
    for shape in shapes:
        if shape.in_heads:
            raise SpecError(
                f"--attention {attention}: {shape.path} normalises q and k within heads (qk_norm), so they have no integers "
                f"before they are cut into heads",
                fix="--attention fp16",
            )
        for target in rows:
            _check(shape, target)


def _check(shape: AttentionShape, target: Target) -> None:
    fix = f"--attention fp16 (calibrate again where it was int8), or leave --to {target.name} out"
    if target.int8_head_dims is not None and shape.head_dim not in target.int8_head_dims:
        dims = ", ".join(map(str, target.int8_head_dims))
        raise SpecError(
            f"--attention int8 on target {target.name!r}: the heads of {shape.path} have {shape.head_dim} channels, fused "
            f"integer attention exists for {dims}",
            fix=fix,
        )
    if target.int8_tokens is not None and shape.n_tokens > target.int8_tokens:
        raise SpecError(
            f"--attention int8 on target {target.name!r}: {shape.path} has {shape.n_tokens} tokens, fused integer "
            f"attention ends at {target.int8_tokens}",
            fix=f"{fix}; or a smaller image (--model-arg img_size=…)",
        )
