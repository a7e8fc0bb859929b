"""One deprecation of torch's that fairseq runs into at every update stays out of the log.

fairseq's training step opens ``torch.cuda.amp.autocast``; current torch answers each time with the same two lines,
thousands of which would bury the progress. Nothing else is silenced.
"""

import warnings


def install() -> None:
    """Ignore that warning, whatever filters are set already."""
    warnings.filterwarnings("ignore", message=r"`torch\.cuda\.amp\.autocast", category=FutureWarning)
