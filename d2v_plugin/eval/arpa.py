"""An n-gram language model in ARPA format, in plain Python."""

from __future__ import annotations

import re
from pathlib import Path

from d2v_plugin.errors import UserError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
# log10 probability of a word the model lacks when it has no <unk>, as KenLM's default
MISSING = -100.0
_SECTION = re.compile(r"\\(\d+)-grams:")


class ArpaModel:
    """Back-off n-gram model; scores are log10.

    A state is the tuple of the last words that matter, at most ``order - 1``.

    Raises:
        UserError: unreadable, not ARPA, or a malformed line, with its number.
    """

    def __init__(self, path: Path):
        self.order = 1
        # n-gram -> (log10 probability, log10 back-off weight)
        self.grams: dict[tuple[str, ...], tuple[float, float]] = {}
        self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with path.open(encoding="utf-8") as file:
                self._parse(path, file)
        except OSError as error:
            raise UserError(
                f"cannot read the language model {path}: {error.strerror}; give --lm an ARPA file"
            ) from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not ARPA text; unpack it if it is compressed, or read a KenLM binary with "
                "--decoder flashlight"
            ) from error
        if not self.grams:
            raise UserError(f"{path} holds no n-gram; an ARPA file has a section \\1-grams:")

    def _parse(self, path: Path, lines) -> None:
        order = 0
        for number, line in enumerate(lines, 1):
            text = line.strip()
            section = _SECTION.fullmatch(text)
            if section:
                order = int(section[1])
                self.order = max(self.order, order)
            elif text == "\\end\\":
                return
            elif order and text:
                fields = text.split()
                try:
                    probability = float(fields[0])
                    backoff = float(fields[order + 1]) if len(fields) == order + 2 else 0.0
                except (ValueError, IndexError):
                    fields = []
                if len(fields) not in (order + 1, order + 2):
                    raise UserError(
                        f"{path}:{number}: expected a probability, {order} words and perhaps a back-off weight, "
                        f"got {text[:60]!r}; check the file"
                    )
                self.grams[tuple(fields[1 : order + 1])] = (probability, backoff)

    def start(self) -> tuple[str, ...]:
        """The state at the beginning of a sentence."""
        return (START,)[: self.order - 1]

    def score(self, state: tuple[str, ...], word: str) -> tuple[tuple[str, ...], float]:
        """The next state and log10 p(word | state)."""
        if (word,) not in self.grams:
            word = UNKNOWN
        context, penalty = state, 0.0
        while True:
            found = self.grams.get((*context, word))
            if found is not None or not context:
                probability = found[0] if found is not None else MISSING
                return (*state, word)[1 - self.order :] if self.order > 1 else (), probability + penalty
            penalty += self.grams.get(context, (0.0, 0.0))[1]
            context = context[1:]

    def finish(self, state: tuple[str, ...]) -> float:
        """log10 p(end of sentence | state)."""
        return self.score(state, END)[1]
