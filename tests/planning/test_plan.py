"""``d2v plan``: units of a batch, memory, dividing among GPUs, hours, what is printed and what is written."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_training import ROOT, resolved, scaled_down

from d2v_plugin.cli.main import main
from d2v_plugin.errors import UserError
from d2v_plugin.planning import plan
from d2v_plugin.planning.batch import Split, divide, overrides, rates
from d2v_plugin.planning.hours import Rate, describe, from_log, hours, measured
from d2v_plugin.planning.memory import Memory, count, fixed_bytes
from d2v_plugin.planning.recipe import Recipe, find, read

EXAMPLES = ROOT / "examples"
RATES = {"optimizer.groups.a.lr_float": 1e-3, "optimizer.groups.b.lr_float": 1e-4}
TINY = {"model.depth": 2, "model.embed_dim": 64, "model.num_heads": 4, "model.average_top_k_layers": 2}


def recipe(kind="image", micro=16, gpus=16, passes=1, field="dataset.batch_size", row_size=1, multiple=1):
    dataset = {"required_batch_size_multiple": multiple}
    cfg = OmegaConf.create({"task": {"sample_rate": 16_000, "input_size": 224}, "dataset": dataset})
    lr = {"optimization.lr": 1e-3}
    return Recipe("x", EXAMPLES / "x.yaml", cfg, kind, field, micro, gpus, passes, lr, 1000, row_size, True)


def by_tokens(**how):
    return recipe("audio", **{"field": "dataset.max_tokens", "row_size": 320_000, **how})


@pytest.mark.parametrize(
    ("name", "units", "text"),
    [
        ("base_librispeech", 3800.0, "3,800 s of audio (190 crops of 20 s)"),
        ("base_librispeech_v2", 500.0, "500 s of audio (25 crops of 20 s)"),
        ("base_imagenet_v2", 256, "256 images"),
        ("base_books_wiki_v2", 32_768, "32,768 tokens (64 blocks of 512)"),
        ("ctc_base_10h", 1600.0, "1,600 s of audio (45.45 crops of 35.2 s)"),
    ],
)
def test_batches_of_recipes_are_those_of_their_headers(name, units, text):
    found = read(find(name, [EXAMPLES]))
    assert found.in_units(found.batch) == units and found.describe(found.batch) == text


def test_rates_of_groups_are_those_that_count():
    assert read(find("large_books_wiki_v2_pgrp_1m", [EXAMPLES])).rates == {
        "optimizer.groups.default.lr_float": 1e-4,
        "optimizer.groups.decoder.lr_float": 1e-4,
    }
    assert read(find("base_imagenet_v2", [EXAMPLES])).rates == {"optimization.lr": 1e-3}


def test_sentences_have_no_batch_to_plan():
    with pytest.raises(UserError, match="fine-tunes on sentences of any length, 16 an update.*d2v glue run"):
        read(EXAMPLES / "text" / "glue" / "cola.yaml")


@pytest.mark.parametrize(
    ("gpus", "most", "expected"),
    [
        (16, 16, Split(16, 1, 16)),
        (1, 16, Split(1, 16, 16)),
        (1, 1000, Split(1, 1, 256)),
        # 50 fit: 6 passes of 43 would be 258, 8 of 32 keep the batch
        (1, 50, Split(1, 8, 32)),
        # three do not divide 256 whatever the passes: 85.3 images each
        (3, 100, Split(3, 1, 85)),
    ],
)
def test_divides_with_the_fewest_passes_that_keep_the_batch(gpus, most, expected):
    split = divide(recipe(), gpus, most)
    assert split == expected
    assert split.keeps(recipe()) == (gpus != 3)


def test_recordings_are_divided_by_the_sample():
    found = divide(by_tokens(micro=1_000_000, gpus=8), 3, 1_500_000.7)
    assert found.update_freq == 2 and found.micro == 1_333_333 and found.keeps(by_tokens(micro=1_000_000, gpus=8))


@pytest.mark.parametrize(
    ("multiple", "gpus", "most", "expected"),
    [
        # 100 blocks fit; three passes of 85 or 86 would not be 256, four of 64 are
        (1, 1, 51_200, Split(1, 4, 32_768)),
        # 17 blocks fit: 16 passes of 16, where fairseq would make 16 of 17, too
        (8, 1, 8_704, Split(1, 16, 8_192)),
        # 85.3 blocks each; of 85 fairseq would leave 80, so the nearest that it leaves alone is 88
        (8, 3, 51_200, Split(3, 1, 45_056)),
        (1, 3, 51_200, Split(3, 1, 43_520)),
        # up to the multiple any number stays
        (8, 64, 51_200, Split(64, 1, 2_048)),
    ],
)
def test_blocks_are_divided_whole_and_in_multiples_that_fairseq_keeps(multiple, gpus, most, expected):
    """By fairseq's own division of blocks of one length into batches."""
    from fairseq.data import data_utils

    found = recipe("text", micro=8192, gpus=16, field="dataset.max_tokens", row_size=512, multiple=multiple)
    split = divide(found, gpus, most)
    assert split == expected
    lengths = np.full(4096, 512)
    batches = data_utils.batch_by_size(np.arange(4096), None, lengths, split.micro, None, multiple)
    assert {512 * len(batch) for batch in batches[:-1]} == {split.micro}
    if gpus == 1:
        assert sum(map(len, batches[: split.update_freq])) == 256


def test_a_pass_holds_a_row_at_least():
    with pytest.raises(UserError, match=r"not even one row .*20 s of audio.*task\.max_sample_size"):
        divide(by_tokens(micro=1_000_000, gpus=8), 1, 319_999)
    # more GPUs than rows: the batch grows, and says so
    split = divide(recipe(micro=1, gpus=4), 8, 10)
    assert split == Split(8, 1, 1) and split.ratio(recipe(micro=1, gpus=4)) == 2
    assert rates(recipe(micro=1, gpus=4), split) == (pytest.approx(1e-3 * 2**0.5), pytest.approx(2e-3))
    assert overrides(recipe(micro=1, gpus=4), split)["optimization.lr"] == [0.00141]
    groups = replace(recipe(micro=1, gpus=4), rates=RATES)
    found = overrides(groups, split)
    assert found["optimizer.groups.a.lr_float"] == 0.00141 and found["optimizer.groups.b.lr_float"] == 0.000141
    assert "optimization.lr" not in found


def test_overrides_are_what_changes():
    assert overrides(recipe(), Split(16, 1, 16)) == {}
    assert overrides(recipe(), Split(1, 8, 32)) == {
        "distributed_training.distributed_world_size": 1,
        "optimization.update_freq": [8],
        "dataset.batch_size": 32,
    }


def test_fixed_bytes():
    """fairseq's fp16: 2 + 2, 4 + 4 in fp32, and 8 of moments for every parameter; plain fp32: 4 + 4 + 8."""
    assert sum(fixed_bytes(10, 0, False, True, 1).values()) == 200
    assert sum(fixed_bytes(10, 0, False, False, 1).values()) == 160
    assert sum(fixed_bytes(10, 0, False, True, 2).values()) == 220
    assert fixed_bytes(10, 7, True, True, 1)["teacher"] == 42
    assert fixed_bytes(10, 7, False, True, 1)["teacher"] == 28


def small(name, **more):
    """A recipe of a network that counts in a moment."""
    words = [f"++{key}={value}" for key, value in {**TINY, **more}.items()]
    return read(find(name, [EXAMPLES]), words)


def test_fixed_bytes_are_those_of_a_trainer(tmp_path):
    """fairseq's own optimiser around the model of the recipe, in bf16 on the CPU."""
    from fairseq import models
    from fairseq.optim.fp16_optimizer import FP16Optimizer

    found = small("base_imagenet_v2")
    memory = count(found, 1)
    cfg = OmegaConf.merge(found.cfg, {"common": {"fp16": False, "bf16": True}})
    model = models.build_model(cfg.model, None).bfloat16()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = FP16Optimizer.build_optimizer(cfg, parameters)
    copies = optimizer.fp32_params if isinstance(optimizer.fp32_params, list) else list(optimizer.fp32_params.values())
    optimizer.backward(sum(parameter.float().sum() for parameter in parameters))
    optimizer.clip_grad_norm(0.0)
    optimizer.step()
    inner = optimizer.fp32_optimizer.optimizer
    moments = sum(t.nbytes for state in inner.state.values() for k, t in state.items() if k != "step")
    assert memory.parameters == sum(parameter.numel() for parameter in parameters)
    assert memory.fixed["weights"] == sum(parameter.nbytes for parameter in parameters)
    assert memory.fixed["gradients"] == sum(parameter.grad.nbytes for parameter in parameters)
    assert memory.fixed["fp32 weights and gradients"] == sum(p.nbytes + p.grad.nbytes for p in copies)
    assert memory.fixed["moments of the optimizer"] == moments
    assert memory.teacher == sum(tensor.numel() for tensor in model.ema.fp32.values())
    running = model.ema.model.state_dict().values()
    assert memory.fixed["teacher"] == sum(tensor.nbytes for tensor in [*model.ema.fp32.values(), *running])


TEXT_1_0 = {"layers": 2, "embed_dim": 128, "ffn_embed_dim": 512, "attention_heads": 4}
SMALL = {
    "base_librispeech": {"model.encoder_layers": 2, "model.average_top_k_layers": 2},
    "base_librispeech_v2": {**TINY, "task.max_sample_size": 64_000},
    "base_books_wiki_v2": {**TINY, "task.tokens_per_sample": 128},
    "base_books_wiki": {
        "model.average_top_k_layers": 2,
        "task.tokens_per_sample": 128,
        **{f"model.transformer.encoder.{key}": value for key, value in TEXT_1_0.items()},
    },
    "base_imagenet": TINY,
    "mae_base_imagenet": {"model.depth": 2, "model.embed_dim": 192, "model.num_heads": 4, "model.decoder_depth": 1},
}


@pytest.mark.parametrize("name", SMALL)
def test_every_kind_of_pre_training_is_counted(name):
    found = read(find(name, [EXAMPLES]), [f"++{key}={value}" for key, value in SMALL[name].items()])
    memory = count(found, 1, 1000)
    assert memory.parameters > 0 and memory.per_row > 1e6
    assert (memory.teacher > 0) == (name != "mae_base_imagenet")


def test_one_more_block_has_its_weights_and_what_a_row_keeps_of_it():
    two, three = (count(small("base_imagenet_v2", **{"model.depth": depth}), 1) for depth in (2, 3))
    # attention and feed-forward: 4 + 8 matrices of 64 x 64, their biases, and two norms
    assert three.parameters - two.parameters == 12 * 64 * 64 + (3 + 1 + 4 + 1) * 64 + 4 * 64
    assert three.per_row > two.per_row


def test_the_line_through_two_sizes_meets_a_third():
    from d2v_plugin.planning import memory as module

    found = small("base_imagenet_v2")
    line = count(found, 1)
    mode = module.ShapesOnly()
    with module.fused_attention(), mode:
        model = module._model(found.cfg, 1000).half().train()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        third = module._peak(mode, model, found, 12, torch.float16, 1000)
    assert line.base + 12 * line.per_row == pytest.approx(third, rel=0.02)


def test_rows_that_fit():
    memory = Memory(10, 0, {"weights": 4 * 10**9}, 0.5e9, 2e9)
    assert memory.total(3) == 10.5e9
    assert memory.most_rows(24e9) == pytest.approx((24 * 0.92 - 1 - 4 - 0.5) / 2)
    found = plan.make(recipe(), 1, 24, counter=lambda *_: memory)
    assert found.split == Split(1, 32, 8)
    with pytest.raises(UserError, match=r"does not fit into 5 GB: 6\.5 GB of tensors with a single row"):
        plan.make(recipe(), 1, 5, counter=lambda *_: memory)


def test_hours():
    assert hours(recipe(), 256, 2, Rate(64.0, "")) == pytest.approx(1000 * 256 / 128 / 3600)
    assert "2.2 for 1,000 updates at 32 images/s and GPU (as given)" in describe(
        recipe(), 256, 1, Rate(32.0, "as given")
    )
    unknown = describe(read(find("base_librispeech_v2", [EXAMPLES])), 8_000_000, 1, None)
    assert unknown.startswith("not measured yet; give --rate") and "43.3 hours on 16 GPUs" in unknown


def test_the_rate_of_a_log(tmp_path):
    cfg = scaled_down(EXAMPLES / "speech" / "base_librispeech.yaml", tmp_path, tmp_path, dataset__max_tokens=320_000)
    (tmp_path / ".hydra").mkdir()
    cfg = resolved(cfg)
    cfg.pop("hydra", None)
    OmegaConf.save(cfg, tmp_path / ".hydra" / "config.yaml")
    line = "[2026-01-02 03:04:05,678][train_inner][INFO] - "
    records = [{"num_updates": n, "ups": rate} for n, rate in ((10, "0.1"), (20, "2"), (30, "4"), (40, "2"))]
    (tmp_path / "hydra_train.log").write_text("".join(f"{line}{json.dumps(record)}\n" for record in records))
    found = from_log(tmp_path / "hydra_train.log", read(find("base_librispeech", [EXAMPLES])))
    assert found.per_gpu == 40.0 and "2 updates/s on 1 GPU" in found.source
    with pytest.raises(UserError, match="is of a run on audio and base_imagenet_v2 one on image"):
        from_log(tmp_path / "hydra_train.log", read(find("base_imagenet_v2", [EXAMPLES])))
    (tmp_path / ".hydra" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml is missing, which says the batch"):
        from_log(tmp_path / "hydra_train.log", recipe())


def test_results_that_were_measured(tmp_path):
    rows = [
        {"recipe": "x", "gpu": "Big GPU", "date": "2026-01-01", "commit": "a", "units_per_second": 1.0},
        {"recipe": "x", "gpu": "Big GPU", "date": "2026-02-01", "commit": "b", "units_per_second": 2.0},
        {"recipe": "x", "gpu": "Small GPU", "date": "2026-03-01", "commit": "c", "units_per_second": 0.5},
    ]
    (tmp_path / "training_a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert measured(recipe(), "big", tmp_path) == Rate(2.0, "measured on one Big GPU, 2026-02-01, commit b")
    assert measured(recipe(), None, tmp_path).per_gpu == 0.5
    assert measured(recipe(), "other", tmp_path) is None


def test_command(tmp_path, capsys):
    """The overrides that are printed, and the file that is written, compose to what was planned."""
    name = "base_imagenet_v2"
    folder = tmp_path / "examples"
    folder.mkdir()
    text = (EXAMPLES / "vision" / f"{name}.yaml").read_text().replace("depth: 10", "depth: 2")
    (folder / f"{name}.yaml").write_text(text.replace("average_top_k_layers: 10", "average_top_k_layers: 2"))
    config = str(folder / f"{name}.yaml")
    assert main(["plan", "--config", config, "--gpus", "2", "--memory", "8", "--rate", "100", "--write"]) == 0
    printed = capsys.readouterr().out
    assert "recipe    256 images an update: 16 GPUs x 1 x 16 images, learning rate 0.001" in printed
    assert "256 images an update, as in the recipe: 2 GPUs x " in printed
    assert "133.4 for 375,300 updates at 100 images/s and GPU (as given)" in printed
    words = next(line for line in printed.splitlines() if line.startswith("  add")).split()[1:]
    by_hand, by_file = read(folder / f"{name}.yaml", words), read(folder / f"{name}.yaml", [f"+hardware={name}_2x8gb"])
    assert by_hand.batch == by_file.batch == 256 and by_hand.gpus == by_file.gpus == 2
    assert by_hand.update_freq == by_file.update_freq and by_hand.micro == by_file.micro


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "base_libri"], "no recipe base_libri; give a YAML file, or a name"),
        (["--gpus", "0"], "--gpus must be at least 1, got 0"),
        (["--memory", "-1"], "--memory must be above 0"),
        (["--micro", "0"], "--micro must be at least 1"),
        (["--rate", "0"], "--rate must be above 0"),
        (["--rate", "1", "--log", "x"], "two ways to say the same"),
        (["--config", "ctc_base_10h"], "fine-tunes a checkpoint"),
        (["--override", "model.depht=3"], "Could not override 'model.depht'"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "--config", "base_imagenet_v2", "--gpus", "1", "--memory", "24", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("d2v: error: ") and message in error


def test_fine_tuning_is_planned_by_what_fits(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["--gpus", "1", "--memory", "24", "--micro", "1600000"]
    assert main(["plan", "--config", "ctc_base_10h", *words]) == 0
    printed = capsys.readouterr().out
    assert "add       distributed_training.distributed_world_size=1 optimization.update_freq=[16]" in printed
