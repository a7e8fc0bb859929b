"""A first convolution that starts as a mel-spaced filterbank, for runs too short to learn one."""

import math

import torch

LOWEST_HZ, HIGHEST_HZ = 60.0, 4000.0


@torch.no_grad()
def mel_init_(blocks, sample_rate=16000):
    """Start the first convolution as Gabor filters in cosine and sine pairs, the others as averages over time.

    Half of the first layer's channels are cosines and half sines, at centre frequencies even on the mel
    scale between 60 Hz and 4 kHz, each windowed to two spacings of bandwidth. Every later layer passes
    each channel on, averaged over its kernel, with a little noise so that channels can part ways.
    All of it stays trainable.

    Args:
        blocks: ``ConvFeatureExtractor.conv_layers``.
        sample_rate: Hz.
    Source: the idea of Zeghidour et al., arXiv:1711.01161.
    """
    first = blocks[0][0].weight  # (C, 1, kernel)
    pairs, kernel = first.shape[0] // 2, first.shape[-1]
    hz = _mel_spaced(pairs + 2)
    centre, width = hz[1:-1, None], (hz[2:] - hz[:-2])[:, None]
    time = (torch.arange(kernel) - (kernel - 1) / 2) / sample_rate
    window = torch.exp(-0.5 * (time * math.pi * width / 2).square()) * torch.hann_window(kernel, periodic=False)
    angle = 2 * math.pi * centre * time
    filters = torch.cat([window * angle.cos(), window * angle.sin()])
    first[: 2 * pairs, 0] = filters / filters.norm(dim=1, keepdim=True)
    for block in blocks[1:]:
        weight = block[0].weight  # (C_out, C_in, kernel)
        torch.nn.init.normal_(weight, std=0.2 / math.sqrt(weight.shape[1] * weight.shape[2]))
        for c in range(min(weight.shape[:2])):
            weight[c, c] += 1 / weight.shape[2]


def _mel_spaced(n):
    """``n`` frequencies in Hz, even on the mel scale between the two ends."""
    ends = [2595 * math.log10(1 + f / 700) for f in (LOWEST_HZ, HIGHEST_HZ)]
    return 700 * (10 ** (torch.linspace(*ends, n) / 2595) - 1)
