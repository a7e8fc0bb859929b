"""Results as Markdown tables."""


def row(*cells):
    return "| " + " | ".join(str(c) for c in cells) + " |"


def table(header, rows):
    """A header and rows of cells."""
    return "\n".join([row(*header), row(*["---"] * len(header)), *(row(*r) for r in rows), ""])


def seconds_table(seconds):
    """``{stage: seconds}``."""
    return table(("stage", "seconds"), [(stage, f"{value:.0f}") for stage, value in seconds.items()])
