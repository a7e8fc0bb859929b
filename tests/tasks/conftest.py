"""Fixtures of this folder's tests."""

from audio_corpus import corpus  # noqa: F401
