"""What a model's ``forward`` takes."""

import inspect

import torch


def named_arguments(model: torch.nn.Module) -> list[str]:
    """Names of the arguments, in order, without ``*args`` and ``**kwargs``."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters
    return [name for name, parameter in parameters.items() if parameter.kind not in several]


def takes(model: torch.nn.Module, name: str) -> bool:
    """Whether ``name`` may be passed: it is one of the arguments, or anything is."""
    parameters = inspect.signature(model.forward).parameters.values()
    return name in named_arguments(model) or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
