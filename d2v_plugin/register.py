"""Let fairseq know the tasks and models of this package, from a package that builds on it or without ``--user-dir``."""

from pathlib import Path


def register_plugin() -> None:
    """Registers them once, however often it is called."""
    from fairseq.models import import_models
    from fairseq.tasks import import_tasks

    root = Path(__file__).parent
    import_tasks(str(root / "tasks"), "d2v_plugin.tasks")
    import_models(str(root / "models"), "d2v_plugin.models")
