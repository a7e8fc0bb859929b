"""Models that fairseq registers: configuration in, modules wired.

fairseq imports the files of ``models/`` and ``tasks/`` of a user directory, and nothing else; the
criterion and the optimiser come along here.
"""

import d2v_plugin.criterions.d2v_regression  # noqa: F401
import d2v_plugin.criterions.d2v_sentence_prediction  # noqa: F401
import d2v_plugin.optim.adamw  # noqa: F401
