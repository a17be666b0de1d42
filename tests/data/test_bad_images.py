"""An image of unknown origin is decoded whole, or refused with its file and the reason; no other decoder ever runs."""

import io
import os
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import damaged, value_or_error
from PIL import Image, ImageFile

from erq_export.contract.errors import DataError, ErqError, MachineError
from erq_export.contract.preprocess import Preprocess
from erq_export.data.batches import batches
from erq_export.data.calibration_set import calibration_set
from erq_export.data.decoding import FORMATS, decoded
from erq_export.data.images import ImageFolder

PREPROCESS = Preprocess(
    input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0, crop_mode="center"
)


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Stripes on noise: compressible in part, so that compressed files end in more than one way."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[::2] = 7
    return Image.fromarray(pixels).convert(mode)


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    data = io.BytesIO()
    picture(mode).save(data, kind, **options)
    return data.getvalue()


WHOLE = {
    "png": encoded("PNG"),
    "palette png": encoded("PNG", "P"),
    "grey png": encoded("PNG", "L"),
    "jpeg": encoded("JPEG"),
    "progressive jpeg": encoded("JPEG", progressive=True),
    "cmyk jpeg": encoded("JPEG", "CMYK"),
    "gif": encoded("GIF", "P"),
    "two gifs": encoded("GIF", "P", save_all=True, append_images=[picture("P").rotate(90)]),
    "bmp": encoded("BMP"),
    "webp": encoded("WEBP", lossless=True),
    "tiff": encoded("TIFF"),
    "lzw tiff": encoded("TIFF", compression="tiff_lzw"),
    "ppm": encoded("PPM"),
}
OTHERS = ("AVIF", "DDS", "EPS", "ICO", "JPEG2000", "PCX", "TGA", "SGI", "PDF", "IM", "MSP", "SPIDER", "XBM")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, rows: bytes = b"") -> bytes:
    """A PNG that claims to have so many grey pixels, with the rows given."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def file(folder: Path, content: bytes, name: str = "x.png") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_half_files_are_not_made_whole() -> None:
    """PIL pads what is missing with black where this switch is on; nothing here turns it on."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_cut_anywhere_is_refused_or_is_the_whole_picture(tmp_path: Path, kind: str) -> None:
    """At every byte. A PNG is refused even where all pixels are there and its end is missing, its last checksum apart."""
    content = WHOLE[kind]
    want = np.asarray(decoded(file(tmp_path, content)))
    n_read = 0
    for cut in range(len(content)):
        found = value_or_error(lambda cut=cut: decoded(file(tmp_path, content[:cut])))
        if not isinstance(found, DataError):
            assert np.array_equal(np.asarray(found), want), cut
            n_read += 1
    if kind != "two gifs":  # whose second picture nobody wants
        assert n_read <= (4 if "png" in kind else 2)  # a GIF's trailer


@pytest.mark.parametrize("place", ["IHDR", "IDAT", "PLTE"])
def test_a_png_with_a_wrong_checksum_is_refused(tmp_path: Path, place: str) -> None:
    content = bytearray(WHOLE["palette png"])
    content[content.index(place.encode()) + 12] ^= 4
    with pytest.raises(DataError, match=r"x\.png"):
        decoded(file(tmp_path, bytes(content)))


@pytest.mark.parametrize("kind", OTHERS)
def test_another_format_under_an_images_name_is_not_decoded(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PIL alone would open it, and for EPS start Ghostscript; here its decoder is not even asked."""
    mode = {"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")
    try:
        content = encoded(kind, mode)
    except (OSError, KeyError):
        pytest.skip(f"this PIL cannot write {kind}")
    path = file(tmp_path, content)
    started: list[Any] = []
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: started.append(a))
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: started.append(a))
    with pytest.raises(DataError, match="none of BMP, GIF, JPEG"):
        decoded(path)
    assert not started


def test_the_formats_are_those_of_the_names_that_are_looked_for() -> None:
    from erq_export.data.images import EXTENSIONS

    Image.init()
    assert {Image.EXTENSION[e] for e in EXTENSIONS} == set(FORMATS)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (100_000, 900)])
def test_more_pixels_than_an_honest_image_has_are_refused_undecoded(tmp_path: Path, width: int, height: int) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=rf"x\.png.*{width * height} pixels"):
        decoded(file(tmp_path, png(width, height, rows=bytes(10_000))))
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    )  # KiB; decoded it would be 400 MB or more


def test_an_image_larger_than_memory_is_refused_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, png(1000, 1000, rows=bytes(1001 * 1000)))
    monkeypatch.setattr("erq_export.contract.memory.available_memory", lambda: 12_000_000)
    assert decoded(path).size == (1000, 1000)
    monkeypatch.setattr("erq_export.contract.memory.available_memory", lambda: 11_999_999)
    with pytest.raises(MachineError, match=r"x\.png of 1000 × 1000 pixels: at least 12,000,000 bytes"):
        decoded(path)


def test_an_image_that_grows_in_preprocessing_is_refused(tmp_path: Path) -> None:
    """One pixel high: resizing the short side to 16 makes the long one 16 times as long."""
    file(tmp_path, png(2_000_000, 1, rows=bytes(2_000_001)))
    source = ImageFolder(tmp_path)
    with pytest.raises(DataError, match=r"x\.png of 2000000 × 1 pixels would be resized to 32000000 × 16"):
        list(batches(source, PREPROCESS, [0], 1))
    file(tmp_path, png(2_000, 1, rows=bytes(2_001)))
    assert next(batches(source, PREPROCESS, [0], 1)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(("width", "height"), [(0, 4), (4, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(tmp_path: Path, width: int, height: int) -> None:
    gif = bytearray(WHOLE["gif"])
    gif[6:10] = struct.pack("<HH", width, height)
    for content in (png(width, height), bytes(gif), f"P5 {width} {height} 255\n".encode()):
        with pytest.raises(DataError, match=r"x\.png"):
            decoded(file(tmp_path, content[:200]))


def test_of_an_animation_the_first_picture_is_read(tmp_path: Path) -> None:
    first = np.asarray(picture("P").convert("RGB"))
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        data = io.BytesIO()
        picture("P").convert("RGB").save(data, kind, save_all=True, append_images=[picture().rotate(180)], **options)
        found = np.asarray(decoded(file(tmp_path, data.getvalue())))
        assert found.shape == first.shape
        assert kind == "GIF" or np.array_equal(found, first)


def test_exif_orientation_turns_nothing(tmp_path: Path) -> None:
    """As timm and torchvision read it, which is how the model was evaluated."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    data = io.BytesIO()
    picture().save(data, "JPEG", exif=exif)
    turned, plain = (decoded(file(tmp_path, c)) for c in (data.getvalue(), WHOLE["jpeg"]))
    assert turned.size == plain.size == (24, 16)
    assert np.array_equal(np.asarray(turned), np.asarray(plain))


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.tif holds floating point"):
        decoded(file(tmp_path, encoded("TIFF", "F"), "x.tif"))


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    def refused(make: Callable[[Path], Any], says: str) -> None:
        path = tmp_path / "odd.png"
        make(path)
        with pytest.raises(DataError, match=says) as caught:
            ImageFolder(tmp_path)
        assert "odd.png" in caught.value.problem
        path.unlink()

    def bind(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(path))

    file(tmp_path, WHOLE["png"])
    refused(os.mkfifo, "a named pipe")
    refused(bind, "a socket")
    refused(lambda p: p.symlink_to("/dev/zero"), "a device")
    refused(lambda p: p.symlink_to(p), "symbolic links")
    refused(lambda p: p.symlink_to(tmp_path / "nowhere"), "there is no image")
    assert len(ImageFolder(tmp_path)) == 1


def test_linked_folders_cannot_make_a_search_endless(tmp_path: Path) -> None:
    file(tmp_path, WHOLE["png"])
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "back").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert len(ImageFolder(tmp_path)) == 1
    assert len(ImageFolder(tmp_path / "deeper" / "back")) == 1  # the root itself may be a link


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that everybody may read, and no rights beyond that: root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        before = os.geteuid()
        if before == 0:
            os.chown(name, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(before)


def test_what_may_not_be_read_is_named(nobody: Path) -> None:
    path = file(nobody, WHOLE["png"])
    path.chmod(0)
    with pytest.raises(DataError, match=r"x\.png"):
        decoded(path)
    (nobody / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match="closed"):
        ImageFolder(nobody)
    (nobody / "closed").rmdir()


def test_a_path_that_grows_too_long_is_named(tmp_path: Path) -> None:
    """Folders within folders, made one from within the other, until no path from the root leads to the innermost."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=here)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(DataError, match="cannot list the folder") as caught:
        ImageFolder(tmp_path)
    assert len(str(caught.value)) < 1000


def test_a_file_or_folder_that_vanishes_is_named(tmp_path: Path) -> None:
    path = file(tmp_path, WHOLE["png"])
    source = ImageFolder(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"there is no image .*x\.png"):
        source.image(0)


@pytest.mark.parametrize("root", ["nul\0", "x" * 300, "none", "loop"])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, root: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="there is no folder"):
        ImageFolder(tmp_path / root)


def test_names_of_any_bytes_are_read_and_can_be_written(tmp_path: Path) -> None:
    """Whatever a file system holds, the set's names go into UTF-8 files, each its own."""
    for name in (b"a\xff.png", b"a\xfe.png", "ä.png".encode(), b"\x1b[2J.png", b"new\nline.png", b"x" * 251 + b".png"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(WHOLE["png"])
    source = ImageFolder(tmp_path)
    names = [source.name(i) for i in range(len(source))]
    assert len({n.encode() for n in names}) == 6
    assert {"a\\xff.png", "ä.png", "new\nline.png"} <= set(names)
    assert calibration_set(source, PREPROCESS, n=6, seed=0).names
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png"))).write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\\xff\.png") as caught:
        source.image(names.index("a\\xff.png"))
    assert str(caught.value).encode()


def test_a_calibration_set_larger_than_memory_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        file(tmp_path, b"never read", f"{i}.png")
    monkeypatch.setattr("erq_export.contract.memory.available_memory", lambda: 2 * 3 * 3 * 16 * 16 * 4 - 1)
    with pytest.raises(MachineError, match="3 calibration images"):
        calibration_set(ImageFolder(tmp_path), PREPROCESS, n=3, seed=0)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=damaged(tuple(WHOLE.values())) | st.binary(max_size=200), name=st.sampled_from(["x.png", "x.tif", "x.jpg"])
)
def test_any_damaged_image_is_read_or_refused(tmp_path: Path, content: bytes, name: str) -> None:
    outcome = value_or_error(lambda: decoded(file(tmp_path, content, name)))
    if isinstance(outcome, ErqError):
        assert name in outcome.problem
    else:
        assert outcome.mode == "RGB"
        assert min(outcome.size) > 0
