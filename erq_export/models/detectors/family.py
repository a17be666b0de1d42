"""The family of detectors, as calibration sees it: stages whose states are several tensors of one image."""

from typing import cast

from torch import nn

from erq_export.contract.sites import AttentionShape, Stage, Stream
from erq_export.models.detectors.body import prepare
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.stages import stages
from erq_export.models.detectors.windows import CanvasAttention

NAME = "detector"


class DetectorFamily:
    """Swin's LayerNorms feed what they feed in a classifier; padding is put in behind them, so `Site.pad` goes with norm1's."""

    name = NAME

    def claims(self, model: nn.Module) -> bool:
        return isinstance(model, Detector)

    def input_size(self, model: nn.Module) -> tuple[int, int, int]:
        return (3, *cast(Detector, model).body.canvas)

    def prepare(self, model: nn.Module) -> nn.Module:
        detector = cast(Detector, model)
        prepare(detector.body)
        return detector.eval().requires_grad_(False)

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        return stages(cast(Detector, model))

    def attention(self, model: nn.Module) -> tuple[AttentionShape, ...]:
        return tuple(
            AttentionShape(path=path, n_tokens=module.bias.shape[-1], head_dim=module.d)
            for path, module in model.named_modules()
            if isinstance(module, CanvasAttention)
        )

    def streams(self, model: nn.Module) -> tuple[Stream, ...]:  # noqa: ARG002 - the protocol's
        """None: zeros put in behind norm1 are no tokens of another basis."""
        return ()


FAMILY = DetectorFamily()
