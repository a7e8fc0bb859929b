"""Initial weights."""

import torch.nn as nn


def bert_init(module):
    """For ``Module.apply``: linear weights and embeddings from N(0, 0.02), biases 0, padding's embedding 0; as BERT."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])


def xavier_init(module):
    """For ``Module.apply``: linear weights Xavier-uniform, biases 0; as MAE."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def beit_init(module):
    """For ``Module.apply``: weights of linear layers and convolutions from N(0, 0.02), biases 0; as BEiT."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
