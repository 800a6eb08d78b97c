"""How far each block of a network has come from its initial weights, and whether gradients reach it."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.loader import Batch
from model.losses import Objective
from training.diagnosis.subject import Subject
from training.engine import SingleDevice

BLOCK = re.compile(r"(?:garment_unet\.)?(?:(?:encoder|decoder)\.(?:levels\.\d+|\w+)|\w+)")
PARTS = ("garment_unet", "encoder", "decoder")  # what is made of blocks


@dataclass(frozen=True)
class Block:
    """A level of the network, or one of its smaller parts."""

    name: str
    parameters: int
    moved: float  # norm of the change since the first step, relative to the weights'; 1 for what began at 0
    gradient: float = 0.0  # norm on a few batches, relative to the weights'


def block_of(name: str) -> str:
    """'encoder.levels.0.1.res.conv.weight' -> 'encoder.levels.0'; 'pool.q.bias' -> 'pool'."""
    return BLOCK.match(name)[0]


@torch.no_grad()
def movements(initial: dict[str, Tensor], trained: dict[str, Tensor], weight_decay: float) -> list[Block]:
    """Every block with its movement, by parameter name; weight decay, which shrinks even what nobody trains, is no
    movement."""
    changes, norms, counts = defaultdict(float), defaultdict(float), defaultdict(int)
    for name, before in initial.items():
        w0, w = before.double(), trained[name].double()
        length = float(w0.square().sum())
        share = float((w * w0).sum()) / length if weight_decay and length else 1.0
        block = block_of(name)
        changes[block] += float((w - share * w0).square().sum())
        norms[block] += max(length, float(w.square().sum()))
        counts[block] += w0.numel()
    return [Block(name, counts[name], (changes[name] / (norms[name] or 1)) ** 0.5) for name in counts]


def gradient_norms(
    subject: Subject, engine: SingleDevice, batches: Iterable[Batch], objective: Objective
) -> dict[str, float]:
    """The norm of each block's gradient, relative to the norm of its weights, summed over some batches."""
    engine.clear_gradients()
    for batch in batches:
        engine.backward(subject.loss(engine.net, batch, objective, engine.device).mean())
    engine.scaler.unscale_(engine.optimizer)
    squares, norms = defaultdict(float), defaultdict(float)
    for name, parameter in engine.model.named_parameters():
        block = block_of(name)
        squares[block] += 0.0 if parameter.grad is None else float(parameter.grad.double().square().sum())
        norms[block] += float(parameter.detach().double().square().sum())
    engine.scaler.update()
    engine.clear_gradients()
    return {name: (square / (norms[name] or 1)) ** 0.5 for name, square in squares.items()}


def whole_parts(names: Iterable[str], blocks: list[Block]) -> list[str]:
    """Blocks by name, those that make up a whole part of the network in one word: 'garment_unet'."""
    left, told = list(names), []
    for part in PARTS:
        mine = [block.name for block in blocks if block.name.startswith(f"{part}.")]
        if mine and set(mine) <= set(left):
            told.append(part)
            left = [name for name in left if name not in mine]
    return told + left
