"""Patches and their positions."""

import pytest
import torch

from d2v_plugin.errors import UserError
from d2v_plugin.modules.patches import PatchEmbed, normalised_patches, patchify, sincos_positions, unpatchify


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_patches_are_rows_of_the_image_and_go_back(channels):
    images = torch.randn(2, channels, 12, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 9, 16 * channels)
    # patch 5 is the second row's last; within it pixels run by row, channels innermost
    assert torch.equal(patches[0, 5], images[0, :, 4:8, 8:12].permute(1, 2, 0).flatten())
    assert torch.equal(unpatchify(patches, 4), images)


def test_embedding_and_patches_agree_on_the_order():
    embed = PatchEmbed(12, 4, 1, 16)
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(16).view(16, 1, 4, 4))
        embed.proj.bias.zero_()
    images = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(embed(images), patchify(images, 4))


def test_normalised_patches():
    patches = normalised_patches(5 + 3 * torch.randn(2, 3, 8, 8), 4)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.std(-1), torch.ones(2, 4), atol=1e-4, rtol=0)


def test_positions_tell_rows_from_columns():
    table = sincos_positions(16, 4, extra_tokens=1)
    assert table.shape == (17, 16) and table[0].eq(0).all()
    grid = table[1:].view(4, 4, 16)
    assert torch.equal(grid[0, 2, :8], grid[3, 2, :8]) and torch.equal(grid[2, 0, 8:], grid[2, 3, 8:])
    assert not torch.equal(grid[0, 2, 8:], grid[3, 2, 8:])
    with pytest.raises(UserError, match="multiple of 4"):
        sincos_positions(18, 4)
