"""Masks for all modalities, and the numbers they are drawn from.

Spans (1.0 for speech and text), blocks of BEiT (1.0 for images), blocks and single positions (2.0).
"""

from d2v_plugin.method.masking.beit_blocks import BeitMasks
from d2v_plugin.method.masking.blocks import block_mask, block_masked_count
from d2v_plugin.method.masking.counts import same_count
from d2v_plugin.method.masking.draws import GeneratorDraws, SampleDraws
from d2v_plugin.method.masking.random_masks import random_mask, random_masked_count
from d2v_plugin.method.masking.sources import MaskSource
from d2v_plugin.method.masking.spans import span_mask

__all__ = [
    "BeitMasks",
    "GeneratorDraws",
    "MaskSource",
    "SampleDraws",
    "block_mask",
    "block_masked_count",
    "random_mask",
    "random_masked_count",
    "same_count",
    "span_mask",
]
