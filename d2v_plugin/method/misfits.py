"""One line for people where the weights of a checkpoint are those of another model."""

import contextlib

from d2v_plugin.errors import UserError

ANOTHER_VOCABULARY = (
    "the checkpoint was trained with another vocabulary than this run's dict.txt; use the dictionary (and the "
    "sentencepiece model) of its training."
)


@contextlib.contextmanager
def misfits_named(model_name):
    """Turns torch's complaint about a state dict, raised inside, into a ``UserError``.

    Args:
        model_name: registered name of the model that is loaded.
    """
    try:
        yield
    except RuntimeError as error:
        details = " ".join(line.strip() for line in str(error).splitlines()[1:])
        if "embed_tokens" in details and "size mismatch" in details:
            raise UserError(f"{ANOTHER_VOCABULARY} {details[:300]}") from error
        raise UserError(
            f"the checkpoint's weights do not fit this {model_name} model; use the model settings it was "
            f"trained with, or another checkpoint. {details[:300]}"
        ) from error
