"""Task ``d2v_sentence_prediction``: fairseq's ``sentence_prediction``, for which its configuration is a drop-in."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict

import numpy as np
from fairseq.data import Dictionary
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from d2v_plugin.data.complete_batches import CompleteBatches
from d2v_plugin.data.text.binary import TokenFile, exists, open_tokens
from d2v_plugin.data.text.pieces import EOS, SPECIALS, read_symbols
from d2v_plugin.data.text.symbols import check_symbols, symbols_dictionary
from d2v_plugin.errors import UserError
from d2v_plugin.tasks._fields import check_data, is_unset

logger = logging.getLogger(__name__)

MASK = "<mask>"
# fairseq-preprocess fills dictionaries up with these
FILLER = "madeupword"
PREPARE = "prepare it with `d2v glue prepare`"


@dataclass
class D2VSentencePredictionConfig(SentencePredictionConfig):
    """fairseq's fields."""


def check_fields(cfg) -> None:
    """Raises ``UserError`` for values that could only fail later."""
    check_data(cfg, "with input0 and label", "RTE")
    if cfg.num_classes < 1:
        raise UserError(f"task.num_classes={cfg.num_classes} must be the number of labels, 1 for a regression; set it")
    if cfg.regression_target and cfg.num_classes != 1:
        raise UserError(
            f"task.num_classes={cfg.num_classes} and criterion.regression_target=true, which predicts one number; set "
            "task.num_classes=1, or criterion.regression_target=false"
        )
    if cfg.max_positions < 4:
        raise UserError(f"task.max_positions={cfg.max_positions} leaves no room for text; 512 is usual")


@register_task("d2v_sentence_prediction", dataclass=D2VSentencePredictionConfig)
class D2VSentencePredictionTask(SentencePredictionTask):
    """One or two sentences, ``<s> a </s>`` or ``<s> a </s> </s> b </s>``, and a label, out of ``<data>/input0``,
    ``<data>/input1`` and ``<data>/label``, as fairseq-preprocess or ``d2v glue prepare`` wrote them.

    Differs from fairseq's task in that mistakes are one line, that no sample is left out, whatever multiple batches are
    to be of, and that a checkpoint carries its dictionary and labels, so that it loads without the folder it was
    trained on.
    """

    cfg: D2VSentencePredictionConfig

    def __init__(self, cfg, data_dictionary: Dictionary, label_dictionary: Dictionary):
        super().__init__(cfg, data_dictionary, label_dictionary)
        state = {"symbols": list(data_dictionary.symbols)}
        if not cfg.regression_target:
            state["labels"] = list(label_dictionary.symbols)
        self.state.merge_state_dict(state)

    @classmethod
    def setup_task(cls, cfg, from_checkpoint: bool = False, **kwargs):
        """``from_checkpoint``: dictionaries that are not there are replaced by the checkpoint's own."""
        if from_checkpoint and (is_unset(cfg) or not (Path(cfg.data) / "input0" / "dict.txt").is_file()):
            cfg.data = "." if is_unset(cfg) else cfg.data
            task = cls(cfg, Dictionary(), Dictionary())
            task.state.state_dict.clear()
            return task
        check_fields(cfg)
        data = Path(cfg.data)
        if not (data / "input0").is_dir():
            raise UserError(f"task.data={data} has no folder input0; give one that `d2v glue prepare` wrote")
        dictionary = _dictionary(data / "input0" / "dict.txt")
        logger.info("dictionary: %d types", len(dictionary))
        if cfg.regression_target:
            return cls(cfg, dictionary, dictionary)
        labels = _dictionary(data / "label" / "dict.txt")
        found = label_names(labels)
        if len(found) != cfg.num_classes:
            raise UserError(
                f"{data / 'label' / 'dict.txt'} has the labels {', '.join(found) or '(none)'} and task.num_classes="
                f"{cfg.num_classes}; set it to {len(found)}, or give the data of this task"
            )
        return cls(cfg, dictionary, labels)

    # -- what checkpoints carry ------------------------------------------------------------------

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Take the checkpoint's dictionary and labels, or compare them with those that are there.

        Raises:
            UserError: they differ, or there are none.
        """
        if not self.state.state_dict:
            if state_dict.get("symbols") is None:
                raise UserError(
                    f"task.data={self.cfg.data} holds no input0/dict.txt, and the checkpoint brings no dictionary; "
                    "give the folder of training"
                )
            self.dictionary = symbols_dictionary(state_dict["symbols"])
            labels = state_dict.get("labels")
            self._label_dictionary = self.dictionary if labels is None else symbols_dictionary(labels)
            self.state.merge_state_dict({key: state_dict[key] for key in ("symbols", "labels") if key in state_dict})
        self.check_state(state_dict)
        super().load_state_dict(state_dict)

    def check_state(self, state_dict: Dict[str, Any]) -> None:
        """Compare a checkpoint's dictionary and labels with those that are there; what it lacks is taken as it is.

        Raises:
            UserError: they differ.
        """
        check_symbols(state_dict.get("symbols"), self.dictionary, "the checkpoint")
        check_symbols(state_dict.get("labels"), self.label_dictionary, "the checkpoint", "set of labels")

    def build_model(self, cfg, from_checkpoint: bool = False):
        model = super().build_model(cfg, from_checkpoint)
        positions = model.max_positions() if hasattr(model, "max_positions") else None
        positions = positions[0] if isinstance(positions, tuple) else positions
        if not from_checkpoint and positions is not None and self.cfg.max_positions > positions:
            raise UserError(
                f"task.max_positions={self.cfg.max_positions} and the model has {positions} positions; set "
                f"task.max_positions={positions}, and prepare the data with --max-positions {positions}"
            )
        return model

    # -- data ------------------------------------------------------------------------------------

    def load_dataset(self, split: str, combine: bool = False, **kwargs):
        """fairseq's, after a look at the files, in batches that leave no sample out.

        Raises:
            UserError: files are missing, broken, of unequal length or of other labels.
        """
        self.check_split(split)
        self.datasets[split] = CompleteBatches(super().load_dataset(split, combine, **kwargs))
        return self.datasets[split]

    def check_split(self, split: str) -> None:
        """Refuse files of a split that do not go together."""
        data = Path(self.cfg.data)
        if not (data / "input0" / f"{split}.idx").is_file():
            there = sorted(path.stem for path in (data / "input0").glob("*.idx"))
            raise UserError(
                f"{data / 'input0' / split}.idx does not exist (there is: {', '.join(there) or 'nothing'}); {PREPARE}, "
                "or name a split that is there with dataset.train_subset or dataset.valid_subset"
            )
        counts = {}
        for name in ("input0", "input1"):
            if not exists(data / name / split):
                if name == "input1" and (data / name).is_dir():
                    raise UserError(f"{data / name / split}.idx does not exist and input0 has this split; {PREPARE}")
                continue
            file = open_tokens(data / name / split)
            _check_tokens(file, data / name / split, len(self.dictionary))
            counts[f"{name}/{split}"] = len(file)
        counts[f"label/{split}"] = self._check_labels(data / "label", split)
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UserError(f"{data}: unequal numbers of samples ({found}); {PREPARE} again")

    def _check_labels(self, folder: Path, split: str) -> int:
        """How many labels a split has, each of which is one of the classes, or a finite number."""
        if self.cfg.regression_target:
            return len(read_values(folder / f"{split}.label"))
        if not exists(folder / split):
            raise UserError(f"{folder / split}.bin and .idx do not exist, so this split has no labels; {PREPARE}")
        file = open_tokens(folder / split)
        sizes = np.asarray(file.sizes)
        tokens = np.asarray(file.tokens)
        if (wrong := np.flatnonzero(sizes != 2)).size or (tokens[1::2] != EOS).any():
            number = int(wrong[0]) if wrong.size else int(np.flatnonzero(tokens[1::2] != EOS)[0])
            raise UserError(f"{folder / split}.bin: sample {number} has not one label; {PREPARE} again")
        first = len(SPECIALS)
        classes = tokens[::2].astype(np.int64) - first
        if (wrong := np.flatnonzero((classes < 0) | (classes >= self.cfg.num_classes))).size:
            number = int(wrong[0])
            name = self.label_dictionary[int(classes[number]) + first]
            raise UserError(
                f"{folder / split}.bin: sample {number} has the label {name}, which is none of the "
                f"{self.cfg.num_classes} classes ({', '.join(label_names(self.label_dictionary))}); {PREPARE} again"
            )
        return len(sizes)

    def get_batch_iterator(
        self, dataset, max_tokens=None, max_sentences=None, max_positions=None, ignore_invalid_inputs=False, **kwargs
    ):
        """fairseq's, which would stop with a bare exception at a sample that is too long."""
        sizes = np.asarray(dataset.sizes).reshape(-1)
        longest, most = int(sizes.max(initial=0)), self.cfg.max_positions
        if longest > most:
            long, remedy = int((sizes > most).sum()), "task.shorten_method=truncate cuts them"
            if not ignore_invalid_inputs:
                raise UserError(f"{long} samples are longer than task.max_positions={most} (up to {longest}); {remedy}")
            logger.warning("%d samples are longer than %d tokens and left out; %s", long, most, remedy)
        if max_tokens is not None and min(longest, most) > max_tokens:
            raise UserError(
                f"the longest sample has {min(longest, most)} tokens and dataset.max_tokens={max_tokens} is the most a "
                "batch holds; raise it"
            )
        return super().get_batch_iterator(
            dataset, max_tokens, max_sentences, max_positions, ignore_invalid_inputs, **kwargs
        )


def label_names(dictionary: Dictionary) -> list[str]:
    """The labels of a dictionary, without specials and without what fills it up."""
    symbols = dictionary.symbols[dictionary.nspecial :]
    return [symbol for symbol in symbols if symbol != MASK and not symbol.startswith(FILLER)]


def read_values(path: Path) -> list[float]:
    """Targets of a regression, one a line.

    Raises:
        UserError: no such file, or a line that is not one finite number.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist, so this split has no targets; {PREPARE}")
    values = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values.append(float(line))
        except ValueError:
            values.append(float("nan"))
        if not np.isfinite(values[-1]):
            raise UserError(f"{path}:{number}: expected one number, got {line.strip()[:40]!r}; {PREPARE} again")
    return values


def _dictionary(path: Path) -> Dictionary:
    if not path.is_file():
        raise UserError(f"{path} does not exist; {PREPARE}, or with fairseq-preprocess")
    read_symbols(path)  # says what is wrong with a broken file
    dictionary = Dictionary.load(str(path))
    dictionary.add_symbol(MASK)
    return dictionary


def _check_tokens(file: TokenFile, prefix: Path, symbols: int) -> None:
    if not len(file):
        raise UserError(f"{prefix}.idx: holds no samples; {PREPARE} from files that are not empty")
    largest = int(file.tokens.max())
    if largest >= symbols:
        raise UserError(
            f"{prefix}.bin holds the token {largest} and input0/dict.txt has {symbols - 1} symbols: they do not belong "
            "together; prepare both with one dictionary"
        )
