"""Short names: the exact timm tag behind each, and where its defaults differ. Torch-free, so the command line can list it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from erq_export.contract.records import Scalar

if TYPE_CHECKING:
    from erq_export.contract.identity import Identity

PAPER_RIDGE = 1e4  # λ of ERQ for ImageNet models and 32 images, but for DeiT-T
DETECTOR_RIDGE = 1e5  # λ of ERQ for COCO detectors and one image
SCENES = (
    22  # have as many pixels as one picture of COCO, 800 × 1344: of one scene its last maps have 48 tokens a channel
)


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A timm name with its tag; preprocessing as evaluated; what differs from the general defaults of a job.

    options: of the methods that have them;  defaults: of the job's other fields;  paper_ridge: the paper's λ for this model;
    top1: of the float model in per cent, on ImageNet's 50,000 validation images as the paper has it; the demo's on its held-out
    digits.
    """

    timm_name: str
    preprocess: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Scalar] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    paper_ridge: float = PAPER_RIDGE
    note: str = ""
    in_paper: bool = True
    top1: float | None = None


VIT = SWIN = {"crop_pct": 0.9}  # timm's own, written down so that it can be listed without torch
DEIT = {"crop_pct": 0.875}  # as in the paper's evaluation; timm's own configuration says 0.9
LIKE_VIT, LIKE_SWIN = (f"not in the paper: λ as for its {family}" for family in ("ViTs", "Swins"))

# The paper's 1e4 (DeiT-T: 1e3) stands beside 6304 rows and ImageNet models; the demo has 2080. Chosen on training digits.
DEMO_RIDGE = 1e2

ALIASES: dict[str, Alias] = {
    "vit_t": Alias(
        timm_name="vit_tiny_patch16_224.augreg_in21k_ft_in1k", preprocess=VIT, note=LIKE_VIT, in_paper=False
    ),
    "vit_s": Alias(timm_name="vit_small_patch16_224.augreg_in21k_ft_in1k", preprocess=VIT, top1=81.39),
    "vit_b": Alias(timm_name="vit_base_patch16_224.augreg_in21k_ft_in1k", preprocess=VIT, top1=84.54),
    "deit_t": Alias(timm_name="deit_tiny_patch16_224.fb_in1k", preprocess=DEIT, paper_ridge=1e3, top1=72.21),
    "deit_s": Alias(timm_name="deit_small_patch16_224.fb_in1k", preprocess=DEIT, top1=79.85),
    "deit_b": Alias(timm_name="deit_base_patch16_224.fb_in1k", preprocess=DEIT, top1=81.80),
    "swin_t": Alias(timm_name="swin_tiny_patch4_window7_224.ms_in1k", preprocess=SWIN, note=LIKE_SWIN, in_paper=False),
    "swin_s": Alias(timm_name="swin_small_patch4_window7_224.ms_in1k", preprocess=SWIN, top1=83.23),
    "swin_b": Alias(timm_name="swin_base_patch4_window7_224.ms_in22k_ft_in1k", preprocess=SWIN, top1=85.27),
    "demo": Alias(
        timm_name="vit_tiny_patch16_224",
        paper_ridge=DEMO_RIDGE,
        defaults={"compare": ("w3a4", "w2a4"), "seeds": 5},
        note="bundled: handwritten digits, weights and images included",
        in_paper=False,
        top1=99.16,
    ),
}

# Detectors have no timm tag: their own name stands in its place. λ is the paper's: one picture cannot be halved to choose it by.
_OF_ONE_PICTURE: dict[str, Any] = {
    "options": {"ridge": DETECTOR_RIDGE},
    "defaults": {"calib": 1, "canvas": "800x1344,1344x800"},
    "paper_ridge": DETECTOR_RIDGE,
}
_DRAWN = "bundled: shapes to find, weights and pictures included"
_OF_THREE_HEADS = "bundled: the same pictures, a cascade of three heads"
DETECTORS: dict[str, Alias] = {
    **{
        name: Alias(timm_name=name, **_OF_ONE_PICTURE)
        for name in ("mask_rcnn_swin_t", "mask_rcnn_swin_s", "cascade_mask_rcnn_swin_t", "cascade_mask_rcnn_swin_s")
    },
    **{
        name: Alias(timm_name=name, in_paper=False, note=note, defaults={"calib": SCENES, "canvas": "192x256"})
        for name, note in (("shapes", _DRAWN), ("shapes_cascade", _OF_THREE_HEADS))
    },
}


def known(name: str) -> Alias | None:
    """The alias of that name, of a classifier or of a detector."""
    return ALIASES.get(name) or DETECTORS.get(name)


def paper_ridge(name: str) -> float:
    """The paper's λ for a model: that of its alias, else the usual one."""
    alias = known(name)
    return PAPER_RIDGE if alias is None else alias.paper_ridge


def published_top1(identity: "Identity") -> float | None:
    """What the float model is known to reach, with the weights that the figure is about; None where nothing is."""
    if identity.weights == "bundled":
        return ALIASES["demo"].top1
    known = {alias.timm_name: alias.top1 for alias in ALIASES.values()}
    return known.get(identity.timm_name) if identity.weights == "pretrained" else None
