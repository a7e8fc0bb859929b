"""A run starts as ``starting`` decided, on every process alike, and says so in the log; or it says why not.

fairseq begins afresh, with a line in the log, when ``checkpoint.restore_file`` does not exist, and answers the
checkpoint of another model with "please ensure that the architectures match".
"""

import contextlib
import copy
import logging
from typing import Any

from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer
from omegaconf import open_dict

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.fairseq_hooks.run_differences import model_differences
from d2v_plugin.fairseq_hooks.starting import DEFAULT_FILE, FRESH, INIT, RESETS, Start, decide, move_aside
from d2v_plugin.method.distillation import SelfDistillation

logger = logging.getLogger(__name__)

OTHER_MODEL = "Cannot load model parameters"
OTHER_RUN = "please reset the optimizer"
# no file is called so, whatever another machine's view of a shared disk still shows
NO_FILE = "(nothing)"


def install() -> None:
    """Wrap ``checkpoint_utils.load_checkpoint`` and ``Trainer.load_checkpoint``."""
    load_run, load_file = checkpoint_utils.load_checkpoint, Trainer.load_checkpoint

    def load_checkpoint(cfg: Any, trainer: Trainer, **kwargs: Any) -> Any:
        """fairseq's signature and result."""
        start = agreed_start(trainer)
        with weights_only(trainer, start):
            return load_run(_as_fairseq_puts_it(cfg, start), trainer, **kwargs)

    def load_checkpoint_file(self: Trainer, filename: str, *args: Any, **kwargs: Any) -> Any:
        """fairseq's signature and result."""
        if PathManager.isfile(filename):
            _check_task(self.task, filename)
        try:
            return load_file(self, filename, *args, **kwargs)
        except AssertionError as error:
            if OTHER_RUN not in str(error):
                raise
            raise UserError(
                f"{filename} was trained with another criterion or optimizer; take its weights alone with "
                f"+checkpoint.init_from={filename} and another checkpoint.save_dir, or choose another checkpoint"
            ) from error
        except Exception as error:
            if not str(error).startswith(OTHER_MODEL):
                raise
            raise UserError(_misfit(self.cfg, filename, error)) from error

    checkpoint_utils.load_checkpoint = load_checkpoint
    Trainer.load_checkpoint = load_checkpoint_file


def agreed_start(trainer: Trainer) -> Start:
    """Decided by the first process, which looks at the files and moves what is to be moved; the others are told.

    Raises:
        UserError: on every process, so that none waits for another.
    """
    told = None
    if trainer.data_parallel_rank == 0:
        told = {"start": None, "error": None}
        try:
            told["start"] = vars(_decided(trainer))
        except UserError as error:
            told["error"] = str(error)
    if trainer.data_parallel_world_size > 1:
        told = distributed_utils.broadcast_object(
            told, src_rank=0, group=trainer.data_parallel_process_group, dist_device=trainer.device
        )
    if told["error"] is not None:
        raise UserError(told["error"])
    return Start(**told["start"])


def _decided(trainer: Trainer) -> Start:
    start = decide(trainer.cfg, trainer.checkpoint_suffix)
    moved = move_aside(start, trainer.cfg.checkpoint.save_dir)
    for line in [*([moved] if moved else []), *start.lines]:
        logger.info(line)
    return start


@contextlib.contextmanager
def weights_only(trainer: Trainer, start: Start):
    """While a file is loaded for its weights: models take them for update 0, teachers by ``start.teacher``."""
    if start.kind != INIT:
        yield
        return
    model = trainer.get_model()
    students = [module for module in model.modules() if isinstance(module, SelfDistillation)]
    with contextlib.ExitStack() as stack:
        for student in students:
            stack.enter_context(student.beginning_with_weights(start.teacher))
        yield
    # fairseq told the model the update number of the file, and the trainer the hours of that run
    model.set_num_updates(0)
    trainer._previous_training_time = 0


def _as_fairseq_puts_it(cfg: Any, start: Start) -> Any:
    """``cfg`` as fairseq has to read it to do what was decided."""
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.finetune_from_model = None
        if start.kind == FRESH:
            cfg.restore_file = NO_FILE
        elif start.kind == INIT and cfg.restore_file == DEFAULT_FILE:
            cfg.restore_file = start.path
            # whoever names restore_file sets as many of these as are wanted
            for name in RESETS:
                cfg[name] = True
    return cfg


def _check_task(task: Any, filename: str) -> None:
    """Ask a task that can tell whether its data is that of the checkpoint; fairseq gives it the saved state too late.

    Tensors stay in the file, so this costs nothing beside the loading that follows.
    """
    check = getattr(task, "check_state", None)
    if check is None:
        return
    try:
        check(read_checkpoint(filename, verify=False).get("task_state") or {})
    except UserError as error:
        raise UserError(f"{filename}: {error}") from error


def _misfit(cfg: Any, filename: str, error: BaseException) -> str:
    """Which weights do not fit and, where the file says how it was made, which of the model's settings differ."""
    saved = read_checkpoint(filename, verify=False).get("cfg")
    changed = model_differences(saved, cfg)
    settings = f"; its settings differ: {changed}" if changed else ""
    return (
        f"{filename} is of another model ({_first_difference(error)}){settings}; train with the configuration it was "
        "made with, or choose another checkpoint.save_dir"
    )


def _first_difference(error: BaseException) -> str:
    """torch's first complaint: a missing or unexpected name, or two sizes."""
    lines = [line.strip() for line in str(error.__context__ or error).splitlines() if line.strip()]
    # The first line only names the class.
    return " ".join(lines[1 if len(lines) > 1 else 0].split())[:300].rstrip(". ")
