"""Tokens of text: an embedding with positions."""

from dataclasses import dataclass, field

import torch.nn as nn

from d2v_plugin.errors import UserError
from d2v_plugin.modalities.base import ModalityEncoder
from d2v_plugin.modalities.config import ModalityConfig
from d2v_plugin.modalities.registry import register_modality
from d2v_plugin.modules.token_embedding import TokenEmbedding


@dataclass
class TextConfig(ModalityConfig):
    type: str = "TEXT"
    max_source_positions: int = field(default=512, metadata={"help": "longest sequence, tokens"})
    learned_pos: bool = True
    dropout: float = field(default=0.1, metadata={"help": "after the embedding"})

    no_scale_embedding: bool = True
    layernorm_embedding: bool = True
    no_token_positional_embeddings: bool = False


@register_modality("TEXT")
class TextEncoder(ModalityEncoder):
    """Tokens (B, T) of the task's ``source_dictionary``."""

    config = TextConfig

    def __init__(self, cfg, factory, task=None):
        dictionary = getattr(getattr(task, "text_task", task), "source_dictionary", None)
        if dictionary is None:
            raise UserError(
                "the TEXT modality needs the vocabulary of a text task (d2v_masked_lm or masked_lm); "
                "set task._name, or supported_modality to what the task reads"
            )
        embedding = TokenEmbedding(
            len(dictionary),
            factory.channels,
            dictionary.pad(),
            cfg.max_source_positions,
            learned_positions=cfg.learned_pos,
            positions=not cfg.no_token_positional_embeddings,
            scale=not cfg.no_scale_embedding,
            norm=cfg.layernorm_embedding,
            dropout=cfg.dropout,
        )
        super().__init__(
            cfg,
            factory,
            local_encoder=embedding,
            project_features=nn.Identity(),
            decoder=factory.conv_decoder(cfg.decoder),
        )
        if cfg.prenet_depth == 0:
            # Without blocks the embedding's own norm is the last, as upstream.
            self.context_encoder.norm, self.context_encoder.dropout = None, 0.0

    def reset_parameters(self):
        """Decoders of text keep the initialisation of the rest."""
