"""The convolution block of positional encoders and decoders: convolution, layer norm over channels, GELU."""

import torch.nn as nn


class SamePad(nn.Module):
    """Drops the one step too many that ``padding=kernel // 2`` gives for an even kernel, on the last ``dims`` axes."""

    def __init__(self, kernel, dims=1):
        super().__init__()
        self.remove, self.dims = 1 - kernel % 2, dims

    def forward(self, x):
        for axis in range(-self.dims, 0) if self.remove else ():
            x = x.narrow(axis, 0, x.shape[axis] - self.remove)
        return x


class ChannelsLast(nn.Module):
    """Moves channels from the second axis to the last, or back."""

    def __init__(self, back=False):
        super().__init__()
        self.back = back

    def forward(self, x):
        return x.movedim(-1, 1) if self.back else x.movedim(1, -1)


class ConvNormGelu(nn.Sequential):
    """Grouped convolution of unchanged length, layer norm over channels without parameters, GELU.

    Maps (B, n_in, T) to (B, n_out, T), with ``dims`` 2 (B, n_in, H, W) to (B, n_out, H, W). The convolution is
    module 0, as in upstream's state dicts.
    """

    def __init__(self, n_in, n_out, kernel, groups, dims=1):
        conv = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
        super().__init__(
            conv(n_in, n_out, kernel, padding=kernel // 2, groups=groups),
            SamePad(kernel, dims),
            ChannelsLast(),
            nn.LayerNorm(n_out, elementwise_affine=False),
            ChannelsLast(back=True),
            nn.GELU(),
        )
