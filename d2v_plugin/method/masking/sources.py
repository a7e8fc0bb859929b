"""Where a model takes the numbers of its masks from."""

from d2v_plugin.method.masking.draws import GeneratorDraws, SampleDraws
from d2v_plugin.randomness import DrawStream, data_rank


class MaskSource:
    """Draws by sample where samples have numbers, else from a stream that hangs on the seed of the update.

    Args:
        seed: of the training.
    """

    def __init__(self, seed):
        self.seed = seed
        self._stream = None

    def draws(self, ids, rows, update, device):
        """``SampleDraws`` or ``GeneratorDraws`` of ``rows`` rows.

        Args:
            ids: (B,) int64 sample numbers, of which ``rows`` is a multiple; or None.
            update: masks change with it.
        """
        if ids is not None:
            return SampleDraws(self.seed, update, ids, rows // max(len(ids), 1), device)
        if self._stream is None:  # ranks are numbered only after models are built
            self._stream = DrawStream("mask", data_rank())
        return GeneratorDraws(self._stream.generator(), rows, device)
