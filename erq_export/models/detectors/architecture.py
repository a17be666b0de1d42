"""What a detector is made of: widths, depths and heads; the four whose weights are published."""

from dataclasses import dataclass, replace

from erq_export.contract.registry import unknown

CASCADE_STAGES = 3
Size = tuple[int, int]  # height, width
STAND_IN = (192, 256)  # pixels of a stand-in's picture and canvas (`data.scenes`)
CANVAS = (800, 1344)  # of the published: what a picture of 800 × 1333 lies on


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A Swin body with a feature pyramid, and heads that predict boxes and masks of `classes` kinds of things."""

    depths: tuple[int, ...]  # blocks of each of Swin's four stages
    cascade: bool  # three box and three mask heads, each of which refines the boxes of the one before
    dim: int = 96  # channels of Swin's first stage; each later stage has twice as many
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    channels: int = 256  # of the pyramid's maps and of every convolution behind them
    features: int = 1024  # of the hidden layers of a box head
    classes: int = 80  # without the background

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of Swin's stages."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))

    @property
    def n_heads(self) -> int:
        """Box heads, and mask heads."""
        return CASCADE_STAGES if self.cascade else 1

    @property
    def parts(self) -> tuple[str, ...]:
        """As `Detector.parts` names them."""
        if not self.cascade:
            return ("body", "box", "mask")
        return ("body", *(f"{kind}.{i}" for kind in ("box", "mask") for i in range(self.n_heads)))


@dataclass(frozen=True, kw_only=True)
class Published:
    """A detector whose weights the authors of Swin gave away, and the name of their file."""

    file: str
    architecture: Architecture


TINY, SMALL = (2, 2, 6, 2), (2, 2, 18, 2)
PUBLISHED = {
    "mask_rcnn_swin_t": Published(
        file="mask_rcnn_swin_tiny_patch4_window7.pth", architecture=Architecture(depths=TINY, cascade=False)
    ),
    "mask_rcnn_swin_s": Published(
        file="mask_rcnn_swin_small_patch4_window7.pth", architecture=Architecture(depths=SMALL, cascade=False)
    ),
    "cascade_mask_rcnn_swin_t": Published(
        file="cascade_mask_rcnn_swin_tiny_patch4_window7.pth", architecture=Architecture(depths=TINY, cascade=True)
    ),
    "cascade_mask_rcnn_swin_s": Published(
        file="cascade_mask_rcnn_swin_small_patch4_window7.pth", architecture=Architecture(depths=SMALL, cascade=True)
    ),
}

_SHAPES = Architecture(
    depths=(2, 2, 2, 1), cascade=False, dim=32, heads=(1, 2, 4, 8), channels=32, features=256, classes=8
)
STAND_INS = {  # trained on `data.scenes` by benchmarks/train_shapes.py
    "shapes": _SHAPES,
    "shapes_cascade": replace(_SHAPES, cascade=True, features=128),
}


def architecture_of(name: str) -> Architecture:
    """SpecError with the names there are for another."""
    if name in STAND_INS:
        return STAND_INS[name]
    if name in PUBLISHED:
        return PUBLISHED[name].architecture
    raise unknown("detector", name, [*PUBLISHED, *STAND_INS])
