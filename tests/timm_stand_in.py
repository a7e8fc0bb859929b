"""What upstream's models ask of timm, which nothing else here needs: the documented behaviour of a few small parts."""

import types

import torch
import torch.nn as nn
import torch.nn.functional as F


class DropPath(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.p = p

    def forward(self, x):
        assert self.p == 0 or not self.training, "parity is compared without noise"
        return x


class Mlp(nn.Module):
    def __init__(self, in_features, hidden_features, act_layer=nn.GELU, drop=0.0):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class PatchEmbed(nn.Module):
    def __init__(self, img_size, patch_size, in_chans, embed_dim):
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim, num_heads=8, qkv_bias=False, qk_scale=None, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        assert qk_scale is None
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    def __init__(
        self, dim, num_heads, mlp_ratio=4.0, qkv_bias=False, qk_scale=None, norm_layer=nn.LayerNorm, drop_path=0.0
    ):
        super().__init__()
        self.norm1, self.attn = norm_layer(dim), Attention(dim, num_heads, qkv_bias)
        self.norm2, self.mlp = norm_layer(dim), Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Mixup:
    """Mixup and cutmix of a batch; what would be drawn is told: ``share`` of the own image, and the ``box`` to cut."""

    def __init__(
        self,
        mixup_alpha,
        cutmix_alpha,
        cutmix_minmax=None,
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=0.1,
        num_classes=1000,
    ):
        assert mode == "batch" and cutmix_minmax is None
        self.settings = mixup_alpha, cutmix_alpha, prob, switch_prob
        self.label_smoothing, self.num_classes = label_smoothing, num_classes
        self.share, self.box = 1.0, None

    def __call__(self, x, target):
        assert len(x) % 2 == 0, "timm takes even batches only"
        if self.box is None:
            x = x * self.share + x.flip(0) * (1 - self.share)
        else:
            top, left, height, width = self.box
            mixed = x.clone()
            cut = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
            mixed[cut] = x.flip(0)[cut]
            x = mixed
        off = self.label_smoothing / self.num_classes
        on = 1 - self.label_smoothing + off
        own, other = (
            torch.full((len(x), self.num_classes), off).scatter(1, labels[:, None], on)
            for labels in (target, target.flip(0))
        )
        return x, own * self.share + other * (1 - self.share)


def modules():
    """``sys.modules`` entries under timm's names."""
    layers = types.ModuleType("timm.models.layers")
    layers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
    transformer = types.ModuleType("timm.models.vision_transformer")
    for part in (DropPath, Mlp, PatchEmbed, Attention, Block):
        setattr(transformer, part.__name__, part)
    models, timm, data = (types.ModuleType(name) for name in ("timm.models", "timm", "timm.data"))
    models.layers, models.vision_transformer, timm.models, timm.data = layers, transformer, models, data
    data.Mixup = Mixup
    return {module.__name__: module for module in (timm, models, layers, transformer, data)}
