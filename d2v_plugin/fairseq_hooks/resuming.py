"""A run that was told to go on from a checkpoint does so or says why not.

fairseq starts afresh, with a line in the log, when ``checkpoint.restore_file`` does not exist, and answers the
checkpoint of another model with "please ensure that the architectures match".
"""

from typing import Any

from fairseq.file_io import PathManager
from fairseq.trainer import Trainer

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError

DEFAULT_FILE = "checkpoint_last.pt"
OTHER_MODEL = "Cannot load model parameters"
OTHER_RUN = "please reset the optimizer"


def install() -> None:
    """Wrap ``Trainer.load_checkpoint``."""
    original = Trainer.load_checkpoint

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """fairseq's signature and result."""
        asked_for = self.cfg.checkpoint.restore_file
        if asked_for != DEFAULT_FILE and not PathManager.isfile(filename):
            raise UserError(
                f"checkpoint.restore_file={asked_for} does not exist; correct the path, or leave it out to resume from "
                "checkpoint.save_dir"
            )
        if PathManager.isfile(filename):
            _check_task(self.task, filename)
        try:
            return original(self, filename, *args, **kwargs)
        except AssertionError as error:
            if OTHER_RUN not in str(error):
                raise
            raise UserError(
                f"{filename} was trained with another criterion or optimizer; add checkpoint.reset_optimizer=true to "
                "take its weights alone, or choose another checkpoint.save_dir"
            ) from error
        except Exception as error:
            if not str(error).startswith(OTHER_MODEL):
                raise
            raise UserError(
                f"{filename} is of another model ({_first_difference(error)}); train with the configuration it was "
                "made with, or choose another checkpoint.save_dir"
            ) from error

    Trainer.load_checkpoint = load_checkpoint


def _check_task(task: Any, filename: str) -> None:
    """Ask a task that can tell whether its data is that of the checkpoint; fairseq gives it the saved state too late.

    Tensors stay in the file, so this costs nothing beside the loading that follows.
    """
    check = getattr(task, "check_state", None)
    if check is not None:
        check(read_checkpoint(filename, verify=False).get("task_state") or {})


def _first_difference(error: BaseException) -> str:
    """torch's first complaint: a missing or unexpected name, or two sizes."""
    lines = [line.strip() for line in str(error.__context__ or error).splitlines() if line.strip()]
    # The first line only names the class.
    return " ".join(lines[1 if len(lines) > 1 else 0].split())[:300].rstrip(". ")
