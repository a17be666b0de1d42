"""What quantization costs the stand-in detectors in average precision: python benchmarks/shapes.py [--models …] [--seeds N].

Every setting over seeds of the calibration scenes, beside the float detector on the same held-out scenes, in PyTorch: what
graphs and engines compute is compared by every run (`erq-export shapes`). Intervals are of a paired bootstrap over pictures.
Every model has results and a page of its own.
"""

from typing import Any

import detected
import sheet

from erq_export.contract.errors import SpecError
from erq_export.flow import page
from erq_export.flow.detection.asked import OWN
from erq_export.flow.job import Job, resolve
from erq_export.flow.ui import SILENT

METHODS = ("w8a8 rtn", "w8a8 erq", "w4a8 erq", "w4a4 rtn", "w4a4 repq", "w4a4 gptq", "w4a4 erq")
ONE_SCENE = ("w8a8 erq 1", "w4a4 rtn 1", "w4a4 erq 1")  # calibrated on one, not on as many as the short name takes
SETTINGS = {
    "shapes": METHODS + ONE_SCENE,
    "shapes_cascade": ("w8a8 erq", "w4a4 rtn", "w4a4 repq", "w4a4 erq"),  # its seeds cost three times as much
}


def main() -> None:
    words = sheet.words(__doc__, {"models": OWN, "settings": (), "seeds": 3, "pictures": 600})
    sheet.check_known("model", words.models, OWN)
    if words.pictures < 1:
        raise SpecError(
            f"--pictures {words.pictures}", fix="at least 1 held-out scene; they are drawn as they are wanted"
        )
    about: dict[str, Any] = {"seeds": words.seeds}
    about["machine"] = page.machine("torch", "torchvision", "timm", "faster-coco-eval")
    with sheet.opened(words) as store:
        for name in words.models:

            def asked(setting: str, seed: int, name: str = name) -> Job:
                given = {"name": name, "seed": seed, "val_images": words.pictures, "targets": ("onnx", "tensorrt-rtx")}
                return resolve(given | detected.fields(setting))

            settings = words.settings or SETTINGS[name]
            row = detected.of_model(name, asked, settings, words.seeds, store, SILENT)
            sheet.write(words, "shapes", about | {"rows": [row]}, called=name)


if __name__ == "__main__":
    sheet.start(main)
