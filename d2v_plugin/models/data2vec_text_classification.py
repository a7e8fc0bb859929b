"""data2vec 2.0 for text under a head, as ``data2vec_text_classification`` with upstream's fields and keys."""

from dataclasses import dataclass, field
from typing import Any, Optional

import torch.nn as nn
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.models.roberta.model import RobertaClassificationHead
from omegaconf import MISSING

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.data.text.symbols import check_symbols
from d2v_plugin.errors import UserError
from d2v_plugin.fine_tuning.body import load_body, pretrained_path
from d2v_plugin.fine_tuning.head_size import check_head_size
from d2v_plugin.ranges import check_shares

EMBEDDING = "modality_encoders.TEXT.local_encoder.embed_tokens.weight"


@dataclass
class Data2VecTextClassificationConfig(FairseqDataclass):
    """Upstream's names and defaults, and one field of ours; checkpoints carry ``pretrained_model_args``."""

    pooler_dropout: float = 0.0
    pooler_activation_fn: str = "tanh"
    quant_noise_pq: int = 0
    quant_noise_pq_block_size: int = 8
    spectral_norm_classification_head: bool = False

    model_path: str = MISSING
    no_pretrained_weights: bool = False

    pretrained_model_args: Any = None

    max_positions: Optional[int] = field(default=None, metadata={"help": "set by the task, for models that want it"})


@register_model("data2vec_text_classification", dataclass=Data2VecTextClassificationConfig)
class Data2VecTextClassificationModel(BaseFairseqModel):
    """A pre-trained ``data2vec_multi`` and heads that read its first token, ``<s>``.

    Args:
        cfg: ``Data2VecTextClassificationConfig``; its ``pretrained_model_args`` is filled in.
        task: brings the dictionary of the text.
    """

    def __init__(self, cfg, task):
        super().__init__()
        check_shares("model", cfg, ("pooler_dropout",))
        path = pretrained_path(cfg, cfg.pretrained_model_args)
        if path is not None:
            _check_dictionary(path, task)
        body = load_body(
            path,
            cfg.pretrained_model_args,
            modality="TEXT",
            task=task,
            weights=not cfg.no_pretrained_weights,
        )
        cfg.pretrained_model_args = body.cfg
        self.cfg, self.dim = cfg, body.dim
        self.model = body.model
        self.classification_heads = nn.ModuleDict()

    @classmethod
    def build_model(cls, cfg, task=None):
        return cls(cfg, task)

    def register_classification_head(self, name, num_classes=None, inner_dim=None, **kwargs):
        """A new head; one of that name is replaced.

        Args:
            num_classes: outputs, 1 for a regression.
            inner_dim: of its hidden layer, by default as wide as the features.
        """
        cfg = self.cfg
        self.classification_heads[name] = RobertaClassificationHead(
            input_dim=self.dim,
            inner_dim=inner_dim or self.dim,
            num_classes=num_classes,
            activation_fn=cfg.pooler_activation_fn,
            pooler_dropout=cfg.pooler_dropout,
            q_noise=cfg.quant_noise_pq,
            qn_block_size=cfg.quant_noise_pq_block_size,
            do_spectral_norm=cfg.spectral_norm_classification_head,
        )

    def forward(
        self,
        source,
        id=None,
        padding_mask=None,
        features_only=True,
        remove_extra_tokens=True,
        classification_head_name=None,
    ):
        """Returns ``(logits (B, classes), what the body returned)``.

        Args:
            source: tokens (B, T) with ``<s>`` first.
            id: (B,) int64 sample numbers; unused where nothing is masked.
            padding_mask: (B, T) bool, True = padding, or None.
        """
        out = self.model(
            source,
            id=id,
            mode="TEXT",
            padding_mask=padding_mask,
            mask=False,
            features_only=features_only,
            remove_extra_tokens=remove_extra_tokens,
        )
        return self.classification_heads[classification_head_name](out["x"]), out

    def max_positions(self):
        """Longest sequence in tokens."""
        return self.model.modality_encoders["TEXT"].modality_cfg.max_source_positions

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """fairseq's; a head of another size is named.

        Raises:
            UserError: the file has a head with another number of classes.
        """
        for name, head in self.classification_heads.items():
            layer = f"classification_heads.{name}.out_proj"
            check_head_size(state_dict, f"head {name}", layer, head.out_proj.out_features, "task.num_classes")
        return super().load_state_dict(state_dict, strict, model_cfg, args)


def _check_dictionary(path, task):
    """Refuse text that was binarised with another dictionary than the checkpoint's.

    Raises:
        UserError: their sizes differ, or the symbols that the checkpoint carries.
    """
    state = read_checkpoint(path, keys=("model",), verify=False)
    dictionary = getattr(task, "source_dictionary", None)
    if dictionary is None:
        raise UserError("data2vec_text_classification needs the dictionary of a text task; use d2v_sentence_prediction")
    embedding = state["model"].get(EMBEDDING)
    if embedding is not None and len(embedding) != len(dictionary):
        raise UserError(
            f"task.data has a dictionary of {len(dictionary)} symbols and model.model_path={path} was trained with "
            f"{len(embedding)}; prepare the data with the dictionary of pre-training (`d2v glue prepare --text`)"
        )
    check_symbols((state.get("task_state") or {}).get("symbols"), dictionary, f"model.model_path={path}")
