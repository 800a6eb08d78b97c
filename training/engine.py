"""Where the network runs: one device, one process with many GPUs, or many processes.

An engine owns device, precision, wrapping and optimizer, and nothing else; the loop does not know which one it has.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
import torch._dynamo  # the optimizer and DDP import it when they are made; here its seconds count as imports
from pydantic import BaseModel, Field, field_validator
from torch import Tensor, nn

from model.conditions import Conditions
from model.parallel_unet import ParallelUNet, ParallelUNetConfig
from training.checkpoint import Tensors
from training.distributed import get_rank, local_rank, num_ranks, wrap_ddp
from training.optim import OptimConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class EngineConfig(BaseModel, extra="forbid", frozen=True):
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: a GPU where there is one")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of computation; parameters stay fp32")
    zero_stage: int = Field(0, ge=0, le=3, description="0: DDP, the only one so far; 1 to 3: DeepSpeed ZeRO")
    activation_checkpointing: bool = Field(False, description="recompute each block in the backward pass: less memory")
    channels_last: bool = Field(True, description="memory format of convolutions on a GPU")
    compile: bool = Field(False, description="torch.compile the network")
    deterministic: bool = Field(False, description="GPU kernels that repeat bit for bit; CPUs always do")

    @field_validator("zero_stage")
    @classmethod
    def _built(cls, value: int) -> int:
        if value > 0:
            raise ValueError("DeepSpeed ZeRO is not part of this version; use 0 (DDP), with activation_checkpointing")
        return value


class Autocast(nn.Module):
    """A network that computes in another precision than it is stored in.

    Autocast opens inside forward: nn.DataParallel's threads know whether it is on, but not its type.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: str):
        super().__init__()
        self.model, self.device_type, self.dtype = model, device.type, DTYPES[precision]

    def forward(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        with torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return self.model(zt, t, cond)


def pick_device(name: str, precision: str = "fp32") -> torch.device:
    """The device of this process.  Raises ValueError when it is not here, or cannot compute in that precision."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("engine.device=cuda: no CUDA GPU is visible here; check nvidia-smi, or use engine.device=auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("engine.device=mps: no Apple GPU is available here; use engine.device=auto")
    if name == "cpu" and precision == "fp16":
        raise ValueError("engine.precision=fp16: not on a CPU; use bf16 or fp32")
    return torch.device("cuda", local_rank()) if name == "cuda" else torch.device(name)


class SingleDevice:
    """One process, one device.  The other engines differ in how the network is wrapped."""

    rank, num_ranks = 0, 1
    sharded = False  # whether forward passes are collective: every rank must make the same number of them

    @classmethod
    def num_devices(cls) -> int:
        """Devices that share a global batch."""
        return 1

    def __init__(self, model: ParallelUNetConfig, engine: EngineConfig, optim: OptimConfig, seed: int):
        self.device = pick_device(engine.device)
        self.config, self.clip_grad_norm = engine, optim.clip_grad_norm
        self._set_backends()
        # Weights are drawn on the CPU, where the same seed gives the same numbers whatever the GPU.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = ParallelUNet(model)
        self.model.to(self.device)
        if engine.channels_last and self.device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)
        self.model.set_activation_checkpointing(engine.activation_checkpointing)
        if engine.compile:
            self.model.compile()
        assert all(p.dtype == torch.float32 for p in self.model.parameters())
        self.parameters = list(self.model.parameters())
        self.shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay,
            fused=self.device.type == "cuda",
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=engine.precision == "fp16")
        self.local_net = Autocast(self.model, self.device, engine.precision)  # ranks may call it unevenly
        self.net = self.wrap(self.local_net)  # what diffusion_loss calls

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def microbatch(self, last: bool) -> AbstractContextManager:
        """Around the forward and backward pass of one micro-batch; gradients meet in the last."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, lr: float) -> float:
        """Clips, and steps unless the gradient is not finite.  Returns the gradient's norm before clipping.

        Gradients are the same on all ranks, so all of them take or skip the step.
        """
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm, foreach=True))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if norm < float("inf"):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def loss_scale(self) -> dict[str, float]:
        """What fp16's loss scaling knows, which a checkpoint keeps; empty for other precisions."""
        return self.scaler.state_dict()

    def set_loss_scale(self, known: dict[str, float]) -> None:
        if known and self.scaler.is_enabled():
            self.scaler.load_state_dict(known)

    def weights(self) -> dict[str, Tensor]:
        """What this rank stores of each parameter, fp32.  Writing into these tensors changes the network."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def whole(self, name: str, stored: Tensor) -> Tensor:
        """The whole tensor, shaped like the parameter, of one that is stored as weights()[name] is.

        Every rank calls, with the same names in the same order.
        """
        return stored

    def part(self, name: str, whole: Tensor) -> Tensor:
        """The inverse: what this rank stores of a whole tensor."""
        return whole

    def weight_tensors(self) -> Tensors:
        """The weights as a checkpoint's file."""
        return Tensors(self.shapes, lambda: (self.whole(name, stored) for name, stored in self.weights().items()))

    @torch.no_grad()
    def load_weights(self, get: Callable[[str], Tensor]) -> None:
        """get(name): the whole parameter of that name."""
        for name, stored in self.weights().items():
            stored.copy_(self.part(name, get(name)))

    @property
    def optimizer_steps(self) -> int:
        """Steps that Adam has taken: those with a finite gradient."""
        return next((int(state["step"]) for state in self.optimizer.state.values()), 0)

    def optimizer_tensors(self) -> Tensors:
        """Adam's moments as a checkpoint's file: 'exp_avg.NAME', 'exp_avg_sq.NAME'; empty before the first step."""
        shapes = self.optimizer_shapes(self.optimizer_steps)
        return Tensors(shapes, lambda: (self.moment(*name.split(".", 1)) for name in shapes))

    def optimizer_shapes(self, steps: int) -> dict[str, tuple[int, ...]]:
        """The shapes in that file after so many steps."""
        slots = MOMENTS if steps else ()
        return {f"{slot}.{name}": shape for slot in slots for name, shape in self.shapes.items()}

    def moment(self, slot: str, name: str) -> Tensor:
        """One of Adam's moments, whole.  Every rank calls."""
        return self.optimizer.state[self.model.get_parameter(name)][slot]

    @torch.no_grad()
    def load_optimizer(self, get: Callable[[str], Tensor], steps: int) -> None:
        """The state after so many steps; get('exp_avg.NAME'): that moment, whole.

        Moments are laid out like their parameters: fused Adam refuses a channels_last weight with a contiguous moment.
        """
        if steps == 0:
            return
        device = self.device if self.optimizer.defaults["fused"] else "cpu"
        state: dict[int, dict[str, Tensor]] = {}
        for i, (name, p) in enumerate(self.model.named_parameters()):
            moments = {slot: torch.empty_like(p).copy_(get(f"{slot}.{name}")) for slot in MOMENTS}
            state[i] = moments | {"step": torch.tensor(float(steps), device=device)}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _set_backends(self) -> None:
        torch.backends.cudnn.benchmark = not self.config.deterministic
        torch.backends.cudnn.allow_tf32 = self.config.precision != "fp32"
        if self.config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)


class DataParallel(SingleDevice):
    """One process, all GPUs of the box.  Without several GPUs, the network runs unwrapped."""

    @classmethod
    def num_devices(cls) -> int:
        return max(1, torch.cuda.device_count())

    def wrap(self, model: nn.Module) -> nn.Module:
        return nn.DataParallel(model) if self.device.type == "cuda" and torch.cuda.device_count() > 1 else model


class DDP(SingleDevice):
    """One process a GPU, under torchrun."""

    @classmethod
    def num_devices(cls) -> int:
        return num_ranks()

    def wrap(self, model: nn.Module) -> nn.Module:
        self.rank, self.num_ranks = get_rank(), num_ranks()
        return wrap_ddp(model)

    @contextmanager
    def microbatch(self, last: bool) -> Iterator[None]:
        with nullcontext() if last else self.net.no_sync():
            yield
