"""The story of a bundle: where it loses by depth, and, where asked for, what each layer costs and what 8 bits give back."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from erq_export.contract.bits import Bits
from erq_export.contract.bundle import Bundle
from erq_export.contract.records import encode
from erq_export.contract.story import LayerCost, SeenOn, Story
from erq_export.contract.unfolded import What
from erq_export.data.held_out import Images
from erq_export.flow.artifacts import Artifact
from erq_export.flow.scene import Scene, looked_at
from erq_export.flow.stages import STORY
from erq_export.flow.work import Work
from erq_export.validate.metrics.depth import by_depth
from erq_export.validate.metrics.partly import Modules
from erq_export.validate.metrics.sensitivity import swapped

N_DEPTH, N_SENSITIVITY = (
    16,
    640,
)  # images; the error of outputs is that of few of them: 32 promise half where 600 show a third
RAISED = Bits(w=8, a=8)
WHATS: tuple[What, ...] = ("weights", "activations", "both")


@dataclass(frozen=True, kw_only=True)
class StoryStage:
    """What `Stages.story` keeps. eight: the bundle with every layer at w8a8, where sensitivities are wanted."""

    scene: Scene
    images: Images
    seen_on: SeenOn
    eight: Artifact | None = None

    def inputs(self) -> dict[str, str]:
        """By content."""
        eight = {} if self.eight is None else {"eight": self.eight.content}
        of = {"bundle": self.scene.artifact.content, "model": self.scene.work.model.fingerprint}
        return of | {"images": self.images.fingerprint, "calibrated on": self.scene.data.sha256} | eight

    def make(self, folder: Path) -> None:
        """Write story.json."""
        scene = self.scene
        float_model, chunks = scene.float_model, scene.chunks(self.images)
        operands = float_model.operands(scene.bundle)
        variants: dict[str, Modules] = {
            what: scene.layers(scene.artifact, what) | ({} if what == "weights" else operands) for what in WHATS
        }
        depth = by_depth(float_model, variants, chunks)
        story = Story(
            n_images=len(self.images),
            seen_on=self.seen_on,
            outputs="features" if scene.work.headless else "logits",
            error=depth[-1].both,
            depth=depth,
            sensitivity=() if self.eight is None else self._costs(self.eight),
        )
        (folder / STORY).write_bytes(encode(story))

    def _costs(self, eight: Artifact) -> tuple[LayerCost, ...]:
        scene, chunks = self.scene, self.scene.chunks(self.images)
        of_run, raised = scene.layers(scene.artifact, "both"), scene.layers(eight, "both")
        measure = partial(swapped, scene.float_model, chunks=chunks, progress=scene.work.ui.progress)
        _, alone = measure({}, list(of_run.items()), what="each layer alone")
        base = of_run | scene.float_model.operands(scene.bundle)
        _, with_eight = measure(base, list(raised.items()), what="each layer at w8a8")
        costs = [
            LayerCost(
                path=path,
                w_bits=layer.w_bits,
                a_bits=layer.a_bits,
                n_weights=layer.weight_q.numel(),
                alone=alone[i],
                raised=with_eight[i],
            )
            for i, (path, layer) in enumerate((path, scene.bundle.layers[path]) for path in of_run)
        ]
        return tuple(sorted(costs, key=lambda cost: -cost.alone))


def tell(work: Work, artifact: Artifact, *, sensitivity: bool) -> Story | None:
    """The bundle's story; None where the images at hand are not those that it was calibrated on, for its folds are theirs."""
    data = work.calibration_images(work.job.data.seed)
    if artifact.read(Bundle.load).data.pixels_sha256 != data.sha256:
        work.ui.note("no errors by depth: the calibration images are not those of the bundle")
        return None
    scene = Scene(work=work, artifact=artifact, data=data)
    images, seen_on = looked_at(work, data, N_SENSITIVITY if sensitivity else N_DEPTH)
    eight = scene.with_all_at(RAISED) if sensitivity else None
    stage = StoryStage(scene=scene, images=images, seen_on=seen_on, eight=eight)
    return work.stages.story(stage.inputs(), stage.make)
