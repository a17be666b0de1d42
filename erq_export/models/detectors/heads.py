"""The heads of a detector: what was pooled from a box becomes scores and offsets for each class, or a mask for each class.

Class 0 is the background. The published weights have it last, and no offsets and masks for it: `published_rows` adds them.
"""

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from erq_export.models.detectors.architecture import Architecture

BOX_SIDE, MASK_SIDE = 7, 14  # of what is pooled; a mask leaves with twice that
CONVOLUTIONS = 4  # in front of a mask, and of a cascade's box


class BoxHead(nn.Module):
    """(n, C, 7, 7) → logits (n, 1 + classes), offsets (n, 1 + classes, 4)

    A cascade's heads have four convolutions and one hidden layer, the single one none and two. BatchNorms of the published
    cascade are part of its convolutions.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels, features = architecture.channels, architecture.features
        self.head: nn.Module = TwoMLPHead(channels * BOX_SIDE**2, features)
        if architecture.cascade:
            inside = (channels, BOX_SIDE, BOX_SIDE)
            self.head = FastRCNNConvFCHead(inside, [channels] * CONVOLUTIONS, [features])
        self.predictor = FastRCNNPredictor(features, 1 + architecture.classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.predictor(self.head(x))
        return logits, deltas.unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """(n, C, 14, 14) → logits (n, 1 + classes, 28, 28)"""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels = architecture.channels
        self.head = MaskRCNNHeads(channels, [channels] * CONVOLUTIONS, 1)
        self.predictor = MaskRCNNPredictor(channels, channels, 1 + architecture.classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.predictor(self.head(x))
        return out
