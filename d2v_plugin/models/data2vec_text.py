"""data2vec 1.0 for text, registered as ``data2vec_text`` with upstream's fields, signature and state-dict keys."""

import logging

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.models import FairseqEncoder, FairseqEncoderModel, register_model
from fairseq.models.roberta.model import RobertaClassificationHead

from d2v_plugin.checkpoints.text_names import fit_regression_head, rename_text_weights
from d2v_plugin.errors import UserError
from d2v_plugin.method.collapse import CollapseWatch
from d2v_plugin.method.distillation import SelfDistillation
from d2v_plugin.method.ema import EMATeacher
from d2v_plugin.method.misfits import ANOTHER_VOCABULARY, misfits_named
from d2v_plugin.method.regression import loss_scale, over_all_ranks, regression_loss
from d2v_plugin.method.targets import TargetRecipe
from d2v_plugin.models.data2vec_text_config import Data2VecTextConfig, check_layers, validate
from d2v_plugin.modules.init import bert_init
from d2v_plugin.modules.sentence_encoder import SentenceEncoder

logger = logging.getLogger(__name__)

NAME = "data2vec_text"
MASK = "<mask>"
POSITIONS = "model.transformer.max_source_positions"


@register_model(NAME, dataclass=Data2VecTextConfig)
class Data2VecTextModel(FairseqEncoderModel):
    """The encoder, and heads that classify a text by its first token.

    Args:
        cfg: ``Data2VecTextConfig``.
        encoder: ``Data2VecTextEncoder``.
    """

    def __init__(self, cfg, encoder):
        super().__init__(encoder)
        self.cfg = cfg
        self.classification_heads = nn.ModuleDict()

    @classmethod
    def build_model(cls, cfg, task):
        """A new model for the dictionary of ``task``.

        Raises:
            UserError: a setting that cannot work.
        """
        validate(cfg)
        longest = getattr(getattr(task, "cfg", None), "tokens_per_sample", None)
        if longest is not None:
            _check_positions(cfg, longest)
        return cls(cfg, Data2VecTextEncoder(cfg, task.source_dictionary))

    def forward(
        self,
        src_tokens,
        target_tokens=None,
        features_only=False,
        return_all_hiddens=False,
        classification_head_name=None,
        source_lengths=None,
        masked_rows=None,
        **kwargs,
    ):
        """Pre-training step, features, or scores of a classification head.

        Args:
            classification_head_name: return what this head makes of the features instead of them.
            others: see ``Data2VecTextEncoder.forward``; what is not named there is ignored.
        Returns:
            As ``Data2VecTextEncoder.forward``; with a head ``(scores (B, classes), extra)``.
        """
        out = self.encoder(
            src_tokens,
            target_tokens,
            features_only or classification_head_name is not None,
            return_all_hiddens,
            source_lengths=source_lengths,
            masked_rows=masked_rows,
            **kwargs,
        )
        if classification_head_name is None:
            return out
        features, extra = out
        if classification_head_name not in self.classification_heads:
            raise UserError(
                f"this model has no classification head {classification_head_name!r}, it has "
                f"{', '.join(self.classification_heads) or 'none'}; register it before it is used"
            )
        return self.classification_heads[classification_head_name](features), extra

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        """Probabilities, or their logarithms, of a head's scores; fp32."""
        scores = net_output[0].float()
        return F.log_softmax(scores, dim=-1) if log_probs else F.softmax(scores, dim=-1)

    @property
    def supported_targets(self):
        return {"self"}

    @property
    def num_updates(self):
        return self.encoder.num_updates

    # -- classification heads ------------------------------------------------------------------------

    def register_classification_head(self, name, num_classes=None, inner_dim=None, **kwargs):
        """Add a head (one of the same name is replaced). What only pre-training needs rests from then on.

        Args:
            num_classes: outputs; 1 for a regression.
            inner_dim: width of its hidden layer, by default that of the encoder.
        """
        if name in self.classification_heads:
            logger.warning("classification head %s is replaced by a new one with %s classes", name, num_classes)
        self._add_head(name, num_classes, inner_dim)
        self.encoder.rest_pretraining()

    def _add_head(self, name, num_classes, inner_dim=None):
        width = self.cfg.transformer.encoder.embed_dim
        self.classification_heads[name] = RobertaClassificationHead(
            input_dim=width,
            inner_dim=inner_dim or width,
            num_classes=num_classes,
            activation_fn="tanh",
            pooler_dropout=0,
        )

    # -- weights ---------------------------------------------------------------------------------

    def remove_pretraining_modules(self, last_layer=None):
        """Keep what features need; with ``last_layer``, blocks up to that one (0-based, included) and no norm after."""
        self.encoder.regression_head = None
        self.encoder.ema = None
        self.classification_heads = nn.ModuleDict()
        if last_layer is not None:
            sentence_encoder = self.encoder.sentence_encoder
            sentence_encoder.layers = sentence_encoder.layers[: last_layer + 1]
            sentence_encoder.layer_norm = None

    def load_state_dict(self, state_dict, strict=True, **kwargs):
        """The usual, with a line for people where the weights are those of another model."""
        with misfits_named(NAME):
            return super().load_state_dict(state_dict, strict=strict, **kwargs)

    def upgrade_state_dict_named(self, state_dict, name):
        """Bring what earlier versions, RoBERTa and fine-tuning wrote to this model's names, in place."""
        prefix = f"{name}." if name else ""
        rename_text_weights(state_dict, prefix)
        embedding = state_dict.get(f"{prefix}encoder.sentence_encoder.embed_tokens.weight")
        symbols = len(self.encoder.dictionary)
        if embedding is not None and len(embedding) != symbols:
            raise UserError(f"{ANOTHER_VOCABULARY} It has {len(embedding)} symbols, this run {symbols}")
        head = self.encoder.regression_head
        own = None if head is None else head.state_dict()
        if fit_regression_head(state_dict, prefix, own, own_where_missing=len(self.classification_heads) > 0):
            logger.warning("the checkpoint's head predicts tokens and is left out")
        state_dict.setdefault(f"{prefix}encoder.sentence_encoder.version", self.encoder.sentence_encoder.version)
        super().upgrade_state_dict_named(state_dict, name)
        self._upgrade_classification_heads(state_dict, prefix + "classification_heads.")

    def _upgrade_classification_heads(self, state_dict, prefix):
        """Leave out heads that this model lacks or has in another size; its new heads keep their own weights."""
        for name in sorted({key.removeprefix(prefix).split(".")[0] for key in state_dict if key.startswith(prefix)}):
            classes, inner = (len(state_dict[f"{prefix}{name}.{layer}.weight"]) for layer in ("out_proj", "dense"))
            if self.cfg.load_checkpoint_heads and name not in self.classification_heads:
                self._add_head(name, classes, inner)
            if name in self.classification_heads:
                head = self.classification_heads[name]
                if (head.out_proj.out_features, head.dense.out_features) == (classes, inner):
                    continue
                reason = f"has {classes} classes and {inner} inner channels there, and others here"
            else:
                reason = "is not part of this model (model.load_checkpoint_heads=true takes such heads over)"
            logger.warning("the checkpoint's classification head %s %s; left out", name, reason)
            for key in [key for key in state_dict if key.startswith(f"{prefix}{name}.")]:
                del state_dict[key]
        for key, value in self.classification_heads.state_dict().items():
            state_dict.setdefault(prefix + key, value)


class Data2VecTextEncoder(SelfDistillation, FairseqEncoder):
    """The student, and around it the EMA teacher made by the first ``set_num_updates``.

    Args:
        cfg: ``Data2VecTextConfig``.
        dictionary: fairseq's, with ``<mask>``.
    Raises:
        UserError: a dictionary without it.
    """

    model_name = NAME

    def __init__(self, cfg, dictionary):
        super().__init__(dictionary)
        self.cfg = cfg
        self.padding_idx, self.mask_idx = dictionary.pad(), dictionary.index(MASK)
        if self.mask_idx == dictionary.unk():
            raise UserError(
                f"the dictionary has no {MASK}, which {NAME} learns from; use a task that adds it (d2v_masked_lm, "
                "masked_lm, sentence_prediction)"
            )
        self.sentence_encoder = _sentence_encoder(cfg.transformer, len(dictionary), self.padding_idx)
        self.regression_head = regression_head(cfg.transformer.encoder.embed_dim, cfg.head_layers).apply(bert_init)

        self.classifying = False
        self.target_recipe = TargetRecipe.from_config(cfg)
        self.watch = CollapseWatch(cfg.min_target_var, cfg.min_pred_var, cfg.collapse_guard_updates, cfg.watch_interval)

    # -- teacher ---------------------------------------------------------------------------------

    @property
    def _trailed(self):
        """The part of the student that the teacher copies."""
        return self.sentence_encoder

    @property
    def _pretraining(self):
        return self.regression_head is not None and not self.classifying

    def make_teacher(self):
        """With ``ema_transformer_layers_only`` it shares the embeddings; fixed positions end that, as upstream."""
        check_layers(self.cfg)
        student, shared = self.sentence_encoder, []
        if self.cfg.ema_transformer_layers_only:
            for name in ("embed_tokens", "embed_positions", "layernorm_embedding"):
                shared += [key for key, _ in student.named_parameters() if key.startswith(f"{name}.")]
            if "embed_positions.weight" not in shared:
                shared.remove("embed_tokens.weight")
        return EMATeacher(student, shared=shared)

    def rest_pretraining(self):
        """For fine-tuning: no teacher, and a regression head that stays as it is."""
        self.classifying, self.ema = True, None
        if self.regression_head is not None:
            self.regression_head.requires_grad_(False)

    # -- forward ---------------------------------------------------------------------------------

    def forward(
        self,
        src_tokens,
        target_tokens=None,
        features_only=False,
        return_all_hiddens=False,
        masked_tokens=None,
        source_lengths=None,
        masked_rows=None,
        **unused,
    ):
        """Pre-training step, or features.

        Args:
            src_tokens: (B, T) int64, some of them ``<mask>``.
            target_tokens: (B, T) int64, the text. Where it is padding, as in fairseq's ``masked_lm`` wherever
                nothing is masked (fairseq issue 4881), the teacher reads the token of ``src_tokens``.
            features_only: return after the student.
            return_all_hiddens: give the states between blocks, too.
            masked_tokens: accepted for compatibility, unused (as upstream).
            source_lengths: B host integers, tokens; spares reading the padding from the device.
            masked_rows: (M,) int64, flat indices ``b * T + t`` of ``<mask>``; spares reading them from the device.
        Returns:
            With ``features_only`` what ``extract_features`` returns. Otherwise dict of ``losses``, ``sample_size``
            (masked tokens), ``target_var``, ``pred_var``, ``ema_decay`` (times 1000), and ``logs``: the decay again,
            as upstream, and what the collapse watch saw when it looked.
        """
        if features_only:
            return self.extract_features(src_tokens, return_all_hiddens, source_lengths=source_lengths)
        if self.ema is None:
            raise UserError(f"this {NAME} model has no teacher, so it cannot be pre-trained; call with features_only")
        if target_tokens is None:
            raise UserError(f"{NAME} needs the text beside the masked tokens; set task.include_target_tokens=true")
        padding_mask = self._padding_mask(src_tokens, source_lengths)
        if masked_rows is None:
            masked_rows = src_tokens.eq(self.mask_idx).flatten().nonzero().squeeze(1)
        student = self.sentence_encoder(src_tokens, padding_mask, first_result=len(self.sentence_encoder.layers))
        pred = self.regression_head(student.x.flatten(0, 1).index_select(0, masked_rows))

        whole = torch.where(target_tokens.eq(self.padding_idx), src_tokens, target_tokens)
        targets, teacher_top = self._targets(whole, padding_mask, masked_rows)
        result, regression = self._regress(pred, targets)
        if self.training and self.watch.due(self.num_updates):
            finite, target_std, pred_std = over_all_ranks(regression)
            self.watch.check(self.num_updates, finite, target_var=target_std, pred_var=pred_std)
            result["logs"] |= self.watch.measure(padding_mask, student=student.x, teacher=teacher_top)
        return result

    def _padding_mask(self, tokens, lengths):
        """(B, T) bool, or None where nothing is padded, if that is known without reading a device."""
        if lengths is not None and min(lengths) == tokens.shape[1]:
            return None
        mask = tokens.eq(self.padding_idx)
        unpadded = lengths is None and mask.device.type == "cpu" and not mask.any()
        return None if unpadded else mask

    @torch.no_grad()
    def _targets(self, tokens, padding_mask, rows):
        first = self.cfg.transformer.encoder.layers - self.cfg.average_top_k_layers
        results = self.ema.model(tokens, padding_mask, first_result=first).results
        layers = [ffn for _, ffn in results]
        aware = self.cfg.length_aware_targets and padding_mask is not None
        return self.target_recipe(layers, rows, (~padding_mask).sum(1) if aware else None), layers[-1]

    def _regress(self, pred, targets):
        configured = self.cfg.loss_scale
        scale = loss_scale(None if configured is None or configured <= 0 else configured, pred.shape[-1])
        regression = regression_loss(pred, targets, beta=self.cfg.loss_beta, scale=scale)
        decay = self.ema.decay * 1000
        result = {
            "losses": {"main": regression.loss},
            "sample_size": pred.shape[0],
            "target_var": regression.target_std,
            "pred_var": regression.pred_std,
            "ema_decay": decay,
            "logs": {"ema_decay": decay},
        }
        return result, regression

    def extract_features(self, src_tokens, return_all_hiddens=False, *, source_lengths=None, **kwargs):
        """The student's features.

        Args:
            src_tokens: (B, T) int64.
            return_all_hiddens: give the states between blocks, too.
            source_lengths: see ``forward``.
            kwargs: ``token_embeddings`` (B, T, C) to take for the tokens' vectors; others are ignored.
        Returns:
            ``(x, extra)``: (B, T, C), and dict of ``inner_states``, None or the blocks' input and outputs, each
            (T, B, C), and ``encoder_embedding`` (B, T, C), the tokens' vectors.
        """
        out = self.sentence_encoder(
            src_tokens, self._padding_mask(src_tokens, source_lengths), embedded=kwargs.get("token_embeddings")
        )
        states = None
        if return_all_hiddens:
            states = [state.transpose(0, 1) for state in (out.first, *(x for x, _ in out.results))]
        return out.x, {"inner_states": states, "encoder_embedding": out.embedded}

    def max_positions(self):
        """Longest sequence in tokens."""
        cfg = self.cfg
        if cfg.transformer.no_token_positional_embeddings:
            return cfg.max_positions
        return min(cfg.max_positions, cfg.transformer.max_source_positions)


def _check_positions(cfg, longest):
    limits = {"model.max_positions": cfg.max_positions}
    if not cfg.transformer.no_token_positional_embeddings:
        limits[POSITIONS] = cfg.transformer.max_source_positions
    for key, positions in limits.items():
        if longest > positions:
            raise UserError(
                f"task.tokens_per_sample={longest} is beyond {key}={positions}; lower the first or raise the second (a "
                "checkpoint to go on from fixes it)"
            )


def _sentence_encoder(cfg, vocabulary, padding_idx):
    encoder = cfg.encoder
    return SentenceEncoder(
        vocabulary,
        padding_idx,
        cfg.max_source_positions,
        encoder.embed_dim,
        encoder.ffn_embed_dim,
        encoder.attention_heads,
        encoder.layers,
        dropout=cfg.dropout,
        attention_dropout=cfg.attention_dropout,
        activation_dropout=cfg.activation_dropout or cfg.relu_dropout,
        activation_fn=str(cfg.activation_fn),
        norm_first=encoder.normalize_before,
        layerdrop=encoder.layerdrop,
        checkpoint_activations=cfg.checkpoint_activations,
        learned_positions=encoder.learned_pos,
        positions=not cfg.no_token_positional_embeddings,
        scale=not cfg.no_scale_embedding,
        norm=cfg.layernorm_embedding,
        setting=POSITIONS,
    )


def regression_head(channels, layers):
    """``layers`` linear layers with GELU between them, those inside twice as wide; maps (..., C) to (..., C)."""
    widths = [channels, *[2 * channels] * (layers - 1), channels]
    modules = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        modules += [nn.Linear(inputs, outputs), nn.GELU()]
    return nn.Sequential(*modules[:-1])
