"""A short training run with the kernels against the same run with their eager twins."""

import torch
from d2v_kernels import masked_smooth_l1, reference, topk_instance_norm_mean
from torch import nn

B, T, C, K, STEPS = 2, 20, 24, 2, 8


def train(device, fused):
    """A linear student learns targets of an EMA teacher of itself; losses of each step and the teacher's weights."""
    torch.manual_seed(3)
    student = nn.Sequential(nn.Linear(C, C), nn.Tanh(), nn.Linear(C, C)).to(device)
    teacher = [p.detach().clone() for p in student.parameters()]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        x = torch.randn(B, T, C).to(device)
        rows = torch.randperm(B * T)[:25].to(device)
        with torch.no_grad():
            hidden = torch.tanh(x @ teacher[0].t() + teacher[1])
            layers = [hidden, hidden @ teacher[2].t() + teacher[3]]
        pred = student(x.view(-1, C)[rows])
        if fused:
            targets = topk_instance_norm_mean(layers, final_norm="layer", rows=rows)
            loss = masked_smooth_l1(pred, targets, beta=0.5, scale=0.01).loss
        else:
            targets = reference.topk_instance_norm_mean(layers, final_norm="layer", rows=rows)
            loss = reference.masked_smooth_l1(pred, targets, beta=0.5, scale=0.01)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(teacher, [p.detach() for p in student.parameters()], 0.01)
        losses.append(loss.detach())
    return torch.stack(losses), torch.cat([p.flatten() for p in teacher])


def test_losses_and_ema_weights_agree(device):
    fused, eager = train(device, True), train(device, False)
    assert eager[0][-1] < eager[0][0]
    for a, b in zip(fused, eager, strict=True):
        assert ((a - b).norm() / b.norm()) < 1e-5
