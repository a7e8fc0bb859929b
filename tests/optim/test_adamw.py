"""``d2v_adamw``: fairseq's adam in one fused pass, with its parameter groups."""

import copy
import sys
import types

import pytest
import torch
from fairseq.optim import build_optimizer
from fairseq.optim.composite import FairseqCompositeOptimizer
from omegaconf import OmegaConf

import d2v_plugin.optim.adamw
from d2v_plugin.optim.adamw import D2vAdamW, parse_betas


def config(name="d2v_adamw", **more):
    root = {"common": {"tpu": False, "fp16": False, "bf16": False, "memory_efficient_fp16": False}}
    root["optimization"] = {"lr": [0.01]}
    root["optimizer"] = {"_name": name, "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-6, "weight_decay": 0.1}
    own = {"use_apex": False, "weight_decay_overrides": True} if name == "d2v_adamw" else {}
    root["optimizer"] |= {**own, **more}
    return OmegaConf.create(root).optimizer


@pytest.fixture
def composite(monkeypatch):
    """Builds fairseq's composite optimiser of ``{group: settings}``; it keeps its parts in the class."""
    for name in ("optimizers", "lr_schedulers"):
        monkeypatch.setattr(FairseqCompositeOptimizer, name, {})

    def build(groups, params, dynamic=False):
        root = {"common": {"tpu": False}, "optimizer": {"groups": groups, "dynamic_groups": dynamic}}
        return FairseqCompositeOptimizer(OmegaConf.create(root).optimizer, params)

    return build


def group(rate, name="d2v_adamw"):
    """One group's settings."""
    scheduler = {"_name": "fixed", "force_anneal": None, "lr_shrink": 0.1, "warmup_updates": 0, "lr": [rate]}
    optimizer = OmegaConf.to_container(config(name, lr=[rate]), resolve=True)
    return {"optimizer": {"tpu": False, **optimizer}, "lr_scheduler": scheduler}


def parameters(n=3):
    return [torch.nn.Parameter(torch.randn(4, n)) for n in range(1, n + 1)]


def steps(optimizer, params, n=20):
    generator = torch.Generator().manual_seed(5)
    for _ in range(n):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_updates_are_those_of_fairseqs_adam():
    ours = parameters()
    theirs = copy.deepcopy(ours)
    steps(build_optimizer(config(), ours), ours)
    steps(build_optimizer(config("adam"), theirs), theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_takes_torchs_fused_kernel():
    optimizer = build_optimizer(config(), parameters())
    assert isinstance(optimizer.optimizer, torch.optim.AdamW)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_groups_keep_their_own_settings():
    a, b = parameters(2)
    optimizer = D2vAdamW(config(lr=[0.01]), [{"params": [a], "weight_decay": 0.0}, {"params": [b]}])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]
    start = a.detach().clone(), b.detach().clone()
    a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
    optimizer.step()
    assert torch.equal(a, start[0])
    torch.testing.assert_close(b, start[1] * (1 - 0.01 * 0.1))


def asking(scales):
    """Parameters of which some ask for a share of the common weight decay, as data2vec 2.0's biases do."""
    params = parameters(len(scales))
    for p, scale in zip(params, scales, strict=True):
        if scale is not None:
            p.optim_overrides = {"optimizer": {"weight_decay_scale": scale}}
    return params


def decays(optimizer):
    """{id of a parameter: its weight decay}."""
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_parameters_that_ask_for_no_decay_get_none():
    params = asking([0, None, 0.5, 0])
    optimizer = build_optimizer(config(), params)
    assert decays(optimizer) == dict(zip(map(id, params), [0.0, 0.1, 0.05, 0.0], strict=True))
    start = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, before, decay in zip(params, start, [0.0, 0.1, 0.05, 0.0], strict=True):
        torch.testing.assert_close(p, before * (1 - 0.01 * decay))


def test_decay_for_all_when_told_so_and_one_group_when_none_asks():
    params = asking([0, None])
    assert set(decays(build_optimizer(config(weight_decay_overrides=False), params)).values()) == {0.1}
    assert len(list(build_optimizer(config(), asking([None, 1])).param_groups)) == 1


def test_a_new_rate_of_decay_on_resuming_spares_the_undecayed():
    params = asking([0, None, 0.5])
    optimizer = build_optimizer(config(), params)
    steps(optimizer, params, 2)
    again = build_optimizer(config(), params)
    again.load_state_dict(optimizer.state_dict(), {"weight_decay": 0.2})
    assert decays(again) == dict(zip(map(id, params), [0.0, 0.2, 0.1], strict=True))
    again.load_state_dict(optimizer.state_dict(), {"lr": 0.5})
    assert decays(again) == decays(optimizer)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", ["d2v_adamw", "adam"])
def test_decay_inside_fairseqs_composite_optimizer(composite, name, dynamic):
    """fairseq's composite never applies the scales: with its own adam everything decays, with ours it does not."""
    params = asking([None, 0, 0])
    optimizer = composite({"default": {**group(0.01, name), "lr_float": 0.02}}, params, dynamic)
    undecayed = 0.0 if name == "d2v_adamw" else 0.1
    assert decays(optimizer) == dict(zip(map(id, params), [0.1, undecayed, undecayed], strict=True))
    assert {group["lr"] for group in optimizer.param_groups} == {0.02}


def test_fairseqs_composite_optimizer_scales_rates_by_group(composite):
    params = parameters(3)
    for p in params[:2]:
        p.param_group = "body"
    params[2].param_group = "head"
    optimizer = composite({"body": group(0.01), "head": group(0.04)}, params)
    assert {name: type(o) for name, o in optimizer.optimizers.items()} == {"body": D2vAdamW, "head": D2vAdamW}
    assert {name: o.param_groups[0]["lr"] for name, o in optimizer.optimizers.items()} == {"body": 0.01, "head": 0.04}


def test_state_round_trip_continues_exactly():
    params = parameters()
    optimizer = build_optimizer(config(), params)
    steps(optimizer, params, 5)
    saved, twin = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(params)
    again = build_optimizer(config(), twin)
    again.load_state_dict(saved)
    steps(optimizer, params, 5)
    steps(again, twin, 5)
    assert all(torch.equal(a, b) for a, b in zip(params, twin, strict=True))


@pytest.mark.parametrize(
    "value", ["(0.9, 0.98)", "[0.9,0.98]", (0.9, 0.98), [0.9, 0.98], OmegaConf.create([0.9, 0.98])]
)
def test_betas_are_read(value):
    assert parse_betas(value) == (0.9, 0.98)


@pytest.mark.parametrize(
    "value", ["0.9", "(0.9,)", "(0.9, 1.0)", "__import__('os').getcwd()", None, "(0.9, -0.1)", [1]]
)
def test_other_betas_are_refused(value):
    with pytest.raises(ValueError, match="adam_betas must be two numbers in"):
        parse_betas(value)


def test_apex_where_it_is_installed_and_asked_for(monkeypatch):
    seen = {}

    def fused_adam(params, **kwargs):
        seen.update(kwargs)
        return torch.optim.AdamW(params, lr=kwargs["lr"])

    apex = types.ModuleType("apex")
    apex.optimizers = types.ModuleType("apex.optimizers")
    apex.optimizers.FusedAdam = fused_adam
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.optimizers", apex.optimizers)
    build_optimizer(config(use_apex=True), parameters())
    assert seen == {"adam_w_mode": True, "lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


def test_apex_asked_for_and_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.setitem(sys.modules, "apex.optimizers", None)
    with pytest.raises(ValueError, match="use_apex needs NVIDIA apex.*set use_apex to false"):
        d2v_plugin.optim.adamw.D2vAdamW(config(use_apex=True), parameters())


# -- rates by layer ------------------------------------------------------------------------------

RATES = [0.25, None, 0.5, 1, 0.25]


def asking_for_rates():
    """Parameters of which some ask for a share of the rate, and one of these for no decay."""
    params = parameters(len(RATES))
    for p, scale in zip(params, RATES, strict=True):
        p.optim_overrides = {"optimizer": {} if scale is None else {"lr_scale": scale}}
    params[-1].optim_overrides["optimizer"]["weight_decay_scale"] = 0
    return params


def rates(optimizer):
    """{id of a parameter: its learning rate}."""
    return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}


def at(params, lr):
    return dict(zip(map(id, params), [lr * (scale or 1) for scale in RATES], strict=True))


def test_rates_that_parameters_ask_for_follow_the_schedule():
    params = asking_for_rates()
    optimizer = build_optimizer(config(), params)
    assert rates(optimizer) == at(params, 0.01) and optimizer.get_lr() == 0.01
    optimizer.set_lr(0.4)
    assert rates(optimizer) == at(params, 0.4) and optimizer.get_lr() == 0.4
    assert list(decays(optimizer).values()).count(0.0) == 1
    start = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p, before, scale, decay in zip(params, start, RATES, [0.1, 0.1, 0.1, 0.1, 0], strict=True):
        rate = 0.4 * (scale or 1)
        torch.testing.assert_close(p, before * (1 - rate * decay) - rate, rtol=1e-4, atol=1e-5)


def test_rates_survive_resuming_and_a_new_rate():
    params = asking_for_rates()
    optimizer = build_optimizer(config(), params)
    steps(optimizer, params, 2)
    again = build_optimizer(config(), params)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()), {"lr": 0.2})
    assert rates(again) == at(params, 0.2) and again.get_lr() == 0.2
    again.set_lr(0.1)
    assert rates(again) == at(params, 0.1)


def test_a_rate_of_zero_freezes_a_parameter():
    params = parameters(2)
    params[0].optim_overrides = {"optimizer": {"lr_scale": 0}}
    optimizer = build_optimizer(config(), params)
    optimizer.set_lr(0.3)
    assert rates(optimizer) == {id(params[0]): 0.0, id(params[1]): 0.3} and optimizer.get_lr() == 0.3


@pytest.mark.parametrize("name", ["d2v_adamw", "adam"])
def test_composite_scales_rates_once_and_its_schedules_keep_them_apart(composite, name):
    params = asking_for_rates()
    settings = {**group(0.01, name), "lr_float": 0.02}
    settings["lr_scheduler"] = {
        "_name": "cosine",
        "warmup_updates": 4,
        "warmup_init_lr": -1,
        "min_lr": 0.0,
        "t_mult": 1,
        "lr_period_updates": 20,
        "lr_shrink": 0.1,
        "max_update": 24,
    }
    optimizer = composite({"default": settings}, params, dynamic=True)
    optimizer.lr_scheduler.step_update(4)
    # with parameters that ask for the same in one optimiser
    assert len(optimizer.optimizers) == 5 and rates(optimizer) == pytest.approx(at(params, 0.02))
    # fairseq's forgets the decay
    assert list(decays(optimizer).values()).count(0.0) == (name == "d2v_adamw")
