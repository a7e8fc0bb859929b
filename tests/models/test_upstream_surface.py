"""What a published checkpoint or YAML file relies on: the model's fields with their defaults, and its signature."""

import dataclasses
import inspect

import upstream

from d2v_plugin.models.data2vec_audio import Data2VecAudioConfig, Data2VecAudioModel


def default_of(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def test_every_upstream_field_keeps_its_default():
    theirs = dataclasses.fields(upstream.load("data2vec_audio").Data2VecAudioConfig)
    ours = {field.name: field for field in dataclasses.fields(Data2VecAudioConfig)}
    assert {field.name for field in theirs} <= set(ours)
    for field in theirs:
        assert default_of(ours[field.name]) == default_of(field), field.name


def test_forward_and_features_take_what_upstream_takes():
    theirs = upstream.load("data2vec_audio").Data2VecAudioModel
    for method in ("forward", "extract_features"):
        expected, found = (inspect.signature(getattr(kind, method)).parameters for kind in (theirs, Data2VecAudioModel))
        # What is ours comes after, so that positional arguments mean the same.
        assert list(found)[: len(expected)] == list(expected)
        for name, parameter in expected.items():
            assert found[name].default == parameter.default, (method, name)
