"""The teacher: decay, precision, sharing and restoring."""

import sys

import pytest
import torch
import torch.nn as nn

from d2v_plugin.method.ema import EMATeacher, annealed_decay


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.shared = nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros(2))


def test_decay_is_a_function_of_the_update_alone():
    assert annealed_decay(0.9, 0.99, 0, 100) == pytest.approx(0.9)
    assert annealed_decay(0.9, 0.99, 50, 100) == pytest.approx(0.945)
    assert annealed_decay(0.9, 0.99, 100, 100) == annealed_decay(0.9, 0.99, 10**9, 100) == 0.99
    assert annealed_decay(0.9, 0.9, 5, 0) == 0.9


def test_update_averages_copies_shared_weights_and_buffers():
    student = Student()
    teacher = EMATeacher(student, shared=["shared.weight", "shared.bias"])
    before = student.body.weight.detach().clone()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
        student.count += 7
    teacher.update(student, 0.75)
    torch.testing.assert_close(teacher.model.body.weight, before + 0.25)
    torch.testing.assert_close(teacher.model.shared.weight, student.shared.weight)
    torch.testing.assert_close(teacher.model.count, student.count)
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_a_half_precision_student_is_averaged_in_fp32():
    student = Student().half()
    teacher = EMATeacher(student)
    start = teacher.fp32["body.weight"].clone()
    with torch.no_grad():
        student.body.weight.add_(1.0)
    target = student.body.weight.detach().float()
    for _ in range(100):  # each step is far below fp16's spacing
        teacher.update(student, 0.9999)
    expected = target + (start - target) * 0.9999**100
    torch.testing.assert_close(teacher.fp32["body.weight"], expected, rtol=1e-5, atol=1e-6)
    assert teacher.model.body.weight.dtype == torch.half
    torch.testing.assert_close(teacher.model.body.weight, expected.half())


def test_in_fp32_there_is_one_copy():
    teacher = EMATeacher(Student())
    running = teacher.model.state_dict()
    assert all(running[k].data_ptr() == v.data_ptr() for k, v in teacher.fp32.items())


def test_restores_exactly():
    student, other = Student(), Student()
    teacher = EMATeacher(student)
    with torch.no_grad():
        student.body.weight.mul_(3)
    teacher.update(student, 0.5)
    again = EMATeacher(other)
    again.load_state_dict({k: v.clone() for k, v in teacher.state_dict().items()})
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)


def test_moves_with_its_owner_in_the_middle_of_training():
    student = Student()
    teacher = EMATeacher(student)
    teacher.update(student, 0.5)
    student.half(), teacher.apply(lambda t: t.half() if t.is_floating_point() else t)
    assert teacher.model.body.weight.dtype == torch.half
    assert teacher.fp32["body.weight"].dtype == torch.float
    with torch.no_grad():
        student.body.weight.fill_(2.0)
    before = teacher.fp32["body.weight"].clone()
    teacher.update(student, 0.5)
    torch.testing.assert_close(teacher.fp32["body.weight"], before / 2 + 1)
    torch.testing.assert_close(teacher.model.body.weight, (before / 2 + 1).half())


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_a_teacher_of_another_model_is_refused(damage):
    teacher = EMATeacher(Student())
    state = dict(teacher.state_dict())
    if damage == "missing":
        del state["body.bias"]
    elif damage == "unknown":
        state["body.extra"] = torch.zeros(1)
    else:
        state["body.bias"] = torch.zeros(9)
    with pytest.raises(ValueError, match="checkpoint"):
        teacher.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_parameter_is_updated_in_a_python_loop(dtype):
    """The number of Python lines an update runs does not grow with the number of parameters."""

    def calls(depth):
        student = nn.Sequential(*[nn.Linear(4, 4) for _ in range(depth)]).to(dtype)
        teacher = EMATeacher(student)
        teacher.update(student, 0.9)
        lines = []
        sys.settrace(lambda frame, event, _: lines.append(event) or sys.gettrace())
        teacher.update(student, 0.9)
        sys.settrace(None)
        return len(lines)

    assert 0 < calls(2) == calls(20)
