"""One image file to RGB pixels: of a known format, of bounded size, whole; anything else is an error that names the file."""

import warnings
from pathlib import Path

from PIL import Image

from erq_export.contract.errors import DataError, ErqError
from erq_export.contract.inputs import regular_file, shown
from erq_export.contract.memory import require_memory

# What may be decoded, whatever a file's name ends in. PIL knows dozens of formats more, one of which runs Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # modes of 16-bit grey images
BYTES_A_PIXEL = 12  # decoded, converted to RGB, and PIL's copy between the two, 4 bytes each
FIX = "repair or remove that file"


def decoded(path: Path) -> Image.Image:
    """The image, RGB: of an animation the first picture, transparency dropped, and not turned as its EXIF data may say
    (all as timm and torchvision read it).

    DataError for a file that is not read to its end, has another format, or has more pixels than PIL takes for honest
    (Image.MAX_IMAGE_PIXELS); MachineError for one that does not fit into memory.
    """
    regular_file(path, "image", fix=FIX)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                _check_header(opened, path)
                image = _rgb(opened)
                is_png = opened.format == "PNG"
        if is_png:  # PIL stops at the last pixel; whether the rest is there, and every checksum right, is asked apart
            with Image.open(path, formats=FORMATS) as again:
                again.verify()
    except ErqError:
        raise
    except MemoryError as e:
        raise DataError(f"the image {shown(path)} does not fit into memory", fix=FIX) from e
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise DataError(
            f"cannot read the image {shown(path)}: {e}", fix="a smaller picture, or remove that file"
        ) from e
    except Exception as e:  # decoders of damaged files raise whatever they like
        raise DataError(f"cannot read the image {shown(path)}: {_reason(e, path)}", fix=FIX) from e
    return image


def _check_header(opened: Image.Image, path: Path) -> None:
    """Before a pixel is decoded: is there one, and is there memory for all of them?"""
    width, height = opened.size
    if min(width, height) < 1:
        raise DataError(f"the image {shown(path)} has {width} × {height} pixels", fix=FIX)
    require_memory(
        width * height * BYTES_A_PIXEL, f"the image {shown(path)} of {width} × {height} pixels", fix="a smaller picture"
    )
    if opened.mode == "F":
        raise DataError(
            f"the image {shown(path)} holds floating point numbers, whose black and white are not known",
            fix="save it with 8 or 16 bits",
        )


def _rgb(opened: Image.Image) -> Image.Image:
    # PIL would clip 16 bits to 255, not scale them
    deep = opened.mode in DEEP
    image = opened.point(lambda grey: grey * (1 / 257)).convert("L") if deep else opened
    return image.convert("RGB")


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}, or its beginning is damaged"
    text = shown(str(error).replace(str(path), "it")) or type(error).__name__
    return text[:200]
