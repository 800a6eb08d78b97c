"""One policy for a gradient that is not finite: all ranks skip the step and say whose loss it was; too many in a row
end the run."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from training.checkpoint import TrainState
from training.distributed import Agreed, all_gather

NAMED = 8  # samples in a message


def count(
    state: TrainState, grad_norm: float, losses: list[Tensor], positions: list[Tensor],
    key: Callable[[int], str], limit: int,
) -> str | None:  # fmt: skip
    """Counts a step by its gradient's norm.  -> what there is to say of a skipped one

    losses, positions: (B,) of each of this rank's micro-batches; key: of the sample at a place in the stream.
    Every rank calls.  Raises ValueError on all of them after `limit` skipped steps in a row.
    """
    if math.isfinite(grad_norm):
        state.nonfinite_in_row = 0
        return None
    state.nonfinite_in_row += 1
    state.skipped += 1
    finite = torch.isfinite(torch.cat(losses)).cpu()
    bad = sorted(position for mine in all_gather(torch.cat(positions)[~finite].tolist()) for position in mine)
    told = ", ".join(f"{key(position)!r} (stream position {position})" for position in bad[:NAMED])
    whose = f"the loss is not finite for {told}" + f" and {len(bad) - NAMED} more" * (len(bad) > NAMED)
    if not bad:
        whose = "every loss is finite, so it is the backward pass that overflows"
    if state.nonfinite_in_row >= limit:
        raise Agreed(
            f"the gradient was not finite in {state.nonfinite_in_row} steps in a row, at last in step "
            f"{state.step + 1}: {whose}; lower optim.lr, or raise optim.warmup_steps; where that changes nothing, look "
            "at those samples (python -m data.inspect), or use engine.precision=bf16 or fp32; python -m "
            "training.diagnose RUN tries learning rates"
        )
    return f"step {state.step + 1} is skipped, for its gradient is not finite: {whose}"
