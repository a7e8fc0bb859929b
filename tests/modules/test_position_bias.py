"""ALiBi from positions: equal to upstream's table, for gathered positions, learned, and never held as a whole."""

import pytest
import torch
import torch.nn.functional as F
import upstream
from tiny_multi import batch, tiny

from d2v_plugin.errors import UserError
from d2v_plugin.modules import attention
from d2v_plugin.modules.attention import attend
from d2v_plugin.modules.position_bias import PositionBias, alibi_slopes, grid_coordinates


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16, 20])
@pytest.mark.parametrize(("dims", "distance"), [(1, "manhattan"), (2, "manhattan"), (2, "euclidean")])
def test_equals_upstream_s_table(heads, dims, distance):
    table = upstream.load_v2("models.modalities.base").get_alibi(25, heads, dims, distance)
    bias = PositionBias(torch.arange(25)[None], grid_coordinates(25, dims), alibi_slopes(heads), distance)
    torch.testing.assert_close(bias.dense()[0], table.float(), atol=1e-5, rtol=1e-5)


def test_gathered_positions_keep_their_distances_and_extra_tokens_have_none():
    positions = torch.tensor([[-1, 0, 7, 3], [-1, 5, 6, 24]])
    whole = PositionBias(torch.arange(25)[None], grid_coordinates(25, 2), alibi_slopes(4))
    bias = PositionBias(positions, grid_coordinates(25, 2), alibi_slopes(4)).dense()
    assert bias.shape == (2, 4, 4, 4)
    assert bias[:, :, 0].eq(0).all() and bias[:, :, :, 0].eq(0).all()
    for row in range(2):
        kept = positions[row, 1:]
        assert torch.equal(bias[row, :, 1:, 1:], whole.dense()[0][:, kept][:, :, kept])


def test_a_learned_table_is_read_by_position_and_learns():
    table = torch.randn(2, 6, 6, requires_grad=True)
    bias = PositionBias(torch.tensor([[4, 1], [9, 5]]), table=table).dense()
    assert torch.equal(bias[0], table[:, [4, 1]][:, :, [4, 1]])
    # position 9 lies past the table, whose edge stands in for it
    assert torch.equal(bias[1], table[:, [5, 5]][:, :, [5, 5]])
    bias[0].sum().backward()
    assert float(table.grad.sum()) == 8 and table.grad[:, 0].eq(0).all()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("elements", [1, 500, 10**6])
def test_attention_a_few_rows_at_a_time_equals_the_whole(monkeypatch, elements, padded):
    monkeypatch.setattr(attention, "BIAS_ELEMENTS", elements)
    R, H, T, D = 5, 3, 9, 4
    q, k, v = (torch.randn(R, H, T, D, dtype=torch.float64, requires_grad=True) for _ in range(3))
    positions = torch.rand(R, 16).argsort(1)[:, :T]
    scale = torch.rand(1, H, 1, 1, dtype=torch.float64, requires_grad=True)
    bias = PositionBias(positions, grid_coordinates(16, 1), alibi_slopes(H), scale=scale)
    padding_mask = torch.zeros(R, T, dtype=torch.bool)
    padding_mask[1, 5:] = padding_mask[4, 2:] = True
    leaves, upward = (q, k, v, scale), torch.randn(R, H, T, D, dtype=torch.float64)

    whole = bias.dense()
    if padded:
        whole = whole.masked_fill(padding_mask[:, None, None], float("-inf"))
    expected = F.softmax(q @ k.transpose(-1, -2) / D**0.5 + whole, -1) @ v
    grads = torch.autograd.grad(expected, leaves, upward)
    out = attend(q, k, v, bias=bias, padding_mask=padding_mask if padded else None)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out, leaves, upward), grads)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, bias=bias, padding_mask=padding_mask if padded else None), expected)


def test_dropout_is_the_same_in_the_second_computation():
    """The backward pass computes the rows again; with another draw of dropout it would be another function's."""
    q, k, v = (torch.randn(4, 2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = PositionBias(torch.rand(4, 9).argsort(1)[:, :6], grid_coordinates(9, 1), alibi_slopes(2))

    def run(v):
        torch.manual_seed(3)
        return attend(q, k, v, bias=bias, dropout=0.5)

    # linear in v for one draw of dropout: its gradient is exact for any step
    (grad,) = torch.autograd.grad(run(v).sum(), v)
    step = torch.randn_like(v)
    torch.testing.assert_close((run(v + step) - run(v)).sum(), (grad * step).sum())


@pytest.mark.parametrize("modality", ["AUDIO", "IMAGE"])
def test_a_training_step_never_holds_a_bias_of_every_clone(monkeypatch, modality):
    """Neither while it is made nor for the backward pass: looked at every tensor that autograd keeps."""
    clones, heads = 6, 4
    settings = {"use_alibi_encoder": True, "learned_alibi_scale": True, "learned_alibi_scale_per_head": True}
    model = tiny(modality, settings, clone_batch=clones, ema_encoder_only=False)
    source, _ = batch(modality)
    rows = clones * len(source)
    made, kept = [], []
    dense = PositionBias.dense
    monkeypatch.setattr(PositionBias, "dense", lambda self: made.append(dense(self)) or made[-1])

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    T = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: T.append(args[0].shape[1]))
    monkeypatch.setattr(attention, "BIAS_ELEMENTS", 2000)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sum(model(source)["losses"].values())
    square = (T[0], T[0])
    student = [bias for bias in made if bias.shape[-2:] == square]
    assert len(student) >= 4 * rows * heads * T[0] ** 2 / 2000 / 2  # 4 blocks, in parts
    assert all(bias.numel() <= max(2000, heads * T[0] ** 2) for bias in student)
    assert not [shape for shape in kept if shape[-2:] == square]
    loss.backward()
    grad = model.modality_encoders[modality].alibi_scale.grad
    assert grad.shape == (1, 1, heads, 1, 1) and grad.abs().min() > 0


def test_two_dimensions_need_a_square():
    with pytest.raises(UserError, match="needs a square of patches, got 20"):
        grid_coordinates(20, 2)
    with pytest.raises(UserError, match="alibi_dims must be 1 or 2"):
        grid_coordinates(20, 3)


@pytest.mark.parametrize("modality", ["AUDIO", "IMAGE", "TEXT"])
def test_a_learned_bias_trains(modality):
    model = tiny(modality, {"use_alibi_encoder": True, "learned_alibi": True, "alibi_max_pos": 36})
    encoder = model.modality_encoders[modality]
    assert encoder.alibi_bias.shape == (1, 4, 36, 36)
    expected = PositionBias(
        torch.arange(36)[None], grid_coordinates(36, encoder.alibi_dims), alibi_slopes(4), "manhattan"
    ).dense()
    assert torch.equal(encoder.alibi_bias.detach(), expected)
    sum(model(batch(modality)[0])["losses"].values()).backward()
    assert encoder.alibi_bias.grad.abs().sum() > 0
