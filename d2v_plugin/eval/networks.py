"""What feature extraction asks of a speech model, whichever its architecture: its blocks, and their outputs."""

from __future__ import annotations

import contextlib

from torch import Tensor, nn

LayerOutputs = tuple[list[Tensor], Tensor | None]


class Network:
    """A speech encoder with one stack of blocks: data2vec 1.0 and wav2vec 2.0.

    Args:
        encoder: the network that was pre-trained.
    """

    def __init__(self, encoder: nn.Module):
        self.encoder = encoder

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.encoder.encoder.layers)

    @property
    def mask_settings(self):
        """The configuration that holds ``mask_prob`` and ``mask_length``."""
        return self.encoder.cfg

    @property
    def extractor(self) -> nn.Module:
        """The convolutions that read the waveform."""
        return self.encoder.feature_extractor

    def layer_outputs(self, source: Tensor, padding_mask: Tensor | None, last: int) -> LayerOutputs:
        """Run blocks up to ``last``.

        Args:
            source: (B, samples).
            padding_mask: (B, samples) bool or None.
        Returns:
            Layers 0 (input of the first block) to ``last``, each (B, T, C), and (B, T) padding or None.
        """
        inputs: list[Tensor] = []
        with _first_input(self.blocks[0], inputs):
            result = self.encoder.extract_features(source, padding_mask, mask=False, layer=max(last - 1, 0))
        # fairseq's own encoder works time-major and pads to an even length; ours is batch-major
        outputs = [output[0].transpose(0, 1) for output in result["layer_results"]]
        first = inputs[0].transpose(0, 1) if type(self.encoder).__module__.startswith("fairseq.") else inputs[0]
        return [first[:, : outputs[0].size(1)], *outputs[:last]], result["padding_mask"]


class MultiNetwork(Network):
    """The AUDIO part of ``data2vec_multi``: prenet blocks, then those all modalities share."""

    @property
    def audio(self) -> nn.Module:
        return self.encoder.modality_encoders["AUDIO"]

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.audio.context_encoder.blocks, *self.encoder.blocks]

    @property
    def mask_settings(self):
        return self.audio.modality_cfg

    @property
    def extractor(self) -> nn.Module:
        return self.audio.local_encoder

    def layer_outputs(self, source: Tensor, padding_mask: Tensor | None, last: int) -> LayerOutputs:
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        blocks, extra = self.blocks, self.audio.modality_cfg.num_extra_tokens
        with contextlib.ExitStack() as hooks:
            hooks.enter_context(_first_input(blocks[0], inputs))
            for block in blocks[:last]:
                hooks.enter_context(block.register_forward_hook(lambda module, args, out: outputs.append(out[0])))
            result = self.encoder.extract_features(source, mode="AUDIO", padding_mask=padding_mask)
        return [layer[:, extra:] for layer in (*inputs, *outputs)], result["padding_mask"]


@contextlib.contextmanager
def _first_input(block: nn.Module, kept: list[Tensor]):
    hook = block.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    try:
        yield
    finally:
        hook.remove()
