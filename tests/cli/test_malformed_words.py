"""Command lines of every wrong kind: refused in two lines with the fix, soon, with nothing written and nothing executed."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import MODEL, Erq, write_images
from command_words import Places, main_job, other_command

from erq_export.cli.app import COMMANDS

N_MAIN, N_OTHER = 900, 500
LONGEST_S = 5.0  # each is refused in a hundredth of that; the first one loads torch
MOST_SAID = 4000  # characters: a screen or two


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return Places.made(tmp_path)


def state(root: Path) -> dict[str, tuple[int, int, int]]:
    """What lies below a folder: kind, size and time of every name, links not followed."""
    found = {p: p.lstat() for p in root.rglob("*")}
    return {str(p): (s.st_mode, s.st_size, s.st_mtime_ns) for p, s in found.items()}


def check_refused(code: int, said: str) -> None:
    """Two lines that a terminal can show, and the exit code of what a user can mend or this machine lacks."""
    assert code in (2, 3)
    assert "error: " in said
    assert "\n  fix: " in said
    assert len(said) <= MOST_SAID
    assert all(c.isprintable() or c == "\n" for c in said)


def check_all(erq: Erq, places: Places, lines: list[list[str]]) -> None:
    before = state(places.root)
    for words in lines:
        begin = time.perf_counter()
        code, said = erq(*words)
        took = time.perf_counter() - begin
        shown = [ascii(word[:60]) for word in words]
        try:
            check_refused(code, said)
        except AssertionError as e:
            raise AssertionError(f"{shown} ended with {code}: {said[:1000]!r}") from e
        assert took < LONGEST_S, shown
        assert state(places.root) == before, shown


def test_the_main_job_refuses_wrong_words(erq: Erq, places: Places) -> None:
    lines = [[*main_job(random.Random(f"main {i}"), places), "--out", f"{places.root}/out"] for i in range(N_MAIN)]
    check_all(erq, places, lines)


def test_the_other_commands_refuse_wrong_words(erq: Erq, places: Places) -> None:
    check_all(erq, places, [other_command(random.Random(f"other {i}"), places) for i in range(N_OTHER)])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(erq: Erq, command: str) -> None:
    code, said = erq(command, "--help")
    assert code == 0
    assert "Usage" in said


# What must be refused for its own sake, and by which words. Images are there, so nothing else is wrong.
ALONE = [
    (["--bits", "w4a4", "--bits", "nan"], 2, ("--bits 'nan'", "--bits w4a4")),
    (["--max-drop", "nan"], 2, ("--max-drop 'nan'", "-100 to 100")),
    (["--max-drop", "inf"], 2, ("--max-drop 'inf'", "-100 to 100")),
    (["--max-drop", "1"], 2, ("--max-drop without --val", "--val DIR")),
    (["--compare", "w3a4"], 2, ("--compare without --val",)),
    (["--val-images", "5"], 2, ("--val-images without --val",)),
    (["--seeds", "2"], 2, ("--seeds without --val",)),
    (["-O", "ridge=inf"], 2, ("-O ridge 'inf'",)),
    (["-O", "head_ridge=nan"], 2, ("-O head_ridge 'nan'",)),
    (["-O", "rigde=1"], 2, ("unknown option of --method erq 'rigde'", "did you mean ridge")),
    (["-O", "flips=1.5"], 2, ("-O flips '1.5'", "an integer")),
    (["-O", "mipq_seconds=3"], 2, ("changes nothing with rounding=flip", "-O rounding=mipq")),
    (["--seed", "9" * 30], 2, ("--seed", "0 to 9223372036854775807")),
    (["--calib", "٣"], 2, ("--calib", "an integer")),
    (["--calib", "4.5"], 2, ("--calib '4.5'", "an integer")),
    (["--bits", "ｗ4ａ4"], 2, ("--bits", "w4a4")),
    (["--device", "meta"], 2, ("unknown --device 'meta'", "cpu")),
    (["--device", "cuda:-1"], 2, ("unknown --device 'cuda:-1'",)),
    (["--device", "cuda:999"], 3, ("--device cuda:999", "--device cpu")),
    (["--capability", "9,0"], 2, ("--capability ('9,0',)", "for example 8.9")),
    (["--published", "icml"], 2, ("--published icml", "--to reference")),
    (["--bits", "w8a8", "--pack", "int4"], 2, ("--pack int4 with --bits w8a8", "--pack int8")),
    (["--attention", "int8", "--model-arg", "img_size=100", "--to", "tensorrt-rtx"], 2, ("626 tokens", "img_size")),
    (["--class-map", "run.json"], 2, ("--class-map without --val",)),
    (["--data", ""], 2, ("--data ''", ". is the current one")),
    (["--val", ""], 2, ("--val ''",)),
    (["--store", ""], 2, ("--store is empty",)),
    (["--store", "a\0b"], 2, ("--store holds the character NUL",)),
    (["--store", "new", "--no-store"], 2, ("--store and --no-store exclude each other",)),
    (["--checkpoint", "/dev/zero"], 2, ("it is a device", "--checkpoint FILE")),
    (["--checkpoint", "../pipe"], 2, ("it is a named pipe",)),
    (["--model-arg", "checkpoint_path=good.pth"], 2, ("makes timm load a file", "--checkpoint FILE")),
    (["--model-arg", "img_size=(32,)"], 2, ("height,width",)),
    (["--model-arg", "patch_size=0"], 2, ("a whole number from 1",)),
    (["--model-arg", "num_classes=100000000"], 3, ("of memory are needed",)),
    (["--model-arg", "depth=__import__('os')"], 2, ("is not a whole number",)),
    (["--preprocess", "crop_pct=nan"], 2, ("crop_pct=nan", "a number above 0")),
    (["--preprocess", "crop=1"], 2, ("unknown --preprocess part 'crop'", "did you mean crop_")),
    (["--preprocess", "std=0,0,0"], 2, ("std=(0, 0, 0)",)),
    (["--overwrit"], 2, ("has no option --overwrit", "did you mean --overwrite")),
    (["--max_drop", "1"], 2, ("has no option --max_drop", "did you mean --max-drop")),
    (["--calib"], 2, ("--calib", "--help shows how it is used")),
    (["surplus"], 2, ("surplus",)),
]


@pytest.mark.parametrize(
    ("words", "code", "says"), ALONE, ids=[" ".join(ascii(w)[1:30] for w in case[0]) for case in ALONE]
)
def test_each_is_refused_for_its_own_sake(
    erq: Erq, places: Places, words: list[str], code: int, says: tuple[str, ...]
) -> None:
    data = write_images(places.root / "photos", 4, size=16)
    before = state(places.root)
    base = [*MODEL, "--no-pretrained", "--bits", "w4a4", "--calib", "4", "--data", data, "--out", places.root / "out"]
    ended, said = erq(*base, *words)
    check_refused(ended, said)
    assert ended == code
    for text in says:
        assert text in said
    assert state(places.root) == before


@pytest.mark.parametrize(("typed", "meant"), [("buidl", "build"), ("validat", "validate"), ("modles", "models")])
def test_a_command_misspelt(erq: Erq, typed: str, meant: str) -> None:
    code, said = erq(typed, "OUT")
    assert code == 2
    assert f"fix: erq-export {meant}" in said


def test_bytes_that_are_no_text_are_refused_by_a_process_of_its_own(tmp_path: Path) -> None:
    """A shell passes bytes: what they become in the message, the terminal's encoding can hold."""
    for words in (
        [b"build", b"\xff\xfe"],
        [b"vit_\xff", b"--bits", b"w4a4", b"--out", b"o"],
        [b"models", b"--\x1b[31m\xff"],
    ):
        command = [sys.executable.encode(), b"-m", b"erq_export.cli", *words]
        ended = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=20)
        check_refused(ended.returncode, ended.stderr.decode())
        assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_ends_the_command_without_a_word() -> None:
    """As behind `| head -0`; click gives 1."""
    command = [sys.executable, "-m", "erq_export.cli", "check", "--rules"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=20) in (0, 1)
