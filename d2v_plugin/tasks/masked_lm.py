"""Task ``d2v_masked_lm``: fairseq's ``masked_lm``, for which its configuration is a drop-in."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary, PrependTokenDataset, TokenBlockDataset, data_utils
from fairseq.data.indexed_dataset import infer_dataset_impl
from fairseq.data.shorten_dataset import maybe_shorten_dataset
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from d2v_plugin.data.text.batches import NOTHING, TokenBatches
from d2v_plugin.data.text.binary import open_tokens
from d2v_plugin.data.text.masked_batches import MaskedBatches
from d2v_plugin.data.text.pieces import read_symbols
from d2v_plugin.data.text.symbols import first_difference, symbols_dictionary
from d2v_plugin.data.text.token_masks import TokenMasks, replacement_weights
from d2v_plugin.errors import UserError
from d2v_plugin.ranges import check_amounts, check_range, check_shares
from d2v_plugin.tasks._fields import check_data, check_modality, is_unset
from d2v_plugin.tasks._forward import named_arguments

logger = logging.getLogger(__name__)

# they mask in the model, and in the data
MULTI, TEXT = "data2vec_multi", "data2vec_text"
MASK = "<mask>"
# tokens of a split that are compared with the dictionary before a GPU meets them
LOOKED_AT = 1 << 20


@dataclass
class D2VMaskedLMConfig(MaskedLMConfig):
    """fairseq's fields."""


def check_fields(cfg) -> None:
    """Refuse values that could only fail later or be ignored.

    Raises:
        UserError: one line that names the field and what to change.
    """
    check_data(cfg, "with the binarised text", "text")
    if cfg.tokens_per_sample < NOTHING + 1:
        raise UserError(
            f"task.tokens_per_sample={cfg.tokens_per_sample} leaves no room for text beside <s> and </s>; 512 is usual"
        )
    if cfg.d2v2_multi and not cfg.skip_masking:
        raise UserError("task.d2v2_multi=true needs task.skip_masking=true: data2vec 2.0 masks in the model, not here")
    if not cfg.skip_masking:
        check_masking(cfg)


def check_masking(cfg) -> None:
    """Raises ``UserError`` for masks that cannot be drawn."""
    check_shares("task", cfg, ("mask_prob", "random_token_prob", "leave_unmasked_prob"))
    if cfg.mask_prob in (0, 1):
        raise UserError(
            f"task.mask_prob={cfg.mask_prob} masks {'all' if cfg.mask_prob else 'none'} of the text; "
            "choose a value above 0 and below 1"
        )
    check_range(
        "task.random_token_prob + task.leave_unmasked_prob", cfg.random_token_prob + cfg.leave_unmasked_prob, 0, 1
    )
    check_amounts("task", cfg, ("mask_multiple_length",), low=1)
    check_amounts("task", cfg, ("mask_stdev",))
    if cfg.mask_whole_words:
        raise UserError(
            "task.mask_whole_words needs the BPE arguments of fairseq-train's command line, which a YAML run does not "
            "have; remove it"
        )


def check_model(cfg, model_cfg) -> None:
    """Refuse a model that this configuration does not feed.

    Raises:
        UserError: another input form, another modality, or more tokens than the model has positions.
    """
    name = getattr(model_cfg, "_name", None)
    if name == MULTI:
        if not cfg.d2v2_multi:
            raise UserError(f"model {MULTI} needs task.d2v2_multi=true and task.skip_masking=true; set both")
        check_modality(model_cfg, "TEXT", "text")
    if name == TEXT and (cfg.d2v2_multi or cfg.skip_masking or not cfg.include_target_tokens):
        raise UserError(
            f"model {TEXT} learns from masked tokens and the text they hide: set task.d2v2_multi=false, "
            "task.skip_masking=false and task.include_target_tokens=true"
        )
    check_positions(cfg, model_cfg)


def check_positions(cfg, model_cfg) -> None:
    """Raises ``UserError`` where a block may have more tokens than the model has positions."""
    where, name = model_cfg, "model.max_source_positions"
    for inside in ("modalities.text", "transformer"):
        found = _inside(model_cfg, inside)
        if found is not None:
            where, name = found, f"model.{inside}.max_source_positions"
    positions = getattr(where, "max_source_positions", None)
    if isinstance(positions, int) and cfg.tokens_per_sample > positions:
        raise UserError(
            f"task.tokens_per_sample={cfg.tokens_per_sample} is beyond {name}={positions}; lower the first or raise "
            "the second (a checkpoint to go on from fixes it)"
        )


def _inside(cfg, names: str):
    for name in names.split("."):
        cfg = getattr(cfg, name, None)
    return cfg


@register_task("d2v_masked_lm", dataclass=D2VMaskedLMConfig)
class D2VMaskedLMTask(MaskedLMTask):
    """Blocks of binarised text from ``<data>/<split>.{bin,idx}`` with ``<data>/dict.txt``.

    Differs from fairseq's task in that mistakes are one line, a batch without padding has no padding mask, documents
    of no text are left out, ``target_tokens`` holds the whole text, ``sample_break_mode: eos`` works under NumPy 2,
    shortened sequences leave room for ``<s>``, and a checkpoint carries its dictionary, so that it loads without the
    folder it was trained on.
    """

    cfg: D2VMaskedLMConfig

    def __init__(self, cfg: D2VMaskedLMConfig, dictionary: Optional[Dictionary] = None):
        check_fields(cfg)
        super().__init__(cfg, dictionary)
        self.wanted = []  # arguments of the model
        self.state.merge_state_dict({"symbols": list(self.dictionary.symbols)})

    @classmethod
    def setup_task(cls, cfg: D2VMaskedLMConfig, from_checkpoint: bool = False, **kwargs):
        """``from_checkpoint``: a dictionary that is not there is replaced by the checkpoint's own."""
        if from_checkpoint and (is_unset(cfg) or not (_folders(cfg)[0] / "dict.txt").is_file()):
            cfg.data = "." if is_unset(cfg) else cfg.data
            task = cls(cfg, Dictionary())
            task.state.state_dict.pop("symbols")
            return task
        return cls(cfg, cls.load_dict(cfg))

    @classmethod
    def load_dict(cls, cfg) -> Dictionary:
        """The first folder's dictionary, without ``<mask>``."""
        check_fields(cfg)
        for folder in _folders(cfg):
            if not folder.is_dir():
                raise UserError(f"task.data={cfg.data}: {folder} is no folder; give the one with the binarised text")
        path = _folders(cfg)[0] / "dict.txt"
        if not path.is_file():
            raise UserError(
                f"task.data={cfg.data} holds no dict.txt; binarise text with `d2v text build` (raw text) or "
                "fairseq-preprocess (tokenised text), and give the folder it writes"
            )
        read_symbols(path)  # says what is wrong with a broken file
        dictionary = Dictionary.load(str(path))
        logger.info("dictionary: %d types", len(dictionary))
        return dictionary

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Take the checkpoint's dictionary, or compare it with the one that is there.

        Raises:
            UserError: they differ.
        """
        symbols, own = state_dict.get("symbols"), self.state.state_dict.get("symbols")
        if symbols is None and own is None:
            raise UserError(
                f"task.data={self.cfg.data} holds no dict.txt, and the checkpoint brings none; give the folder of "
                "training"
            )
        if own is None:
            self.dictionary = symbols_dictionary(symbols)
            self.mask_idx = self.dictionary.add_symbol(MASK)
        self.check_state(state_dict)
        super().load_state_dict(state_dict)

    def check_state(self, state_dict: Dict[str, Any]) -> None:
        """Compare a checkpoint's dictionary with the one that is there; a checkpoint without one is taken as it is.

        Raises:
            UserError: they differ.
        """
        symbols, own = state_dict.get("symbols"), list(self.dictionary.symbols)
        if symbols is not None and list(symbols) != own:
            raise UserError(
                f"the checkpoint was trained with another dictionary than that of task.data={self.cfg.data} "
                f"({first_difference(symbols, own)}); give text that was binarised with the dict.txt of training"
            )

    def build_model(self, model_cfg, from_checkpoint: bool = False):
        check_model(self.cfg, model_cfg)
        model = super().build_model(model_cfg, from_checkpoint)
        self.fit_to(model, from_checkpoint)
        return model

    def fit_to(self, model: torch.nn.Module, from_checkpoint: bool = False) -> None:
        """Take over what the model says about its input.

        Raises:
            UserError: a new model with fewer positions than a block has tokens.
        """
        if not from_checkpoint:
            check_positions(self.cfg, getattr(model, "cfg", None))
        self.wanted = named_arguments(model)
        for dataset in self.datasets.values():
            self._fit(dataset)

    def _fit(self, dataset: TokenBatches) -> None:
        dataset.source_lengths = "source_lengths" in self.wanted
        if isinstance(dataset, MaskedBatches):
            dataset.rows = "masked_rows" in self.wanted

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs) -> None:
        """:class:`MaskedBatches`, or with ``d2v2_multi`` :class:`TokenBatches`."""
        blocks = self._load_dataset_split(split, epoch, combine)
        cfg, dictionary = self.cfg, self.source_dictionary
        if cfg.d2v2_multi:
            dataset = TokenBatches(blocks, dictionary.pad(), cfg.seed)
        else:
            dataset = MaskedBatches(
                blocks,
                dictionary.pad(),
                cfg.seed,
                None if cfg.skip_masking else self._masks(),
                mask=self.mask_idx,
                unknown=dictionary.unk(),
                text=cfg.include_target_tokens,
                index=cfg.include_index,
            )
        self._fit(dataset)
        self.datasets[split] = dataset

    def _masks(self) -> TokenMasks:
        cfg, dictionary = self.cfg, self.source_dictionary
        weights = None
        if cfg.random_token_prob > 0:
            if cfg.freq_weighted_replacement and not any(dictionary.count[dictionary.nspecial : self.mask_idx]):
                raise UserError(
                    f"task.freq_weighted_replacement=true and the dict.txt of task.data={cfg.data} counts no symbol; "
                    "set it to false"
                )
            weights = replacement_weights(dictionary.count, dictionary.nspecial, cfg.freq_weighted_replacement)
        return TokenMasks(
            self.mask_idx,
            cfg.mask_prob,
            cfg.mask_multiple_length,
            cfg.mask_stdev,
            keep=cfg.leave_unmasked_prob,
            random=cfg.random_token_prob,
            weights=weights,
            seed=cfg.seed,
        )

    def _load_dataset_split(self, split: str, epoch: int, combine: bool) -> PrependTokenDataset:
        """Blocks of one split, each behind ``<s>``."""
        folders = _folders(self.cfg)
        prefix = folders[(epoch - 1) % len(folders)] / split
        check_split(prefix, len(self.source_dictionary))
        tokens = data_utils.load_indexed_dataset(str(prefix), self.source_dictionary, combine=combine)
        cfg, room = self.cfg, self.cfg.tokens_per_sample - 1  # <s> takes one
        tokens = maybe_shorten_dataset(
            tokens, split, cfg.shorten_data_split_list, str(cfg.shorten_method), room, cfg.seed
        )
        # One sequence a block needs no table, and fairseq's builder of that one uses what NumPy 2 has dropped.
        if str(cfg.sample_break_mode) != "eos":
            specials = {"pad": self.source_dictionary.pad(), "eos": self.source_dictionary.eos()}
            tokens = TokenBlockDataset(tokens, tokens.sizes, room, break_mode=str(cfg.sample_break_mode), **specials)
        blocks = PrependTokenDataset(tokens, self.source_dictionary.bos())
        logger.info("%s: %d blocks, %d tokens", prefix, len(blocks), int(np.sum(blocks.sizes, dtype=np.int64)))
        return blocks

    def get_batch_iterator(
        self,
        dataset,
        max_tokens=None,
        max_sentences=None,
        max_positions=None,
        ignore_invalid_inputs=False,
        **kwargs,
    ):
        """fairseq's, which would stop with a bare exception or assertion at a block that is too long."""
        sizes = np.asarray(dataset.sizes).reshape(-1)
        longest, most = int(sizes.max(initial=0)), self.cfg.tokens_per_sample
        remedy = "task.sample_break_mode=none fills blocks evenly, task.shorten_method=truncate cuts sequences"
        if longest > most and not ignore_invalid_inputs:
            raise UserError(
                f"the longest block has {longest} tokens and task.tokens_per_sample={most}: one sequence is longer; "
                f"{remedy}, and dataset.skip_invalid_size_inputs_valid_test=true leaves such blocks out"
            )
        if longest > most:
            long = sizes[sizes > most]
            share = 100 * float(long.sum(dtype=np.int64) / sizes.sum(dtype=np.int64))
            logger.warning("%d blocks, %.1f %% of the tokens, are too long and left out; %s", len(long), share, remedy)
        if max_tokens is not None and min(longest, most) > max_tokens:
            raise UserError(
                f"the longest block has {min(longest, most)} tokens and dataset.max_tokens={max_tokens} is the most a "
                "batch holds; raise it, or lower task.tokens_per_sample"
            )
        return super().get_batch_iterator(
            dataset, max_tokens, max_sentences, max_positions, ignore_invalid_inputs, **kwargs
        )


def _folders(cfg) -> list[Path]:
    return [Path(path) for path in utils.split_paths(cfg.data)]


def check_split(prefix: Path, symbols: int) -> None:
    """Refuse token files that are missing, cut off, empty, or not of this dictionary.

    Args:
        symbols: size of the dictionary with ``<mask>``.
    Raises:
        UserError: one line.
    """
    if not os.path.isfile(f"{prefix}.idx") and infer_dataset_impl(str(prefix)) is None:
        there = sorted(path.stem for path in prefix.parent.glob("*.idx"))
        raise UserError(
            f"{prefix}.idx does not exist (there is: {', '.join(there) or 'nothing of the kind'}); write it with "
            "`d2v text build` or `d2v text encode`, or name the split that is there with dataset.train_subset or "
            "dataset.valid_subset"
        )
    if infer_dataset_impl(str(prefix)) != "mmap":
        return
    file = open_tokens(prefix)
    if not len(file):
        raise UserError(f"{prefix}.idx: holds no sequences; write it again from text that is not empty")
    step = max(1, len(file.tokens) // LOOKED_AT)
    largest = int(file.tokens[::step].max())
    if largest >= symbols:
        raise UserError(
            f"{prefix}.bin holds the token {largest} and {prefix.parent / 'dict.txt'} has {symbols - 1} symbols: they "
            "do not belong together; put the dictionary of this text there, or binarise it with this one"
        )
