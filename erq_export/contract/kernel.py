"""A convolution as a matrix: its weight (n, k), and its input as rows of k.

Letters:  x (B, c, H, W) input, y (B, n, H′, W′) output;  r × s window;  k = c·r·s;  a row of x: the window under one output
          pixel, channels before places, as torch flattens the weight (n, c, r, s)
Then y, pixel by pixel, is W row + b: everything that is known of a Linear holds of a convolution on its rows. There are
r·s/stride² times as many values in them as in x, so they are made a few at a time and never all at once.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from erq_export.contract.records import Record

MIDDLE = 128  # zero point of weights in a file that holds them as unsigned bytes
ROWS = 8192  # at a time; of the widest layer that detectors have (k = 2304) 75 MB


class Kernel(Record, frozen=True, kw_only=True):
    """What a convolution is beside its weight and bias: channels of its input, and, each in y and x, its window, the step
    from one output pixel to the next, and the zeros around the image."""

    channels: int
    window: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "Kernel":
        """TypeError for groups, gaps in the window, or another border than zeros: no detector here has them."""
        if conv.groups != 1 or conv.dilation != (1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise TypeError(f"a convolution of another kind: {conv}")
        (r, s), (down, right), (above, left) = conv.kernel_size, conv.stride, conv.padding
        return cls(channels=conv.in_channels, window=(r, s), stride=(down, right), padding=(above, left))

    @property
    def columns(self) -> int:
        """k."""
        return self.channels * self.window[0] * self.window[1]

    def spread(self, weight: Tensor) -> Tensor:
        """The matrix (n, k) as the convolution's own weight (n, c, r, s)."""
        return weight.reshape(len(weight), self.channels, *self.window)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """y of x (B, c, H, W) and the matrix weight (n, k)."""
        return F.conv2d(x, self.spread(weight), bias, stride=self.stride, padding=self.padding)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(H′, W′) of an image (H, W)."""
        (r, s), (down, right), (above, left) = self.window, self.stride, self.padding
        return (height + 2 * above - r) // down + 1, (width + 2 * left - s) // right + 1

    def rows(self, x: Tensor, *, at_once: int = ROWS) -> Iterator[Tensor]:
        """The rows of x (B, c, H, W), image after image from top to bottom: (m, k), m at most `at_once`, or what one line of
        output pixels, or one small image, has."""
        (above, left), (r, _), (down, _) = self.padding, self.window, self.stride
        high, wide = self.size(*x.shape[-2:])
        images = max(1, at_once // (high * wide))
        lines = max(1, at_once // (images * wide))
        for few in x.split(images):
            framed = F.pad(few, (left, left, above, above))
            for first in range(0, high, lines):
                last = min(first + lines, high) - 1
                band = framed[:, :, first * down : last * down + r]  # what these lines of output pixels lie over
                yield F.unfold(band, self.window, stride=self.stride).transpose(1, 2).flatten(0, 1)


def pixels(x: Tensor) -> Tensor:
    """x (B, c, H, W) as (B·H·W, c): every value once, channel by channel."""
    return x.movedim(1, -1).flatten(0, -2)
