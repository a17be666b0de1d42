"""Command lines that must be refused: for every option values of wrong kinds, words in wrong places, choices that exclude
each other. Each is certain to be refused before a model is built, as something that is needed is missing from it."""

import random
from dataclasses import dataclass
from pathlib import Path

from command_line import MODEL

VALUES = (
    *(
        "",
        " ",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "Infinity",
        "1e999",
        "-1e999",
        "-1",
        "-0",
        "0",
        "0.5",
        "1e3",
        "1_000",
        "0x10",
    ),
    *(
        "9" * 30,
        "-" + "9" * 30,
        "9" * 5000,
        "٣",
        "４",
        "w٣a٤",
        "ｗ4ａ4",
        "w4a4\n",
        "W4A4 ",
        "w4a4a4",
        "²",
        "½",
        "1,5",
        "1.2.3",
    ),
    *(
        "a" * 10_000,
        "é" * 300,
        "e\u0301",
        "caf\u00e9",
        "cafe\u0301",
        "\x00",
        "\x1b[31mred\x1b[0m",
        "a\rb",
        "a\nb",
        "\u202eabc",
    ),
    *(
        "\udcff",
        "a\udc80b",
        "\U0001f600",
        "..",
        ".",
        "/",
        "~",
        "-",
        "--",
        "=",
        "a=b",
        "a==b",
        "=b",
        "a=",
        "%s%n",
        "{}",
        "{0.a}",
    ),
    *(
        "[]",
        "()",
        "[[1],[2]]",
        "(" * 150 + ")" * 150,
        "{'a': 1}",
        "__import__('os')",
        "__import__('os').system('touch HACKED')",
    ),
    *(
        "$(touch HACKED)",
        "`touch HACKED`",
        "; touch HACKED",
        "True",
        "None",
        "null",
        "true",
        "b'x'",
        "1j",
        "lambda: 0",
        "1e400j",
    ),
    *("../../../../etc/passwd", "/etc/passwd", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/full", "/proc/self/mem"),
    *(
        "/proc/self/environ",
        "/proc/kmsg",
        "/proc",
        "/sys",
        "/nonexistent/a/b",
        "con",
        "a" * 255,
        "a/" * 3000,
        "file:///etc/passwd",
    ),
    *("http://localhost:1/x", "hf-hub:a/b", "local-dir:.", "local-dir:/etc", "timm/vit"),
)
# Options of the main job by how they are typed; -O, --model-arg and --preprocess take NAME=VALUE.
PLAIN = (
    *(
        "--checkpoint",
        "--data",
        "--calib",
        "--seed",
        "--val",
        "--class-map",
        "--val-images",
        "--bits",
        "--budget",
        "--method",
        "--to",
    ),
    *("--attention", "--pack", "--capability", "--max-batch", "--compare", "--seeds", "--max-drop", "--published"),
    *("--device", "--out", "--store"),
)
NAMED = {
    "-O": (
        "ridge",
        "flips",
        "rounding",
        "row_steps",
        "mipq_seconds",
        "block",
        "attention_bits",
        "inputs",
        "fold_reduction",
    ),
    "--model-arg": (
        "img_size",
        "patch_size",
        "depth",
        "num_heads",
        "checkpoint_path",
        "pretrained_cfg",
        "act_layer",
        "qkv_bias",
    ),
    "--preprocess": ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size"),
}
NEARLY = (
    *(
        "--bit",
        "--bts",
        "--methd",
        "--too",
        "--overwrit",
        "--checkpont",
        "--vall",
        "--publishd",
        "--ou",
        "--o",
        "-o",
        "-b",
    ),
    *(
        "--max-dorp",
        "--max_drop",
        "--no-pretraind",
        "--stor",
        "--no-stores",
        "--help-me",
        "-x",
        "--\udcff",
        "--" + "a" * 9000,
    ),
)
STAGES = ("build", "validate", "inspect")


@dataclass(frozen=True)
class Places:
    """What a path on the command line may lead to: a folder of images, a file of text, a pipe that nobody writes, a folder
    of the user's, links to nowhere and to themselves, and one that may not be entered."""

    root: Path

    @classmethod
    def made(cls, root: Path) -> "Places":
        import os

        (root / "empty").mkdir()
        (root / "mine").mkdir()
        (root / "mine" / "notes.txt").write_text("years of work")
        (root / "text").write_text("no image, no graph, no record")
        (root / "run.json").write_text("{}")
        os.mkfifo(root / "pipe")
        (root / "dangling").symlink_to(root / "nowhere")
        (root / "loop").symlink_to(root / "loop")
        (root / os.fsdecode(b"\xff\xfe")).mkdir()
        return cls(root)

    def some(self, chance: random.Random) -> str:
        names = [
            "empty",
            "mine",
            "text",
            "pipe",
            "dangling",
            "loop",
            "text/below",
            "nowhere",
            "run.json",
            "\udcff\udcfe",
        ]
        return str(self.root / chance.choice(names))


def main_job(chance: random.Random, places: Places) -> list[str]:
    """The main job without images: refused in the end, whatever else is right."""
    words = ["run"] * (chance.random() < 0.5) + [*MODEL, "--no-pretrained", "--bits", "w4a4"]
    for _ in range(chance.randrange(1, 4)):
        words += an_option(chance, places)
    if chance.random() < 0.1:
        words[words.index(MODEL[0])] = chance.choice(VALUES)
    if chance.random() < 0.1:
        del words[chance.randrange(len(words))]
    return words


def an_option(chance: random.Random, places: Places) -> list[str]:
    value = places.some(chance) if chance.random() < 0.2 else chance.choice(VALUES)
    match chance.randrange(8):
        case 0 | 1 | 2:
            return [chance.choice(PLAIN), value]
        case 3:
            return [f"{chance.choice(PLAIN)}={value}"]
        case 4 | 5:
            option = chance.choice(list(NAMED))
            return [option, f"{chance.choice(NAMED[option])}={value}"]
        case 6:
            return [chance.choice(list(NAMED)), value]
        case _:
            return [chance.choice(NEARLY)] + [value] * chance.randrange(2)


def other_command(chance: random.Random, places: Places) -> list[str]:
    """Any other command on a folder or file that holds no run and no graph; `store --clear` only of folders made for it."""
    where = places.some(chance) if chance.random() < 0.6 else chance.choice(VALUES)
    value = chance.choice(VALUES)
    extra = [chance.choice(NEARLY)] * (chance.random() < 0.15) + [value] * (chance.random() < 0.15)
    match chance.randrange(8):
        case 0 | 1 | 2:
            return [chance.choice(STAGES), where, *extra]
        case 3:
            return ["build", where, "--to", value, *extra]
        case 4:
            return ["check", where, *["--target", chance.choice(["onnx", value])] * (chance.random() < 0.8), *extra]
        case 5:
            return ["methods", value, *extra]
        case 6:
            return [chance.choice(["models", "doctor", "methods"]), *[value] * chance.randrange(1, 3), *extra]
        case _:
            option = chance.choice([["--older-than", value], ["--kind", value], ["--clear", "--older-than", value]])
            return ["store", "--store", str(places.root / "text"), *option, *extra]
