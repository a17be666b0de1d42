"""What quantization costs the stand-in detectors in average precision: python benchmarks/shapes.py [--models …] [--seeds N].

Every setting over seeds of the calibration scenes, beside the float detector on the same held-out scenes, in PyTorch: what
graphs and engines compute is compared by every run (`erq-export shapes`). Intervals are of a paired bootstrap over pictures.
"""

from typing import Any

import detected
import sheet

from erq_export.contract.errors import SpecError
from erq_export.flow import page
from erq_export.flow.detection.asked import OWN
from erq_export.flow.job import Job, resolve
from erq_export.flow.ui import SILENT

SETTINGS = (  # bits, method, and the number of scenes that are calibrated on where it is not the model's own
    *("w8a8 rtn", "w8a8 erq", "w4a8 erq", "w4a4 rtn", "w4a4 repq", "w4a4 gptq", "w4a4 erq"),
    *("w8a8 erq 1", "w4a4 rtn 1", "w4a4 erq 1"),
)


def main() -> None:
    words = sheet.words(__doc__, {"models": OWN[:1], "settings": SETTINGS, "seeds": 3, "pictures": 600})
    sheet.check_known("model", words.models, OWN)
    if words.pictures < 1:
        raise SpecError(
            f"--pictures {words.pictures}", fix="at least 1 held-out scene; they are drawn as they are wanted"
        )
    about: dict[str, Any] = {"seeds": words.seeds}
    about["machine"] = page.machine("torch", "torchvision", "timm", "faster-coco-eval")
    rows = []
    with sheet.opened(words) as store:
        for name in words.models:

            def asked(setting: str, seed: int, name: str = name) -> Job:
                given = {"name": name, "seed": seed, "val_images": words.pictures, "targets": ("onnx", "tensorrt-rtx")}
                return resolve(given | detected.fields(setting))

            rows.append(detected.of_model(name, asked, words.settings, words.seeds, store, SILENT))
            sheet.write(words, "shapes", about | {"rows": rows})


if __name__ == "__main__":
    sheet.start(main)
