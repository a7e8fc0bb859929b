"""The convolution specification ``[(512, 10, 5)] + [(512, 3, 2)] * 4``, read as data and never executed."""

import ast
import math

import torch

from d2v_plugin.errors import UserError

EXAMPLE = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"


class ConvSpec(tuple):
    """The layers of a convolutional feature extractor: a tuple of ``(dim, kernel, stride)``."""

    @classmethod
    def parse(cls, text, name="conv_feature_layers"):
        """Reads lists of integer triples joined by ``+`` and repeated by ``*``; ``name`` is the setting's.

        Raises:
            UserError: anything else, a number below 1, or no layer at all.
        """
        try:
            layers = _value(ast.parse(str(text).strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            layers = None
        if not isinstance(layers, list) or not layers or not all(_is_layer(layer) for layer in layers):
            raise UserError(
                f"{name} must list (dim, kernel, stride) triples like {EXAMPLE!r}, got {str(text)[:80]!r}"
            )
        return cls(layers)

    @property
    def stride(self):
        """Input samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self)

    @property
    def receptive_field(self):
        """Input samples that one frame sees, which is also the shortest input that gives a frame."""
        field = 1
        for _, kernel, stride in reversed(self):
            field = (field - 1) * stride + kernel
        return field

    def frames(self, samples):
        """Frames that come out of ``samples`` input samples; an int, or a tensor of any integer dtype."""
        for _, kernel, stride in self:
            if isinstance(samples, torch.Tensor):
                samples = torch.div(samples - kernel, stride, rounding_mode="floor") + 1
            else:
                samples = (samples - kernel) // stride + 1
        return samples


def _value(node):
    if isinstance(node, ast.List):
        return [_value(e) for e in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(e) for e in node.elts)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
        if isinstance(node.op, ast.Mult) and isinstance(left, list) and type(right) is int and 0 < right <= 64:
            return left * right
    raise ValueError("not a convolution specification")


def _is_layer(layer):
    return isinstance(layer, tuple) and len(layer) == 3 and all(type(n) is int and n > 0 for n in layer)
