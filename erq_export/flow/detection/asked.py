"""What can be asked of a detector and what of a classifier: the other's options are refused before any work."""

import importlib.util
import os

from erq_export.contract.errors import SpecError, no_coco_eval
from erq_export.contract.spec import DataSpec, DeploySpec, EvaluateSpec, MethodSpec, ModelSpec
from erq_export.models.aliases import DETECTORS

OWN = tuple(name for name, alias in DETECTORS.items() if not alias.in_paper)  # bring pictures


def is_detector(name: str) -> bool:
    """Does this short name mean a detector?"""
    return name in DETECTORS


def require_classifier(name: str, what: str) -> None:
    """SpecError where a command has nothing to say of detectors yet."""
    if is_detector(name):
        raise SpecError(
            f"{what} is for classifiers, {name} is a detector", fix="validate OUT measures a detector's run again"
        )


def check_begin(name: str, evaluate: EvaluateSpec, *, to_find: bool) -> None:
    """SpecError in several processes, and for a bound on average precision where there is nothing `to_find`; MachineError where
    nothing here counts it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SpecError(
            f"torchrun shares images of classifiers, {name} is a detector", fix="the command without torchrun"
        )
    if not to_find and evaluate.max_drop is not None:
        raise SpecError(
            "--max-drop without --coco: there is nothing to find", fix="--coco DIR, or leave --max-drop out"
        )
    if to_find and importlib.util.find_spec("faster_coco_eval") is None:
        raise no_coco_eval()


def check_kind(
    model: ModelSpec, data: DataSpec, method: MethodSpec, deploy: DeploySpec, evaluate: EvaluateSpec
) -> None:
    """SpecError for an option of the other kind of model."""
    if not is_detector(model.name):
        for word, given in (("--coco", data.coco), ("--canvas", model.canvas)):
            if given is not None:
                raise SpecError(
                    f"{word} is for detectors, {model.name} is a classifier",
                    fix=f"{'--val DIR' if word == '--coco' else '--model-arg img_size=N'}; detectors: {', '.join(DETECTORS)}",
                )
        return
    for word, asked, instead in _of_classifiers(model, data, method, deploy, evaluate):
        if asked:
            raise SpecError(f"{word} is for classifiers, {model.name} is a detector", fix=instead)


def _of_classifiers(
    model: ModelSpec, data: DataSpec, method: MethodSpec, deploy: DeploySpec, evaluate: EvaluateSpec
) -> list[tuple[str, object, str]]:
    """Option, was it given, and what to do instead."""
    leave, quantized = "leave it out", "leave it out: the boxes of a quantized detector are others"
    return [
        ("--val", data.val, "--coco DIR, a folder in COCO's layout"),
        ("--class-map", data.class_map, leave),
        ("--workers", data.workers, leave),
        ("--model-arg", model.model_args, "--canvas 800x1344 sets the size"),
        ("--preprocess", model.preprocess, "--canvas 800x1344 sets the size; the rest is that of the weights"),
        ("--budget", method.budget is not None, "--bits w4a4,body.*=w4a8 gives layers bits of their own"),
        ("-O inputs=quantized", method.options.get("inputs") == "quantized", quantized),
        ("-O input_ranges=quantized", method.options.get("input_ranges") == "quantized", quantized),
        ("-O rounding=mipq", method.options.get("rounding") == "mipq", "leave it out: hours, and no check before them"),
        ("-O head_ridge", method.options.get("head_ridge") is not None, "-O ridge: the layers of heads have it too"),
        ("--max-batch", deploy.max_batch != DeploySpec().max_batch, "leave it out: parts take what they can be given"),
        ("--to reference", "reference" in deploy.targets, "--to onnx"),
        ("--attention int8", deploy.attention == "int8", "leave it out: attention on windows stays in float"),
        ("--compare", evaluate.compare, "python benchmarks/shapes.py compares methods"),
        ("--seeds", evaluate.seeds > 1, "python benchmarks/shapes.py runs several seeds"),
        ("--min-agreement", evaluate.min_agreement is not None, "--max-drop, in points of average precision"),
        ("--max-logit-error", evaluate.max_logit_error is not None, "--max-drop, in points of average precision"),
        ("--sensitivity", evaluate.sensitivity, leave),
    ]
