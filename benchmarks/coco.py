"""The paper's table of detectors beside yours: python benchmarks/coco.py --coco DIR --checkpoints DIR --out FOLDER.

Calibrates on one picture of train2017 and counts box and mask AP of the float detector and of the fake-quant reference on
val2017, in PyTorch on --device. Every result is kept in the store when it is there; started again, the command does only
what is missing. --checkpoints holds the published files under their own names (`erq-export models`).

Pictures lie on the first --canvas that holds them, upright ones on the second; those that fit on none are left out.
"""

import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import detected
import sheet

from erq_export.contract.errors import DataError
from erq_export.flow import page
from erq_export.flow.job import Job, resolve
from erq_export.flow.terminal import Terminal
from erq_export.models.detectors.architecture import PUBLISHED

KNOWN = tomllib.loads(Path(__file__).with_name("coco.toml").read_text(encoding="utf-8"))
DEFAULTS: dict[str, Any] = {"coco": Path, "checkpoints": None, "out": Path, "pretrained": True}
DEFAULTS |= {"models": tuple(PUBLISHED), "settings": ("w4a4 rtn", "w4a4 repq", "w4a4 gptq", "w4a4 erq", "w6a6 erq")}
DEFAULTS |= {"seeds": 1, "pictures": 0, "canvas": "800x1344,1344x800", "device": "auto"}


def job(words: Any, name: str, setting: str, seed: int) -> Job:
    """One setting of one detector."""
    given: dict[str, Any] = {"name": name, "seed": seed, "coco": str(words.coco), "canvas": words.canvas}
    given |= {"device": words.device, "pretrained": words.pretrained, "val_images": words.pictures}
    if words.checkpoints is not None:
        file = words.checkpoints / PUBLISHED[name].file
        if not file.is_file():
            raise DataError(f"{words.checkpoints} has no {PUBLISHED[name].file}", fix="the published file there")
        given["checkpoint"] = str(file)
    return resolve(given | detected.fields(setting))


def main() -> None:
    words = sheet.words(__doc__, DEFAULTS)
    sheet.check_known("detector", words.models, PUBLISHED)
    for name in words.models:  # every file is there before the first detector is calibrated
        job(words, name, words.settings[0], 0)
    about = {"seeds": words.seeds, "canvas": words.canvas, "published": KNOWN["w4a4"], "notes": KNOWN["notes"]}
    about["machine"] = page.machine("torch", "torchvision", "timm", "faster-coco-eval")
    rows = []
    with sheet.opened(words) as store:
        for name in words.models:
            asked = partial(job, words, name)
            rows.append(detected.of_model(name, asked, words.settings, words.seeds, store, Terminal()))
            sheet.write(words, "coco", about | {"rows": rows, "models": list(words.models)})


if __name__ == "__main__":
    sheet.start(main)
