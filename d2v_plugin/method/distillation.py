"""A student with its EMA teacher: when the teacher moves, and how both are saved and restored."""

import contextlib
from collections.abc import Iterator

from d2v_plugin.errors import UserError
from d2v_plugin.method.ema import EMATeacher, annealed_decay
from d2v_plugin.method.misfits import misfits_named


class SelfDistillation:
    """Put before an ``nn.Module`` class; both versions' models and all modalities share it.

    The module has ``cfg`` with ``ema_decay``, ``ema_end_decay`` and ``ema_anneal_end_step``, and says

    - ``_trailed``: the part of itself that the teacher copies,
    - ``make_teacher()``: an ``EMATeacher`` of that part,
    - ``_pretraining``: whether it still has what pre-training needs,
    - ``model_name``: its registered name, for messages.

    The teacher is made by the first ``set_num_updates`` or loaded ``_ema``, unless the model made it before.
    """

    ema: EMATeacher | None = None
    num_updates = 0
    # "file" or "student" while weights are loaded for a new run; None where loading goes on with the run that saved
    _teacher_of_new_run: str | None = None

    def set_num_updates(self, num_updates):
        """Called by fairseq at the start of every batch, and on loading; the teacher moves once per update.

        A number that repeats (micro-batches of one update) or jumps leaves the teacher as it is.
        """
        super().set_num_updates(num_updates)
        self.num_updates = num_updates
        if not self._pretraining:
            return
        if self.ema is None:
            self.ema = self.make_teacher()
        decay = self._decay(num_updates)
        # One step ahead is the rule; two happen after loading in a loop that, unlike fairseq, counts before it trains.
        ahead = num_updates - self.ema.updates if num_updates > 0 else 0
        if self.training and 1 <= ahead <= 2 and decay < 1:
            self.ema.update(self._trailed, decay)
        self.ema.updates, self.ema.decay = num_updates, decay

    def _decay(self, update):
        return annealed_decay(self.cfg.ema_decay, self.cfg.ema_end_decay, update, self.cfg.ema_anneal_end_step)

    def state_dict(self, destination=None, prefix="", keep_vars=False):
        state = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        if self.ema is not None:
            state[prefix + "_ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state_dict, strict=True, **kwargs):
        """The usual, with a line for people where the weights are those of another model."""
        with misfits_named(self.model_name):
            return super().load_state_dict(state_dict, strict=strict, **kwargs)

    @contextlib.contextmanager
    def beginning_with_weights(self, teacher: str = "file") -> Iterator[None]:
        """Weights that are loaded inside are those a new run begins with: update 0, the decay from its first value.

        Args:
            teacher: "file" takes the teacher that was saved, where there is one; "student" makes it, as in a fresh run,
                a copy of the student.
        """
        pretraining, self._teacher_of_new_run = self._pretraining, teacher
        try:
            yield
        finally:
            teacher, self._teacher_of_new_run = self._teacher_of_new_run, None
        self.num_updates = 0
        if not pretraining:
            return
        if teacher == "student" or self.ema is None:
            # without the old one, which a copy of the whole student would hold
            self.ema = None
            self.ema = self.make_teacher()
            # one that runs in fp32 is made of a student that may have become half precision
            self.ema.apply(lambda tensor: tensor)
        self.ema.updates, self.ema.decay = 0, self._decay(0)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        teacher = state_dict.pop(prefix + "_ema", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self._teacher_of_new_run is not None and teacher is None:
            self._teacher_of_new_run = "student"
        if self._teacher_of_new_run == "student":
            # made when the student's weights are there, which are loaded after this
            return
        if teacher is not None and self._pretraining:
            if self.ema is None:
                self.ema = self.make_teacher()
            self.ema.load_state_dict(teacher)
            # fairseq moves the teacher at the start of the next batch, so the saved one is a step behind the
            # student; saying so makes the first batch after resuming catch up, as without the interruption.
            self.ema.updates = self.num_updates - 1
        elif self.ema is not None:
            raise UserError(
                "the checkpoint holds no teacher (_ema): it was fine-tuned or exported; "
                "to continue pre-training from such weights start a new run from them instead of resuming"
            )

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.ema is not None:
            self.ema.apply(fn)
        return self
