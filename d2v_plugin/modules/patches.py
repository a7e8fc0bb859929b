"""Images as sequences of square patches."""

import torch
import torch.nn as nn

from d2v_plugin.errors import UserError
from d2v_plugin.modules.init import beit_init


class PatchEmbed(nn.Module):
    """Cuts a square image into patches and projects each; state-dict key ``proj`` as timm's.

    Args:
        image_size, patch_size: pixels along a side; the first a multiple of the second.
        in_channels: of the image.
        channels: C.
    """

    # how the configuration calls the size and the channels, for messages
    fields = ("input_size", "in_chans")

    def __init__(self, image_size, patch_size, in_channels, channels):
        super().__init__()
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            raise UserError(
                f"{self.fields[0]} {image_size} is not a multiple of patch_size {patch_size}; change one of them"
            )
        self.image_size, self.in_channels = image_size, in_channels
        self.side = image_size // patch_size
        self._make(nn.Conv2d(in_channels, channels, patch_size, stride=patch_size))

    def _make(self, convolution):
        self.proj = convolution
        nn.init.xavier_uniform_(convolution.weight.view(len(convolution.weight), -1))

    def forward(self, images):
        """(B, in_channels, image_size, image_size) -> (B, side * side, C), row by row.

        Raises:
            UserError: images of another size or with other channels.
        """
        expected = (self.in_channels, self.image_size, self.image_size)
        if tuple(images.shape[1:]) != expected:
            size, channels = self.fields
            change = f"set task.input_size to the model's {size}"
            if images.shape[1] != self.in_channels:
                change = f"set {channels} to {images.shape[1]}"
            raise UserError(f"the model takes images of shape {expected} and got {tuple(images.shape[1:])}; {change}")
        (convolution,) = self.children()
        return convolution(images).flatten(2).transpose(1, 2)


class BeitPatchEmbed(PatchEmbed):
    """The same with the key ``conv`` of data2vec 1.0, and BEiT's initial weights."""

    fields = ("image_size", "in_channels")

    def _make(self, convolution):
        self.conv = convolution
        beit_init(convolution)


def patchify(images, patch_size):
    """(B, c, H, W) -> (B, H/p * W/p, p * p * c): the pixels of each patch, row by row, channels innermost."""
    B, c, H, W = images.shape
    p = patch_size
    cut = images.reshape(B, c, H // p, p, W // p, p)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // p), p * p * c)


def unpatchify(patches, patch_size):
    """The inverse of ``patchify`` for square images: (B, side * side, p * p * c) -> (B, c, side * p, side * p)."""
    B, L, width = patches.shape
    side, p = int(L**0.5), patch_size
    cut = patches.reshape(B, side, side, p, p, width // (p * p))
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, side * p, side * p)


def normalised_patches(images, patch_size):
    """``patchify`` with each patch at zero mean and unit (unbiased) variance: what reconstruction predicts, fp32."""
    patches = patchify(images.float(), patch_size)
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()


def sincos_positions(channels, side, extra_tokens=0):
    """Fixed 2-D positions: half of the channels encode the column, half the row, each as sines then cosines.

    Args:
        channels: C, a multiple of 4.
        side: patches along a side.
        extra_tokens: rows of zeros put before.
    Returns:
        (extra_tokens + side * side, C) fp32.
    Source: MAE, arXiv:2111.06377; frequencies of arXiv:1706.03762.
    """
    if channels % 4:
        raise UserError(f"fixed image positions need a width that is a multiple of 4, got {channels}")
    frequencies = 10000.0 ** (-torch.arange(channels // 4, dtype=torch.float64) / (channels / 4))
    line = torch.arange(side, dtype=torch.float64)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    table = torch.cat([half for angle in angles for half in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([table.new_zeros(extra_tokens, channels), table]).float()
