"""Networks whose answers are known, and what they are told."""

import torch
from torch import Tensor

from model.conditions import Conditions
from model.diffusion import Schedule, target_of

SIZE = (6, 4)


def conditions(batch: int, lowres: bool = False) -> Conditions:
    image = lambda: torch.rand(batch, 3, *SIZE) * 2 - 1  # noqa: E731
    pose = torch.rand(batch, 18, 3).round(decimals=1)
    level = torch.zeros(batch, 3 if lowres else 2)
    return Conditions(image(), image(), pose, pose, level, image() if lowres else None)


class Counting:
    """A network whose answer depends on zt, t and the conditions, each sample by itself; it notes its batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        answers = [self.answer(zt, t, cond)] + ([self.answer(zt, t, cond.null())] if cond.with_null else [])
        self.batches.append(len(zt) * len(answers))
        return torch.stack(answers, 1) if cond.with_null else answers[0]

    def answer(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        assert {len(value) for value in (t, *cond[:6]) if value is not None} == {len(zt)}
        heard = (
            cond.garment * 0.3 + cond.clothing_agnostic * 0.2 + cond.person_pose.sum((1, 2)).view(-1, 1, 1, 1) * 0.01
        )
        if cond.lowres is not None:
            heard = heard + cond.lowres * 0.1
        return torch.tanh(0.8 * zt + heard) * (0.5 + 0.5 * t.view(-1, 1, 1, 1))


def answering(prediction: str, shift: float, denoise):
    """A network that answers in terms of `prediction` what denoise(zt, alpha, sigma) thinks of x0."""
    schedule = Schedule(shift)

    def net(zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        x0 = denoise(zt, alpha, sigma)
        return target_of(prediction, x0, t, (zt - alpha * x0) / sigma, schedule)

    return net
