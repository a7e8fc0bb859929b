"""Checkpoint files: read without running code that hides in them, written so that a crash cannot spoil them."""

from d2v_plugin.checkpoints.reading import load_plain, read_checkpoint
from d2v_plugin.checkpoints.writing import copy_checkpoint, write_checkpoint

__all__ = ["copy_checkpoint", "load_plain", "read_checkpoint", "write_checkpoint"]
