"""Whether a checkpoint's dictionary is the one of the data."""

from collections.abc import Sequence

from fairseq.data import Dictionary

from d2v_plugin.errors import UserError


def symbols_dictionary(symbols: Sequence[str]) -> Dictionary:
    """A dictionary with these symbols, fairseq's four first, each with its number."""
    dictionary = Dictionary()
    for symbol in symbols[dictionary.nspecial :]:
        dictionary.add_symbol(symbol, overwrite=True)  # as many numbers as there were
    return dictionary


def check_symbols(symbols: Sequence[str] | None, dictionary: Dictionary, where: str, what: str = "dictionary") -> None:
    """Compare; a checkpoint that carries none is taken as it is.

    Args:
        symbols: of the checkpoint, or None.
        where: the checkpoint, for messages.
        what: "dictionary" or "labels".
    Raises:
        UserError: they differ.
    """
    if symbols is None or list(symbols) == list(dictionary.symbols):
        return
    raise UserError(
        f"{where} was trained with another {what} than task.data has "
        f"({first_difference(list(symbols), list(dictionary.symbols))}); prepare the data with that of the checkpoint"
    )


def first_difference(symbols: list[str], own: list[str]) -> str:
    """Which of two unequal lists of symbols is longer, or where they part."""
    if len(symbols) != len(own):
        return f"{len(symbols)} symbols there, {len(own)} here"
    number = next(index for index, pair in enumerate(zip(symbols, own, strict=True)) if pair[0] != pair[1])
    return f"symbol {number} is {symbols[number]!r} there, {own[number]!r} here"
