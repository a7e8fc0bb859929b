"""The EMA teacher: fp32 weights that trail the student, updated in a handful of foreach operations."""

import copy

import torch

from d2v_plugin.errors import UserError


def annealed_decay(start, end, update, anneal_updates):
    """Decay at ``update``: linear from ``start`` to ``end`` over ``anneal_updates``, then ``end``.

    A function of the update number alone, so that resuming changes nothing. Source: arXiv:2202.03555, section 3.2.
    """
    if start == end or update >= anneal_updates:
        return end
    return end - (end - start) * (1 - update / anneal_updates)


class EMATeacher:
    """A frozen copy of (part of) the student whose parameters follow it.

    ``theta <- decay * theta + (1 - decay) * student``, kept in fp32 whatever the student's dtype; a
    half-precision student gets a half-precision copy to run, written in the same step. Parameters
    named in ``shared`` and buffers are copied instead of averaged.

    Not an ``nn.Module``, so that the student's parameters, gradients buckets and state dict do not
    list it; the owner forwards ``.to()`` through ``apply``.

    Args:
        student: module to copy. Its parameters must be those passed to ``update``.
        shared: names of parameters that always equal the student's.
        strip: called with the copy, takes out what the teacher does without (decoders, for example).
        fp32: run in fp32 whatever the student's dtype.

    The owner keeps ``decay`` (last used) and ``updates`` (the update the weights belong to).
    """

    def __init__(self, student, shared=(), strip=None, fp32=False):
        self.model = copy.deepcopy(student).requires_grad_(False).eval()
        if strip is not None:
            strip(self.model)
        self.shared, self._runs_in_fp32 = frozenset(shared), fp32
        self.fp32 = {k: _as_fp32(v) for k, v in self.model.state_dict().items()}
        self.decay = None
        self.updates = 0
        self._norms = None, {}
        self._plan = self._stale = None

    @property
    def dtype(self):
        """In which the teacher runs."""
        return next(self.model.parameters()).dtype

    @torch.no_grad()
    def update(self, student, decay):
        """One step towards ``student``. Makes no host read of a device tensor."""
        if self._plan is None or self._plan.student is not student:
            self._plan = _Plan(student, self.fp32, self.shared)
        plan = self._plan
        if plan.averaged:
            # mul and add in this order and not lerp: the rounding of fairseq's EMAModule, so that runs compare.
            torch._foreach_mul_(plan.averaged, decay)
            torch._foreach_add_(plan.averaged, plan.towards, alpha=1 - decay)
        if plan.copied:
            torch._foreach_copy_(plan.copied, plan.fresh)
        self._write_back()

    @torch.no_grad()
    def norms(self):
        """``model_norm`` and ``ema_norm``: l2 norms of what is averaged, student's and teacher's; 0-d tensors.

        Taken once per update; empty before the first.
        """
        if self._plan is None or not self._plan.averaged:
            return {}
        if self._norms[0] != self.updates:
            sides = {"model_norm": self._plan.towards, "ema_norm": self._plan.averaged}
            norms = {k: torch.stack([n.float() for n in torch._foreach_norm(v)]).norm() for k, v in sides.items()}
            self._norms = self.updates, norms
        return self._norms[1]

    def _write_back(self):
        """Refresh the half-precision copy that runs; in fp32 the two are the same tensors."""
        if self._stale is None:
            running = self.model.state_dict()
            pairs = [(running[k], v) for k, v in self.fp32.items() if running[k].data_ptr() != v.data_ptr()]
            self._stale = [r for r, _ in pairs], [v for _, v in pairs]
        if self._stale[0]:
            torch._foreach_copy_(*self._stale)

    def state_dict(self):
        """The fp32 weights, under the student's names: what upstream stores as ``_ema``."""
        return self.fp32

    @torch.no_grad()
    def load_state_dict(self, state):
        """Restore what ``state_dict`` returned.

        Raises:
            UserError: a weight is missing, unknown, or of another shape.
        """
        missing, unknown = sorted(self.fp32.keys() - state.keys()), sorted(state.keys() - self.fp32.keys())
        if missing or unknown:
            raise UserError(
                f"the checkpoint's teacher does not fit this model: missing {missing[:3]}, unknown {unknown[:3]}; "
                "check ema_transformer_only, ema_layers_only and the model's sizes against the checkpoint's"
            )
        for name, value in state.items():
            if value.shape != self.fp32[name].shape:
                raise UserError(
                    f"teacher weight {name} is {tuple(value.shape)} in the checkpoint and "
                    f"{tuple(self.fp32[name].shape)} in this model; use the sizes of the checkpoint"
                )
            self.fp32[name].copy_(value)
        self._write_back()

    def apply(self, fn):
        """Forward ``module._apply(fn)`` (``.to``, ``.half``, ``.cuda``); the averages stay in fp32."""
        # a rounding fn must not reach the averages, which in fp32 are the tensors that run
        averages = {k: v.clone() for k, v in self.fp32.items()}
        self.model._apply(fn)
        if self._runs_in_fp32:
            self.model.float()
        self.fp32 = {}
        for k, running in self.model.state_dict().items():
            same = running.dtype == averages[k].dtype
            self.fp32[k] = running.copy_(averages[k]) if same else averages[k].to(running.device)
        self._plan = self._stale = None


class _Plan:
    """Which tensor goes where in an update, listed once: an update itself walks no parameters in Python.

    ``averaged`` follow ``towards``, which may be of half precision (the sum is fp32); ``copied`` take the values of
    ``fresh``. Parameters frozen or replaced later are not noticed.
    """

    def __init__(self, student, means, shared):
        self.student = student
        copied = [(k, p) for k, p in student.named_parameters() if k in means]
        moving = [(k, p) for k, p in copied if p.requires_grad and k not in shared]
        equal = [(k, p) for k, p in copied if not p.requires_grad or k in shared]
        equal += [(k, buffer) for k, buffer in student.named_buffers() if k in means]
        self.averaged, self.towards = [means[k] for k, _ in moving], [p for _, p in moving]
        self.copied, self.fresh = [means[k] for k, _ in equal], [p for _, p in equal]


def _as_fp32(tensor):
    return tensor.float() if tensor.is_floating_point() else tensor
