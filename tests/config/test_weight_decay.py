"""Which parameters decay under each data2vec 2.0 recipe: all but 1-D parameters, biases and ALiBi scales."""

import pytest
from fairseq import optim, tasks
from fairseq.optim.composite import FairseqCompositeOptimizer
from omegaconf import OmegaConf
from tiny_training import ROOT, modality, resolved, scaled_down, write_data

EXAMPLES = ROOT / "examples"
RECIPES = {path: OmegaConf.load(path).get("model", {}) for path in sorted(EXAMPLES.rglob("*_v2*.yaml"))}
MULTI = [path for path, model in RECIPES.items() if model.get("_name") == "data2vec_multi"]
FILES = MULTI + [EXAMPLES / "vision" / "mae_base_imagenet.yaml"]


def decays(path, tmp_path, monkeypatch):
    """``{name of a parameter: (shape, weight decay)}`` of the optimiser that the recipe builds for its model."""
    for name in ("optimizers", "lr_schedulers"):
        monkeypatch.setattr(FairseqCompositeOptimizer, name, {})
    cfg = scaled_down(path, tmp_path, tmp_path / "run")
    write_data(tmp_path, modality(cfg))
    cfg = resolved(cfg)
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    optimizer = optim.build_optimizer(cfg.optimizer, list(model.parameters()))
    found = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: (p.shape, found[id(p)]) for name, p in model.named_parameters() if p.requires_grad}, cfg


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_vectors_and_biases_do_not_decay(path, tmp_path, monkeypatch):
    found, cfg = decays(path, tmp_path, monkeypatch)
    optimizer = cfg.optimizer
    if "groups" in optimizer:
        optimizer = next(iter(optimizer.groups.values())).optimizer
    spares = optimizer.get("weight_decay_overrides", True)
    assert spares is (path.stem != "base_librispeech_v2")
    common = optimizer.weight_decay
    assert common > 0
    undecayed = {name for name, (_, decay) in found.items() if decay == 0}
    if not spares:
        assert undecayed == set()
    else:
        expected = {
            name
            for name, (shape, _) in found.items()
            if len(shape) == 1 or name.endswith(".bias") or "alibi_scale" in name
        }
        assert undecayed == expected
        assert {decay for name, (_, decay) in found.items() if name not in undecayed} == {common}
        assert 0 < len(undecayed) < len(found)
