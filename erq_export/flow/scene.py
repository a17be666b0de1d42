"""A float model in a bundle's basis, with bundles of that basis ready to stand in it layer by layer, and images to look at it."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

from msgspec import structs
from torch import Tensor, nn

from erq_export.calibrate.maps import input_maps
from erq_export.calibrate.rotation import rotated
from erq_export.contract.bits import Bits
from erq_export.contract.bundle import Bundle
from erq_export.contract.story import SeenOn
from erq_export.contract.unfolded import What
from erq_export.data.calibration_set import CalibrationSet
from erq_export.data.held_out import HeldOut, Images, Prepared
from erq_export.flow.artifacts import Artifact
from erq_export.flow.work import Work
from erq_export.validate.metrics.partly import CHUNK, Partly
from erq_export.validate.metrics.sensitivity import Chunks


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`artifact` is the bundle that gives the basis; `data` are the images that it was calibrated on."""

    work: Work
    artifact: Artifact
    data: CalibrationSet

    @cached_property
    def bundle(self) -> Bundle:
        """The artifact, read."""
        return self.artifact.read(Bundle.load)

    @cached_property
    def float_model(self) -> Partly:
        """On the stages' device, in the bundle's basis."""
        model = rotated(self.work.model, self.bundle.rotated).to(self.work.stages.device).eval()
        return Partly(model=model, stages=replace(self.work.model, model=model).stages)

    def with_all_at(self, bits: Bits) -> Artifact:
        """The bundle in which every layer has these bits. The base stays, which decides the basis, so its layers fit."""
        asked = structs.replace(self.bundle.spec, bits=self.bundle.spec.bits.all_at(bits))
        return self.work.stages.bundle(self.work.model, self.data, asked)

    def layers(self, artifact: Artifact, what: What) -> dict[str, nn.Module]:
        """Every layer of a bundle of this basis as it stands in the float model. ValueError for another basis."""
        bundle = artifact.read(Bundle.load)
        if bundle.rotated != self.bundle.rotated:
            raise ValueError(f"{bundle.spec.bits} has another basis than {self.bundle.spec.bits}")
        stages, model = self.work.stages, self.work.model
        known = stages.known_ranges(model, self.data, bundle.spec)
        maps = input_maps(model, self.data, bundle.spec, bundle.rotated, device=stages.device, known=known)
        return self.float_model.layers(bundle, maps, what)

    def chunks(self, images: Images) -> Chunks:
        """The images on the stages' device, as many at a time as go through the model together."""
        return Chunks(images, CHUNK, self.work.stages.device)


def looked_at(work: Work, data: CalibrationSet, n: int) -> tuple[Images, SeenOn]:
    """At most n images to look at a bundle on, evenly spread: held-out ones where there are, else such as were not calibrated
    on, else those that were, on which errors of few rows, such as the head's, look smaller than they are."""
    held = work.held_out
    if isinstance(held, HeldOut):
        return HeldOut(source=held.source, preprocess=held.preprocess, limit=min(n, len(held))), "held out"
    if isinstance(held, Prepared):
        return _prepared(held.tensor[spread(len(held), n)]), "held out"
    rest = work.calibration.others(work.model.identity.preprocess, data.names, n=n)
    if rest is not None:
        return _prepared(rest), "not calibrated on"
    return _prepared(data.pixels[spread(len(data.pixels), n)]), "calibrated on"


def _prepared(pixels: Tensor) -> Prepared:
    return Prepared(tensor=pixels, fingerprint=hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest())


def spread(of: int, n: int) -> list[int]:
    """At most n of so many positions, evenly spread."""
    n = min(n, of)
    return [i * of // n for i in range(n)]
