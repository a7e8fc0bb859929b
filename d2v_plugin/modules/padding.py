"""Padding of a waveform translated to padding of frames."""

import torch


def frame_padding_mask(spec, T, padding_mask, source_lengths, device):
    """Which of the T frames lie past the end of their recording.

    A frame counts when all the samples it sees are inside, so every row keeps
    ``spec.frames(length)`` frames, as in fairseq.

    Args:
        spec: ``ConvSpec`` of the extractor.
        T: frames of the batch.
        padding_mask: (B, samples) bool, True = padding, or None.
        source_lengths: B host integers, samples, or None. Without them lengths are taken from the mask: on
            the host if the mask is there, else on the device without a host read.
    Returns:
        ``(mask, lengths)``: (B, T) bool on ``device``, and B host integers; each None where nothing is
        padded, the lengths also where the host does not know them.
    """
    if padding_mask is None:
        return None, None
    if source_lengths is None and padding_mask.device.type == "cpu":
        source_lengths = (~padding_mask).sum(1).tolist()
    if source_lengths is not None:
        if min(source_lengths) == padding_mask.shape[1]:
            return None, None
        frames = [max(0, spec.frames(n)) for n in source_lengths]
        lengths = torch.tensor(frames).to(device, non_blocking=True)
    else:
        frames = None
        lengths = spec.frames((~padding_mask).sum(1))
    return torch.arange(T, device=device) >= lengths[:, None], frames
