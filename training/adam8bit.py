"""AdamW with moments of 8 bits, by the kernels of bitsandbytes.  The sole importer of that package.

Moments are stored in blocks of 256 values: a code of 8 bits each, which a table turns into a number in [-1, 1], times
the block's scale in fp32 (Dettmers et al. 2022, arXiv 2110.02861).  N values of a parameter, M blocks.
"""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Importing it tells of a package that its 4-bit kernels may use.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
try:
    from bitsandbytes import functional
except ImportError as error:
    raise ValueError(
        f"optim.name=adamw8bit needs a package that is not there ({error}): pip install bitsandbytes; or use "
        "optim.name=adamw"
    ) from error

BLOCK = 256
SMALLEST = 4096  # values; the moments of smaller parameters stay fp32, as the paper's authors do it


class AdamW8bit(torch.optim.Optimizer):
    """AdamW over fp32 parameters; state: step, and of each moment codes (N,) uint8 and scales (M,) fp32, or (N,) fp32.

    The package's own optimizer would undo the channels_last layout of weights: its kernels are given flat views of
    what lies in memory.
    """

    def __init__(
        self, parameters: list[Tensor], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        table = functional.create_dynamic_map
        self.tables = {"exp_avg": table(signed=True), "exp_avg_sq": table(signed=False)}  # (256,) each, rising

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: Tensor, group: dict) -> None:
        state = self.state[p] or self.begin(p)
        state["step"] += 1
        gradient = p.grad if p.grad.stride() == p.stride() else torch.empty_like(p).copy_(p.grad)
        first, second, (beta1, beta2) = state["exp_avg"], state["exp_avg_sq"], group["betas"]
        if first.dtype == torch.uint8:
            functional.optimizer_update_8bit_blockwise(
                "adam", _flat(gradient), _flat(p), first, second, beta1, beta2, 0.0, 0.0, group["eps"], state["step"],
                group["lr"], self._table("exp_avg", p), self._table("exp_avg_sq", p), state["exp_avg_scale"],
                state["exp_avg_sq_scale"], group["weight_decay"],
            )  # fmt: skip
        else:
            functional.optimizer_update_32bit(
                "adam", _flat(gradient), _flat(p), first, beta1, group["eps"], state["step"], group["lr"], second,
                beta2, 0.0, 0.0, group["weight_decay"],
            )  # fmt: skip

    def begin(self, p: Tensor) -> dict:
        """Makes and returns the state of a parameter before its first step."""
        self.state[p] = self.blank(p)
        return self.state[p]

    def blank(self, p: Tensor) -> dict:
        num, state = p.numel(), {"step": 0}
        for slot in self.tables:
            if num < SMALLEST:
                state[slot] = torch.zeros(num, device=p.device)
            else:
                state[slot] = torch.zeros(num, dtype=torch.uint8, device=p.device)
                state[f"{slot}_scale"] = torch.zeros(-(-num // BLOCK), device=p.device)
        return state

    def moment(self, p: Tensor, slot: str) -> Tensor:
        """A moment in fp32, laid out and shaped like its parameter."""
        result, state = torch.empty_like(p), self.state[p]
        values = state[slot]
        if values.dtype == torch.uint8:
            values = _values(values, state[f"{slot}_scale"], self._table(slot, p))
        _flat(result).copy_(values)
        return result

    def set_moment(self, p: Tensor, slot: str, whole: Tensor) -> None:
        """The inverse: what moment() gave comes back bit by bit, anything else rounded to 8 bits."""
        values, state = _flat(torch.empty_like(p).copy_(whole)), self.state[p]
        if state[slot].dtype == torch.uint8:
            state[slot], state[f"{slot}_scale"] = quantised(values, self._table(slot, p))
        else:
            state[slot] = values

    def _table(self, slot: str, p: Tensor) -> Tensor:
        self.tables[slot] = self.tables[slot].to(p.device)
        return self.tables[slot]


def _flat(x: Tensor) -> Tensor:
    """The values of a dense tensor as they lie in memory, (N,), contiguous or channels_last."""
    return x.detach().as_strided((x.numel(),), (1,))


def _values(codes: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    return table[codes.int()] * scale.repeat_interleave(BLOCK)[: len(codes)]


def quantised(values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """codes (N,) uint8 and scales (M,) of values (N,): the nearest in the table, times the block's scale.

    Values that came out of codes and scales give the same again: the table ends at 1 but begins above -1, so that a
    block's scale is told by its top or by its bottom; and because a division rounds, of a scale and its two neighbours
    the one is taken that gives back all of the block.
    """
    blocks = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    top, bottom, lowest = blocks.amax(1), -blocks.amin(1), -float(table[0])
    first = torch.where(top > bottom, top, bottom / (lowest or 1.0))
    up, down = (torch.nextafter(first, torch.full_like(first, end)) for end in (float("inf"), 0.0))
    codes, scale = _nearest(blocks, first, table), first
    for candidate in (up, down):
        wrong = (table[codes] * scale[:, None] != blocks).any(1)
        other = _nearest(blocks[wrong], candidate[wrong], table)
        better = (table[other] * candidate[wrong][:, None] == blocks[wrong]).all(1)
        place = wrong.nonzero().squeeze(1)[better]
        codes[place], scale = other[better], scale.index_copy(0, place, candidate[place])
    return codes.flatten()[: len(values)].to(torch.uint8), scale


def _nearest(blocks: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    """The codes of the numbers in the table that are nearest to blocks (M, BLOCK) / scale (M,)."""
    tiny = torch.finfo(scale.dtype).tiny
    return torch.bucketize(blocks / scale[:, None].clamp(min=tiny), (table[1:] + table[:-1]) / 2, out_int32=True)
