"""Whether all ranks still hold the same parameters."""

import socket

import torch
from torch import Tensor, nn

from training.distributed import Agreed, all_gather, num_ranks

CHECKED_STEPS = (2, 10)  # after each start; every checkpoint is checked too


@torch.no_grad()
def fingerprint(model: nn.Module) -> Tensor:
    """The sum of the bits of every fp32 parameter, as int64 on the CPU: (number of parameters,).

    Wrong by chance for one difference in 2^32; replicas that drift apart differ in thousands.
    """
    sums = [p.detach().contiguous().view(torch.int32).sum(dtype=torch.int64) for p in model.parameters()]
    return torch.stack(sums).cpu()


def check_replicas(model: nn.Module, step: int) -> None:
    """Raises the same ValueError on all ranks when their parameters differ, naming ranks and the first parameter."""
    if num_ranks() == 1:
        return
    found = all_gather((socket.gethostname(), fingerprint(model)))
    reference = found[0][1]
    odd = [(rank, host) for rank, (host, sums) in enumerate(found) if not torch.equal(sums, reference)]
    if not odd:
        return
    names = [name for name, _ in model.named_parameters()]
    first = names[int((found[odd[0][0]][1] != reference).nonzero()[0])]
    told = ", ".join(f"rank {rank} (host {host})" for rank, host in odd[:4])
    more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
    raise Agreed(
        f"after step {step} the parameters of {told}{more} are not those of rank 0 (host {found[0][0]}), {first} "
        "first; the ranks no longer train one model. No checkpoint was written; the same command continues at the last "
        "one. If it happens again, leave that host out (python -m launch.preflight tests it)"
    )
