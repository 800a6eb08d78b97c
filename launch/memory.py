"""GPU memory of one rank, before there is a GPU.

What lives through the run is arithmetic; what a micro-batch needs on top is measured on the real network with fake
tensors, which have shapes and storages but no memory.

B batch, A conditioning images with noise augmentation, K keypoints.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.loader import Layout
from launch.findings import Finding
from launch.gpus import find_gpu
from model.conditions import Conditions
from model.diffusion import DiffusionConfig, Draws, diffusion_loss
from model.parallel_unet import ParallelUNet, ParallelUNetConfig
from training.config import Config
from training.engine import Autocast

GIB = 2**30
TIGHT = 0.9  # share of a GPU's memory above which its allocator's gaps may cost the run
# CUDA context, cuBLAS and cuDNN workspaces, NCCL buffers.  An assumption: 0.5 GiB for the context on recent drivers,
# as much again for the rest.
CONTEXT = 1.0 * GIB


class Resident(NamedTuple):
    """Something of the parameters' size that a rank holds through the run."""

    name: str
    copies: int  # in fp32
    sharded_from: int  # the ZeRO stage from which the ranks share it (Rajbhandari et al. 2020, Fig. 1); 4: none


# DDP's buckets are the gradients themselves (gradient_as_bucket_view=True), and they stay when gradients are set to
# None.  Clipping, fused Adam and the average work in place: no temporary of that size.
RESIDENTS = (
    Resident("weights", 1, 3),
    Resident("gradients", 1, 2),
    Resident("Adam's moments", 2, 1),
    Resident("average (EMA)", 1, 4),
)


def resident_bytes(num_parameters: int, zero_stage: int, num_ranks: int) -> dict[str, float]:
    """Bytes of each resident on one rank, by name."""
    return {
        part.name: 4.0 * num_parameters * part.copies / (num_ranks if zero_stage >= part.sharded_from else 1)
        for part in RESIDENTS
    }


def count_parameters(model: ParallelUNetConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ParallelUNet(model).parameters())


class LivePeak(TorchDispatchMode):
    """The most bytes of tensors made inside this block that were alive at once.  Views share their storage."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.sizes: dict[int, int] = {}

    def watch(self, tensors: Any, counted: bool = True) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes() if counted else 0
                    weakref.finalize(storage, self._gone, storage._cdata)
                    self.live += self.sizes[storage._cdata]
                    self.peak = max(self.peak, self.live)

    def _gone(self, key: int) -> None:
        self.live -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.watch(result)
        return result


def blank_inputs(model: ParallelUNetConfig, diffusion: DiffusionConfig, num: int) -> tuple[Tensor, Conditions, Draws]:
    """x0, conditions and draws of a micro-batch of zeros, (B, ...), as the loop gives them to the loss."""
    image, num_levels = (3, *model.image_size), model.num_aug_levels
    noise_aug = (num_levels, *image) if diffusion.noise_aug_max > 0 else (num_levels, 1, 1, 1)
    cond = Conditions(
        torch.zeros(num, *image), torch.zeros(num, *image), torch.zeros(num, model.num_keypoints, 3),
        torch.zeros(num, model.num_keypoints, 3), torch.zeros(num, num_levels),
        torch.zeros(num, *image) if model.lowres else None,
    )  # fmt: skip
    draws = Draws(
        torch.zeros(num) + 0.5, torch.zeros(num, *image), torch.ones(num), torch.zeros(num, num_levels),
        torch.zeros(num, *noise_aug),
    )  # fmt: skip
    return torch.zeros(num, *image), cond, draws


def micro_batch_bytes(config: Config, num: int, *, checkpointing: bool | None = None, gpu: bool = True) -> int:
    """Peak bytes beside the residents while a micro-batch of `num` samples goes forward and backward.

    Activations that autograd keeps, autocast's half-precision copies of the weights, one layer's gradient, temporaries
    and the batch itself; convolutions' workspaces and the allocator's gaps are not seen.  checkpointing: None takes the
    config's.  gpu: norms compute in fp32 under autocast, as CUDA's do and the CPU's do not.
    """
    if checkpointing is None:
        checkpointing = config.engine.activation_checkpointing
    with torch.device("meta"):
        net = ParallelUNet(config.model)
    with FakeTensorMode():
        for module in net.modules():
            for name, parameter in module.named_parameters(recurse=False):
                fake = nn.Parameter(torch.empty(parameter.shape))
                fake.register_post_accumulate_grad_hook(_drop_gradient)  # the residents count it
                setattr(module, name, fake)
            if gpu and isinstance(module, nn.GroupNorm | nn.LayerNorm):
                module.forward = _in_fp32(module)
        net.set_activation_checkpointing(checkpointing)
        return peak_of_step(Autocast(net, torch.device("cpu"), config.engine.precision), config, num)


def peak_of_step(net: Autocast, config: Config, num: int) -> int:
    """Peak bytes beside the parameters while this network, fake or real, does one forward and backward pass."""
    peak = LivePeak()
    peak.watch(list(net.parameters()), counted=False)
    with peak:
        x0, cond, draws = blank_inputs(config.model, config.diffusion, num)
        diffusion_loss(net, x0, cond, draws, config.diffusion).mean().backward()
    return peak.peak


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _in_fp32(norm: nn.GroupNorm | nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """The norm's forward as CUDA's autocast runs it: input and output in fp32."""
    inner = norm.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return inner(x.float())

    return forward


class Estimate(NamedTuple):
    """Bytes of one rank."""

    resident: dict[str, float]
    micro_batch: float
    context: float = CONTEXT

    @property
    def total(self) -> float:
        return sum(self.resident.values()) + self.micro_batch + self.context


class MemoryModel:
    """Memory of one rank for any micro-batch, with and without activation checkpointing."""

    def __init__(self, config: Config, num_ranks: int):
        self.config = config
        self.num_parameters = count_parameters(config.model)
        self.resident = resident_bytes(self.num_parameters, config.engine.zero_stage, num_ranks)
        self.known: dict[tuple[int, bool], int] = {}

    def estimate(self, micro_batch: int, checkpointing: bool | None = None) -> Estimate:
        if checkpointing is None:
            checkpointing = self.config.engine.activation_checkpointing
        key = micro_batch, checkpointing
        if key not in self.known:
            self.known[key] = micro_batch_bytes(self.config, micro_batch, checkpointing=checkpointing)
        return Estimate(self.resident, self.known[key])

    def largest(self, micro_batches: list[int], limit: float, checkpointing: bool) -> int | None:
        """The largest of these micro-batches, given from the largest to the smallest, that stays within `limit` bytes.

        Memory rises with the batch, so halving the list finds it in a few estimates.
        """
        low, high = 0, len(micro_batches)
        while low < high:
            middle = (low + high) // 2
            if self.estimate(micro_batches[middle], checkpointing).total <= limit:
                high = middle
            else:
                low = middle + 1
        return micro_batches[low] if low < len(micro_batches) else None


def check_memory(memory: MemoryModel, layout: Layout, name: str | None) -> Iterator[Finding]:
    """What one rank of this layout needs, against the memory of the GPU of that name.  None: it is told alone."""
    config, now = memory.config, memory.estimate(layout.micro_batch)
    whole = sum(now.resident.values()) / GIB
    yield Finding("weights", f"{memory.num_parameters / 1e6:,.1f} M, with gradients, Adam and average {whole:.1f} GiB")
    how = f"{config.engine.precision}{', recomputed' if config.engine.activation_checkpointing else ''}"
    yield Finding("activations", f"{now.micro_batch / GIB:.1f} GiB for {layout.micro_batch} samples, {how}")
    assumed = f"{now.context / GIB:.0f} of it assumed for CUDA and NCCL"
    if name is None:
        yield Finding("memory of a GPU", f"{now.total / GIB:.1f} GiB, {assumed}; --gpu compares it with a GPU's")
        return
    gpu = find_gpu(name)
    share = now.total / (gpu.memory_gib * GIB)
    told = f"{now.total / GIB:.1f} of {gpu.memory_gib:g} GiB of {name} ({share:.0%}), {assumed}"
    if share > TIGHT:
        remedy = _lower_memory(memory, layout, gpu.memory_gib * GIB)
        yield Finding("memory of a GPU", told, "error" if share > 1 else "warning", remedy)
    else:
        yield Finding("memory of a GPU", told)
    if config.engine.precision == "bf16" and not gpu.bf16:
        yield Finding("precision", f"{name} has no bf16 units: very slow", "warning", "engine.precision=fp16")


def _lower_memory(memory: MemoryModel, layout: Layout, available: float) -> str:
    """The first of: activation checkpointing, the least further accumulation with it, another GPU."""
    config, key = memory.config, "engine.activation_checkpointing=true"
    switch = "" if config.engine.activation_checkpointing else f"{key} "
    whole = layout.global_batch // layout.num_ranks
    smaller = [n for n in range(layout.micro_batch - 1, 0, -1) if whole % n == 0]
    least = memory.estimate(1, True).total
    if least > available:
        return f"a GPU of more memory: one sample with {key} takes {least / GIB:.1f} GiB; or fewer model.channels"
    best = TIGHT * available if least <= TIGHT * available else available
    as_it_is = [layout.micro_batch] if switch else []
    num = memory.largest(as_it_is, best, True) or memory.largest(smaller, best, True) or layout.micro_batch
    total = memory.estimate(num, True).total / GIB
    more = f"train.accumulation={whole // num} " if num != layout.micro_batch else ""
    tied = f"train.micro_batch={num} " if more and config.train.micro_batch is not None else ""
    return f"{switch}{tied}{more}({num} sample{'s' * (num > 1)} at a time: {total:.1f} GiB)"
