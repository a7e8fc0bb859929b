"""data2vec 1.0 for images, registered as ``data2vec_vision`` with upstream's fields, signature and state-dict keys."""

import torch
import torch.nn as nn
from fairseq.models import BaseFairseqModel, register_model

from d2v_plugin.errors import UserError
from d2v_plugin.method.collapse import CollapseWatch
from d2v_plugin.method.distillation import SelfDistillation
from d2v_plugin.method.ema import EMATeacher
from d2v_plugin.method.masking import MaskSource
from d2v_plugin.method.regression import loss_scale, over_all_ranks, regression_loss
from d2v_plugin.method.targets import TargetRecipe
from d2v_plugin.models.data2vec_vision_config import Data2VecVisionConfig, masks_of, validate
from d2v_plugin.modules.beit import BeitEncoder
from d2v_plugin.modules.patches import BeitPatchEmbed


@register_model("data2vec_vision", dataclass=Data2VecVisionConfig)
class Data2VecVisionModel(SelfDistillation, BaseFairseqModel):
    """The student, and around it the EMA teacher made by the first ``set_num_updates``.

    ``masks`` are the settings of its masks, by which the task's data workers draw them.
    """

    model_name = "data2vec_vision"

    def __init__(self, cfg):
        super().__init__()
        validate(cfg)
        self.cfg = cfg
        # The order of modules is that of upstream: optimiser state in a checkpoint goes by position.
        self.patch_embed = BeitPatchEmbed(cfg.image_size, cfg.patch_size, cfg.in_channels, cfg.embed_dim)
        # BEiT's standard deviation; upstream passes it as the mean, and so starts both from N(0.02, 1)
        self.cls_emb = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, cfg.embed_dim), std=0.02))
        self.mask_emb = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, cfg.embed_dim), std=0.02))
        self.encoder = BeitEncoder(
            cfg.embed_dim,
            cfg.num_heads,
            cfg.mlp_ratio,
            cfg.depth,
            self.patch_embed.side,
            shared_bias=cfg.shared_rel_pos_bias,
            layer_scale=cfg.layer_scale_init_value,
            drop_path=cfg.drop_path,
            dropout=cfg.attention_dropout,
        )
        self.final_proj = nn.Linear(cfg.embed_dim, cfg.embed_dim)
        for name, parameter in self.named_parameters():
            # as in BEiT's optimiser; d2v_adamw reads it
            if parameter.dim() == 1 or name == "cls_emb":
                parameter.optim_overrides = {"optimizer": {"weight_decay_scale": 0}}

        self.masks = masks_of(cfg)
        self.mask_source = MaskSource(None)  # by sample they are drawn in the data workers, where numbers are at hand
        self.target_recipe = TargetRecipe.from_config(cfg)
        self.watch = CollapseWatch(cfg.min_target_var, cfg.min_pred_var, cfg.collapse_guard_updates, cfg.watch_interval)

    @classmethod
    def build_model(cls, cfg, task=None):
        return cls(cfg)

    # -- teacher ---------------------------------------------------------------------------------

    @property
    def _trailed(self):
        """The part of the student that the teacher copies."""
        return self.encoder if self.cfg.ema_transformer_only else self

    @property
    def _pretraining(self):
        return self.final_proj is not None

    def make_teacher(self):
        return EMATeacher(self._trailed)

    def remove_pretraining_modules(self, last_layer=None):
        """Keep what fine-tuning needs, without the last norm, as upstream.

        Args:
            last_layer: keep blocks up to that one (0-based, included); upstream's own code fails there.
        """
        self.final_proj = self.mask_emb = self.ema = None
        self.encoder.norm = nn.Identity()
        if last_layer is not None:
            self.encoder.blocks = self.encoder.blocks[: last_layer + 1]

    # -- forward ---------------------------------------------------------------------------------

    def forward(self, img, mask=True, layer_results=False, mask_indices=None, masked_rows=None):
        """Pre-training step, or features.

        Args:
            img: (B, in_channels, image_size, image_size).
            mask: draw (or take) masks; without, features are returned.
            layer_results: return the result of every block instead: outputs, or feed-forward branches where
                ``end_of_block_targets`` is off.
            mask_indices: (B, L) bool or (B, side, side), True = masked, from the loader; drawn on the host when None.
            masked_rows: (N,) int64, flat indices ``b * L + l`` of the masked patches; spares reading ``mask_indices``.
        Returns:
            Features (B, L, C) without the class token, or a list of (B, L, C). In pre-training a dict of ``losses``,
            ``sample_size`` (masked patches), ``masked_pct`` (their share), ``target_var``, ``pred_var``, ``ema_decay``
            (times 1000), and ``logs`` when the collapse watch looked.
        """
        patches = self.patch_embed(img)
        x, rows = patches, None
        if mask:
            mask_indices, rows = self._masked(patches, mask_indices, masked_rows)
            x = torch.where(mask_indices.unsqueeze(-1), self.mask_emb.to(x.dtype), x)
        x = self._behind_class_token(x)
        if layer_results:
            return self.encoder(x, self._results)
        if rows is None:
            return self.encoder(x)
        if self.ema is None:
            raise UserError("this model has no teacher (fine-tuned, or never told its update); call it with mask=False")
        x = self.encoder.extract_features(x)
        layers = self._teacher_layers(img, patches)
        # masked patches in a sequence with a class token before each image's L patches
        pred = x.flatten(0, 1).index_select(0, rows + rows // patches.shape[1] + 1)
        result, regression = self._regress(pred, self.target_recipe(layers, rows))
        result["masked_pct"] = len(rows) / mask_indices.numel()
        if self.training and self.watch.due(self.num_updates):
            finite, target_std, pred_std = over_all_ranks(regression)
            self.watch.check(self.num_updates, finite, target_var=target_std, pred_var=pred_std)
            result["logs"] = self.watch.measure(feature=patches, student=x, teacher=layers[-1])
        return result

    @property
    def _results(self):
        return "end" if self.cfg.end_of_block_targets else "fc"

    def _masked(self, patches, mask_indices, masked_rows):
        """``(mask_indices, rows)`` on the device of ``patches``; nothing is read from there unless a mask is given."""
        B, L, _ = patches.shape
        if self.mask_emb is None:
            raise UserError("this model was made for fine-tuning and has no mask embedding; call it with mask=False")
        if mask_indices is None:
            mask_indices = self.masks.draw(self.mask_source.draws(None, B, self.num_updates, "cpu"))
            masked_rows = None
        mask_indices = torch.as_tensor(mask_indices).flatten(1).bool()
        if mask_indices.shape != (B, L):
            raise UserError(f"mask_indices must be ({B}, {L}), images by patches, got {tuple(mask_indices.shape)}")
        if masked_rows is None:
            masked_rows = mask_indices.flatten().nonzero().squeeze(1)
        return tuple(each.to(patches.device, non_blocking=True) for each in (mask_indices, masked_rows))

    def _behind_class_token(self, x):
        """(B, L, C) -> (B, 1 + L, C)."""
        return torch.cat([self.cls_emb.to(x.dtype).expand(len(x), -1, -1), x], dim=1)

    @torch.no_grad()
    def _teacher_layers(self, img, patches):
        """The K top layers of the teacher on the whole image, (B, L, C) each."""
        if self.cfg.ema_transformer_only:
            encoder, x = self.ema.model, self._behind_class_token(patches)
        else:
            teacher = self.ema.model
            encoder, x = teacher.encoder, teacher._behind_class_token(teacher.patch_embed(img))
        return encoder(x, self._results, first_result=self.cfg.depth - self.cfg.average_top_k_layers)

    def _regress(self, pred, targets):
        scale = loss_scale(self.cfg.loss_scale, pred.shape[-1])
        if self.cfg.project_predictions:
            pred = self.final_proj(pred)
        regression = regression_loss(pred, targets, beta=self.cfg.loss_beta, scale=scale if scale > 0 else 1.0)
        loss = regression.loss
        if not self.cfg.project_predictions and torch.distributed.is_available() and torch.distributed.is_initialized():
            # DDP waits for a gradient of every parameter
            loss = loss + 0 * sum(p.sum() for p in self.final_proj.parameters())
        result = {
            "losses": {"regression": loss},
            "sample_size": pred.shape[0],
            "target_var": regression.target_std,
            "pred_var": regression.pred_std,
            "ema_decay": self.ema.decay * 1000,
        }
        return result, regression

    def extract_features(self, img, layer_results=False):
        """The student's features of the whole image: ``forward`` without a mask."""
        return self.forward(img, mask=False, layer_results=layer_results)
