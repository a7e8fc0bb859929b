"""The eight tasks of GLUE that the papers report: their files, columns, labels and scores. WNLI is left out, as there.

The names are those of fairseq's configurations. Columns are found by their names in the first line; CoLA has none.
Source: arXiv:1804.07461, and the files of gluebenchmark.com.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from d2v_plugin.errors import UserError

BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueTask:
    """One task.

    ``files``: official file of each split, a list of those it may be called; ``columns``: names of the columns of text;
    ``label``: name of the column of labels; ``classes``: in the order of their numbers, None for a regression;
    ``scale``: what a value is divided by; ``header``: all column names of the training file, empty where it has no
    such line; ``metric``: field of fairseq's log that the papers report, per cent.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    label: str
    classes: tuple[str, ...] | None
    header: tuple[str, ...]
    metric: str
    scale: float = 1.0
    files: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"train": ("train.tsv",), "valid": ("dev.tsv",), "test": ("test.tsv",)}
    )


MNLI_FILES = {
    "train": ("train.tsv",),
    "valid": ("dev_matched.tsv",),
    "valid1": ("dev_mismatched.tsv",),
    "test": ("test_matched.tsv",),
    "test1": ("test_mismatched.tsv",),
}
MRPC_FILES = {
    "train": ("train.tsv", "msr_paraphrase_train.txt"),
    "valid": ("dev.tsv", "msr_paraphrase_test.txt"),
    "test": ("test.tsv",),
}
SENTENCES = ("sentence1", "sentence2")
PARSES = tuple(f"{sentence}{kind}" for kind in ("_binary_parse", "_parse", "") for sentence in SENTENCES)

_ALL = (
    # no header: source, label, the author's mark, sentence
    GlueTask("cola", "CoLA", ("sentence",), "label", BINARY, (), "mcc"),
    GlueTask(
        "mnli",
        "MNLI",
        SENTENCES,
        "gold_label",
        ("contradiction", "entailment", "neutral"),
        ("index", "promptID", "pairID", "genre", *PARSES, "label1", "gold_label"),
        "accuracy",
        files=MNLI_FILES,
    ),
    GlueTask(
        "mrpc",
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        BINARY,
        ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        "acc_and_f1",
        files=MRPC_FILES,
    ),
    GlueTask(
        "qnli",
        "QNLI",
        ("question", "sentence"),
        "label",
        ENTAILMENT,
        ("index", "question", "sentence", "label"),
        "accuracy",
    ),
    GlueTask(
        "qqp",
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        BINARY,
        ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        "acc_and_f1",
    ),
    GlueTask("rte", "RTE", SENTENCES, "label", ENTAILMENT, ("index", *SENTENCES, "label"), "accuracy"),
    GlueTask("sst_2", "SST-2", ("sentence",), "label", BINARY, ("sentence", "label"), "accuracy"),
    GlueTask(
        "sts_b",
        "STS-B",
        SENTENCES,
        "score",
        None,
        ("index", "genre", "filename", "year", "old_index", "source1", "source2", *SENTENCES, "score"),
        "pearson_and_spearman",
        scale=5.0,
    ),
)
TASKS = {task.name: task for task in _ALL}
COLA_COLUMNS = ("source", "label", "mark", "sentence")


def plain(name: str) -> str:
    """A task's name without what its spellings differ in."""
    return name.lower().replace("-", "").replace("_", "")


def task_named(name: str) -> GlueTask:
    """The task of that name, however it is spelt (STS-B, sts_b, stsb).

    Raises:
        UserError: there is none, or it is WNLI.
    """
    if plain(name) == "wnli":
        raise UserError("WNLI is left out, as in the papers: its development set contradicts its training set")
    for task in _ALL:
        if plain(task.name) == plain(name):
            return task
    raise UserError(f"there is no GLUE task {name!r}; choose from {', '.join(TASKS)}")


def looks_like(rows: list[list[str]]) -> str | None:
    """The folder name of the task that the first rows of a file are of, as far as they tell.

    Args:
        rows: the first lines, divided at tabs.
    """
    if not rows:
        return None
    head = tuple(rows[0])
    for task in _ALL:
        if task.header and _fits(head, task):
            labels = {row[-1] for row in rows[1:] if len(row) == len(head)}
            # WNLI's columns are RTE's
            return "WNLI" if task.name == "rte" and labels and labels <= set(BINARY) else task.folder
    if len(head) == len(COLA_COLUMNS) and head[1] in BINARY and head[2] in ("", "*"):
        return "CoLA"
    return None


def _fits(head: tuple[str, ...], task: GlueTask) -> bool:
    """Whether a first line is the task's: of its training file, of the same with more labels, or of its test file."""
    if head == task.header:
        return True
    if task.name == "mnli":
        return head[: len(task.header) - 2] == task.header[:-2]
    test = ("index" if task.name == "mrpc" else task.header[0], *(c for c in task.header[1:] if c != task.label))
    return head in (test, ("index", *task.columns), ("id", *task.columns)) and head[-1] == task.columns[-1]
