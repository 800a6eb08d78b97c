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
from launch.levers import Levers, levers_for, pulled
from launch.residents import host_bytes, resident_bytes, sizes_of, step_bytes
from model.diffusion import diffusion_loss
from training.config import Config
from training.engine import Autocast
from training.fit import accumulation_of, blank_inputs

GIB = 2**30
TIGHT = 0.9  # share of a GPU's memory above which its allocator's gaps may cost the run
# CUDA context, cuBLAS and cuDNN workspaces, NCCL buffers.  An assumption: 0.5 GiB for the context on recent drivers,
# as much again for the rest.
CONTEXT = 1.0 * GIB


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


def micro_batch_bytes(config: Config, num: int, *, gpu: bool = True) -> int:
    """Peak bytes beside the residents while a micro-batch of `num` samples goes forward and backward.

    Activations that autograd keeps, autocast's half-precision copies of the weights, one layer's gradient, temporaries
    and the batch itself; convolutions' workspaces and the allocator's gaps are not seen.  gpu: norms that are not lean
    compute in fp32 under autocast, as CUDA's do and the CPU's do not.
    """
    with torch.device("meta"):
        net = config.model.build()
    net.set_activation_checkpointing(config.engine.activation_checkpointing)
    net.set_lean_norms(config.engine.lean_norms)
    with FakeTensorMode():
        for module in net.modules():
            for name, parameter in module.named_parameters(recurse=False):
                fake = nn.Parameter(torch.empty(parameter.shape))
                fake.register_post_accumulate_grad_hook(_drop_gradient)  # the residents count it
                setattr(module, name, fake)
            if gpu and isinstance(module, nn.GroupNorm | nn.LayerNorm) and not getattr(module, "lean", False):
                module.forward = _in_fp32(module)
        return peak_of_step(Autocast(net, torch.device("cpu"), config.engine.precision), config, num)


def peak_of_step(net: Autocast, config: Config, num: int) -> int:
    """Peak bytes beside the parameters while this network, fake or real, does one forward and backward pass."""
    peak = LivePeak()
    peak.watch(list(net.parameters()), counted=False)
    with peak:
        x0, cond, draws = blank_inputs(config, num)
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
    step: float = 0.0  # while Adam steps, when the micro-batch is over
    context: float = CONTEXT

    @property
    def total(self) -> float:
        return sum(self.resident.values()) + max(self.micro_batch, self.step) + self.context


def estimate_of(config: Config, num_ranks: int, gpu: bool = True) -> Estimate:
    """What a rank takes for the passes that the config asks for; not gpu: in a CPU's process, beside its libraries."""
    num = config.train.global_batch // accumulation_of(config, num_ranks) // num_ranks
    sizes = sizes_of(config)
    resident, step = (part(config, sizes, num_ranks, gpu) for part in (resident_bytes, step_bytes))
    return Estimate(resident, micro_batch_bytes(config, num, gpu=gpu), step, CONTEXT if gpu else 0.0)


class MemoryModel:
    """Memory of one rank for any micro-batch and any lever."""

    def __init__(self, config: Config, num_ranks: int):
        self.config, self.num_ranks = config, num_ranks
        self.sizes = sizes_of(config)
        self.num_parameters = self.sizes.total
        self.known: dict[tuple, int] = {}

    def estimate(self, micro_batch: int, levers: Levers = ()) -> Estimate:
        config = pulled(self.config, levers)
        key = micro_batch, config.engine.activation_checkpointing, config.engine.lean_norms
        if key not in self.known:
            self.known[key] = micro_batch_bytes(config, micro_batch)
        resident, step = (part(config, self.sizes, self.num_ranks) for part in (resident_bytes, step_bytes))
        return Estimate(resident, self.known[key], step)

    def largest(self, micro_batches: list[int], limit: float, levers: Levers = ()) -> int | None:
        """The largest of these micro-batches, given from the largest to the smallest, that stays within `limit` bytes.

        Memory rises with the batch, so halving the list finds it in a few estimates.
        """
        resident = resident_bytes(pulled(self.config, levers), self.sizes, self.num_ranks)
        end = 0 if sum(resident.values()) + CONTEXT > limit else len(micro_batches)
        low, high = 0, end
        while low < high:
            middle = (low + high) // 2
            if self.estimate(micro_batches[middle], levers).total <= limit:
                high = middle
            else:
                low = middle + 1
        return micro_batches[low] if low < end else None


def check_memory(memory: MemoryModel, layout: Layout, name: str | None) -> Iterator[Finding]:
    """What one rank of this layout needs, against the memory of the GPU of that name.  None: it is told alone."""
    config, num = memory.config, layout.micro_batch
    if config.engine.micro_batch == "auto" and name is not None:
        fitting = memory.largest(_divisors(layout), TIGHT * find_gpu(name).memory_gib * GIB)
        yield Finding("micro-batch", f"auto: {fitting or 1} at a time, by this estimate")
        num = fitting or 1
    now = memory.estimate(num)
    whole = sum(now.resident.values()) / GIB
    yield Finding("weights", f"{memory.num_parameters / 1e6:,.1f} M, with gradients, Adam and average {whole:.1f} GiB")
    recomputed = {False: "", True: ", recomputed"}.get(config.engine.activation_checkpointing, ", partly recomputed")
    how = f"{config.engine.precision}{recomputed}"
    yield Finding("activations", f"{now.micro_batch / GIB:.1f} GiB for {num} samples, {how}")
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


def check_host(memory: MemoryModel, ranks_per_node: int, checkpoint: float) -> Iterator[Finding]:
    """What the ranks of a node put into its memory, where a checkpoint has so many bytes."""
    parts = host_bytes(memory.config, memory.sizes, memory.num_ranks)
    if memory.config.checkpoint.asynchronous:  # training/pieces.py, STAGING_SHARE
        parts["a checkpoint's copy, which takes at most half of what is free"] = checkpoint / memory.num_ranks
    if parts:
        each = ", ".join(f"{ranks_per_node * size / GIB:,.1f} for {name}" for name, size in parts.items())
        total = ranks_per_node * sum(parts.values()) / GIB
        yield Finding("host memory", f"{total:,.1f} GiB a node beside its processes: {each}")


def _divisors(layout: Layout) -> list[int]:
    """The micro-batches that a rank may take, from the largest to the smallest."""
    whole = layout.global_batch // layout.num_ranks
    return [n for n in range(whole, 0, -1) if whole % n == 0]


def _lower_memory(memory: MemoryModel, layout: Layout, available: float) -> str:
    """The first levers that suffice: those that cost nothing but time before those that change sums or the engine."""
    cheap, deep = levers_for(memory.config, memory.num_ranks)
    smaller = [n for n in _divisors(layout) if n < layout.micro_batch]
    for best in (TIGHT * available, available):
        for levers in cheap:
            if memory.largest([layout.micro_batch], best, levers):
                return _told(memory, layout, layout.micro_batch, levers)
        for levers in (cheap[-1], *deep):
            num = memory.largest([layout.micro_batch, *smaller], best, levers)
            if num is not None:
                return _told(memory, layout, num, levers)
    levers = deep[-1] if deep else cheap[-1]
    least = memory.estimate(1, levers).total / GIB
    words = " ".join(lever.word for lever in levers)
    return f"a GPU of more memory: one sample with {words} takes {least:.1f} GiB; or fewer model.channels"


def _told(memory: MemoryModel, layout: Layout, num: int, levers: Levers) -> str:
    words = [lever.word for lever in levers]
    total = memory.estimate(num, levers).total / GIB
    if num != layout.micro_batch:
        if isinstance(memory.config.engine.micro_batch, int):
            words.append(f"engine.micro_batch={num}")
        else:
            words += [f"train.micro_batch={num}"] if memory.config.train.micro_batch is not None else []
            words.append(f"train.accumulation={layout.global_batch // layout.num_ranks // num}")
    return f"{' '.join(words)} ({num} sample{'s' * (num > 1)} at a time: {total:.1f} GiB)"
