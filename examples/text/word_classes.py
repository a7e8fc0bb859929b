"""Parts of speech from WordNet's files: of words that can be one only.

A word belongs to a class when WordNet lists it there, or when one of its base forms is: by the exceptions
(``noun.exc``: mice, mouse) and by the endings that English inflection adds. Function words are not in WordNet.
Source: WordNet 3.0, morphy(7WN).
"""

from pathlib import Path

from d2v_plugin.errors import UserError

# class -> (ending, what replaces it)
ENDINGS = {
    "noun": (("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"))
    + (("ies", "y"),),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
NAMES = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}


class WordClasses:
    """WordNet's index and exceptions.

    Args:
        folder: holds ``index.noun``, ``noun.exc`` and so on.
    Raises:
        UserError: a file is missing.
    """

    def __init__(self, folder: Path):
        self.lemmas: dict[str, set[str]] = {}
        self.exceptions: dict[str, dict[str, list[str]]] = {}
        for name in ENDINGS:
            # an index begins with its licence, in lines that begin with blanks
            rows = _lines(folder / f"index.{name}")
            self.lemmas[name] = {row.split(" ", 1)[0] for row in rows if not row.startswith(" ")}
            rows = [row.split() for row in _lines(folder / f"{name}.exc")]
            self.exceptions[name] = {form: bases for form, *bases in filter(None, rows)}

    def only_class(self, word: str) -> str | None:
        """The class of a lower-case word that can be of one only; None for any other, names included."""
        if not (word.isalpha() and word.islower()):
            return None
        found = [name for name in ENDINGS if self._belongs(word, name)]
        return NAMES[found[0]] if len(found) == 1 else None

    def _belongs(self, word: str, name: str) -> bool:
        lemmas = self.lemmas[name]
        bases = [word, *self.exceptions[name].get(word, ())]
        bases += [word.removesuffix(end) + new for end, new in ENDINGS[name] if word.endswith(end)]
        return any(base in lemmas for base in bases)


def _lines(path: Path) -> list[str]:
    # Debian's WordNet has no exceptions for adverbs and adjectives where there are none
    if not path.is_file() and path.suffix == ".exc":
        return []
    if not path.is_file():
        raise UserError(f"{path} is missing; delete the folder it was unpacked to and run this again")
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
