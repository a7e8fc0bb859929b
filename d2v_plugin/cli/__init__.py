"""The ``d2v`` command: one file a sub-command."""
