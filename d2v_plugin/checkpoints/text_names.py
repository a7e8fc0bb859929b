"""Names of the weights of 1.0 text in files of other versions, brought to those of today. RoBERTa's go the same way."""

import re

# below a transformer block
LAYER_NORMS = {"layer_norms.0.": "self_attn_layer_norm.", "layer_norms.1.": "final_layer_norm."}
JOINT_PROJECTION = re.compile(r"(.*\.self_attn\.)in_proj_(weight|bias)")


def rename_text_weights(state, prefix):
    """Rename in place; a teacher that was stored as a network of its own is left out.

    Args:
        state: weights by name.
        prefix: of the model's names, "" or with a dot at the end.
    """
    for name in list(state):
        renamed = name
        if name.startswith(prefix + "decoder"):
            renamed = prefix + "encoder" + name.removeprefix(prefix + "decoder")
        renamed = renamed.replace(".emb_layer_norm.", ".layernorm_embedding.")
        for old, new in LAYER_NORMS.items():
            renamed = renamed.replace(f".{old}", f".{new}")
        if renamed != name:
            state[renamed] = state.pop(name)
        if renamed.startswith(prefix + "encoder.target_model."):
            del state[renamed]
        elif joint := JOINT_PROJECTION.fullmatch(renamed):
            for part, value in zip("qkv", state.pop(renamed).chunk(3), strict=True):
                state[f"{joint[1]}{part}_proj.{joint[2]}"] = value


def fit_regression_head(state, prefix, head, own_where_missing):
    """Rename or leave out what a file has in the place of the regression head.

    Args:
        state, prefix: see above.
        head: the model's own weights of that head by name, or None for a model without it.
        own_where_missing: keep the model's own weights where the file has none.
    Returns:
        Whether the head of a language model, which predicts tokens, was left out.
    """
    old, new = prefix + "encoder.lm_head.", prefix + "encoder.regression_head."
    language = old + "dense.weight" in state
    for name in list(state):
        if name.startswith(old):
            value = state.pop(name)
            if not language:
                state[new + name.removeprefix(old)] = value
    found = [name for name in state if name.startswith(new)]
    if head is None:
        for name in found:
            del state[name]
    elif not found and (language or own_where_missing):
        state.update({new + name: value for name, value in head.items()})
    return language
