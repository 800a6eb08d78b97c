"""Where the network runs: one device, one process with many GPUs, or many processes.

An engine owns device, precision, wrapping and optimizer, and nothing else; the loop does not know which one it has.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, Literal

import torch
import torch._dynamo  # the optimizer and DDP import it when they are made; here its seconds count as imports
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from torch import Tensor, nn

from model.conditions import Conditions
from model.network import Network, NetworkConfig
from training.checkpoint import Tensors
from training.distributed import get_rank, local_rank, num_ranks, wrap_ddp
from training.optim import MOMENTS, OptimConfig, load_moments, make_optimizer, moment_of

ZERO_BUCKET = 2**25  # values that DeepSpeed reduces at once: 128 MiB; by default it takes 2 GB for them
ZERO_LIVE = 2**27  # values of weights that stage 3 gathers at most
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class EngineConfig(BaseModel, extra="forbid", frozen=True):
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: a GPU where there is one")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of computation; parameters stay fp32")
    zero_stage: int | None = Field(
        None, ge=0, le=3, description="null: DDP; DeepSpeed with stage 1 shares moments, 2 gradients too, 3 weights too"
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="to the host's memory with ZeRO: Adam and its moments; all: weights too, at stage 3"
    )
    activation_checkpointing: bool | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        False, description="recompute blocks in the backward pass: less memory; a list: of these levels, 0 the finest"
    )
    lean_norms: bool = Field(False, description="group norms read and write bf16 or fp16 on a GPU too: less memory")
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None, description="samples a device takes at once, train.accumulation follows; auto: as many as fit"
    )
    channels_last: bool = Field(True, description="memory format of convolutions on a GPU")
    compile: bool = Field(False, description="torch.compile the network")
    deterministic: bool = Field(False, description="GPU kernels that repeat bit for bit; CPUs always do")

    @field_validator("activation_checkpointing", "micro_batch", mode="wrap")
    @classmethod
    def _one_of_several(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """One message, where pydantic has one for each kind that the value may be."""
        try:
            return handler(tuple(value) if isinstance(value, list) else value)
        except ValidationError as error:
            micro = info.field_name == "micro_batch"
            kinds = "null, a number from 1 or auto" if micro else "false, true or a list of levels such as [0, 1]"
            raise ValueError(f"should be {kinds}") from error

    @model_validator(mode="after")
    def _consistent(self) -> "EngineConfig":
        stage = self.zero_stage
        if self.offload != "none" and not stage:
            raise ValueError(f"engine.offload={self.offload} is DeepSpeed's; it needs engine.zero_stage=1, 2 or 3")
        if self.offload == "all" and stage != 3:
            raise ValueError("engine.offload=all needs engine.zero_stage=3; use engine.offload=optimizer")
        if self.compile and stage == 3:
            raise ValueError("engine.compile=true does not go with engine.zero_stage=3; use stage 2, or compile=false")
        return self


class Autocast(nn.Module):
    """A network that computes in another precision than it is stored in.

    Autocast opens inside forward: nn.DataParallel's threads know whether it is on, but not its type.
    """

    def __init__(self, model: Network, device: torch.device, precision: str):
        super().__init__()
        self.model, self.device_type, self.dtype = model, device.type, DTYPES[precision]

    def forward(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        with self._autocast():
            return self.model(zt, t, cond)

    def remember(self, cond: Conditions) -> Conditions:
        with self._autocast():
            return self.model.remember(cond)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype != torch.float32)


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


def set_backends(*engines: EngineConfig) -> None:
    """The settings of this process that all of these configs agree to."""
    deterministic = any(engine.deterministic for engine in engines)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = all(engine.precision != "fp32" for engine in engines)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def lay_out(net: nn.Module, engine: EngineConfig, device: torch.device) -> None:
    """The weights in the memory format that this device computes with, wherever they are now."""
    if engine.channels_last and device.type == "cuda":
        net.to(memory_format=torch.channels_last)


class SingleDevice:
    """One process, one device.  The other engines differ in how the network is wrapped."""

    rank, num_ranks = 0, 1
    takes_zero_stage = False
    shares_moments = False
    sharded = False  # whether forward passes are collective: every rank must make the same number of them

    @classmethod
    def num_devices(cls) -> int:
        """Devices that share a global batch."""
        return 1

    def __init__(self, model: NetworkConfig, engine: EngineConfig, optim: OptimConfig, seed: int):
        self.device = pick_device(engine.device)
        self.config, self.clip_grad_norm = engine, optim.clip_grad_norm
        set_backends(engine)
        # Weights are drawn on the CPU, where the same seed gives the same numbers whatever the GPU.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = self.build(model)
        self.model.set_activation_checkpointing(engine.activation_checkpointing)
        self.model.set_lean_norms(engine.lean_norms)
        if engine.compile:
            self.model.compile()
        assert all(p.dtype == torch.float32 for p in self.model.parameters())
        if frozen := [name for name, p in self.model.named_parameters() if not p.requires_grad]:
            raise ValueError(
                f"{frozen[0]}: requires_grad is False, but a checkpoint has the moments of every parameter; let the "
                "network have it True, and zero the gradient before each step where a weight shall stay"
            )
        self.parameters = list(self.model.parameters())
        self.shapes = {name: self.shape_of(p) for name, p in self.model.named_parameters()}
        self.optimizer = make_optimizer(self.parameters, optim, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=engine.precision == "fp16")
        self.local_net = Autocast(self.model, self.device, engine.precision)  # ranks may call it unevenly
        self.net = self.wrap(self.local_net)  # what diffusion_loss calls

    def build(self, model: NetworkConfig) -> Network:
        """The network, on its device."""
        net = model.build().to(self.device)
        lay_out(net, self.config, self.device)
        return net

    def shape_of(self, parameter: nn.Parameter) -> tuple[int, ...]:
        return tuple(parameter.shape)

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
        self.clear_gradients()
        return norm

    def clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

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

    def weights_changed(self) -> None:
        """To be called on every rank after writing into weights()."""

    def weight_tensors(self) -> Tensors:
        """The weights as a checkpoint's file."""
        return Tensors(self.shapes, self._wholes, self.sharded)

    def _wholes(self) -> Iterator[Tensor]:
        return (self.whole(name, stored) for name, stored in self.weights().items())

    @torch.no_grad()
    def load_weights(self, get: Callable[[str], Tensor]) -> None:
        """get(name): the whole parameter of that name.  Nothing here is collective; weights_changed() is to follow."""
        for name, stored in self.weights().items():
            stored.copy_(self.part(name, get(name)))

    @property
    def optimizer_steps(self) -> int:
        """Steps that Adam has taken: those with a finite gradient."""
        return next((int(state["step"]) for state in self.optimizer.state.values()), 0)

    def optimizer_tensors(self) -> Tensors:
        """Adam's moments as a checkpoint's file: 'exp_avg.NAME', 'exp_avg_sq.NAME'; empty before the first step."""
        shapes = self.optimizer_shapes(self.optimizer_steps)
        return Tensors(shapes, lambda: (self.moment(*name.split(".", 1)) for name in shapes), self.shares_moments)

    def optimizer_shapes(self, steps: int) -> dict[str, tuple[int, ...]]:
        """The shapes in that file after so many steps."""
        slots = MOMENTS if steps else ()
        return {f"{slot}.{name}": shape for slot in slots for name, shape in self.shapes.items()}

    def moment(self, slot: str, name: str) -> Tensor:
        """One of Adam's moments, whole.  Every rank calls."""
        return moment_of(self.optimizer, self.model.get_parameter(name), slot)

    @torch.no_grad()
    def load_optimizer(self, get: Callable[[str], Tensor], steps: int) -> None:
        """The state after so many steps; get('exp_avg.NAME'): that moment, whole."""
        if steps:
            load_moments(self.optimizer, self.model.named_parameters(), get, steps)


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
        for p in model.parameters():
            p.grad = torch.zeros_like(p)  # which DDP makes a view of its buckets
        return wrap_ddp(model)

    def clear_gradients(self) -> None:
        """Gradients stay views of DDP's buckets: without them, passes that are not the last keep gradients of their
        own beside the buckets."""
        self.optimizer.zero_grad(set_to_none=False)

    @contextmanager
    def microbatch(self, last: bool) -> Iterator[None]:
        with nullcontext() if last else self.net.no_sync():
            yield
