"""Many processes that share optimizer, gradients and weights: DeepSpeed ZeRO (Rajbhandari et al. 2020).

The sole importer of deepspeed.  Weights, gradients and what is sent stay fp32; the network's own autocast computes in
half precision, so that a run has one curve on every engine.  Accumulation, learning rate and loss scale are the loop's
and the engine's, as everywhere; DeepSpeed reduces, clips and steps.

N elements of a parameter, R ranks.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from model.network import Block, Network, NetworkConfig
from training.distributed import all_gather_flat, get_rank, num_ranks
from training.engine import MOMENTS, ZERO_BUCKET, ZERO_LIVE, SingleDevice

try:
    import deepspeed
except ImportError as error:
    raise ValueError(
        f"engine.zero_stage needs a package that is not there ({error}): pip install deepspeed; or use "
        "engine.zero_stage=null (DDP)"
    ) from error
from deepspeed.utils import (
    logger,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)


class ZeRO(SingleDevice):
    """Stages 0 to 2: every rank holds all weights and shares, from stage 1 on, Adam's moments; at 2, gradients too."""

    takes_zero_stage = True

    def __init__(self, *config: BaseModel | int):
        logger.setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # names that DeepSpeed calls
        # On a CPU it would compile a kernel, for half a minute, that only inference calls.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        super().__init__(*config)
        self.shares_moments = self.config.zero_stage > 0

    @classmethod
    def num_devices(cls) -> int:
        return num_ranks()

    def wrap(self, model: nn.Module) -> nn.Module:
        self.rank, self.num_ranks = get_rank(), num_ranks()
        self.deepspeed, *_ = deepspeed.initialize(
            model=model, optimizer=self.optimizer, config=self.settings(), dist_init_required=False
        )
        return self.deepspeed

    def settings(self) -> dict[str, Any]:
        """DeepSpeed's configuration.  The batch sizes are fictions: with accumulation unmanaged, nothing reads them."""
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": self.config.zero_stage == 0,
            "gradient_clipping": self.clip_grad_norm if self.config.zero_stage else 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
            "zero_optimization": {
                "stage": self.config.zero_stage,
                "overlap_comm": self.device.type == "cuda" and self.config.zero_stage > 1,  # 1 reduces in step
                "contiguous_gradients": True,
                "reduce_bucket_size": ZERO_BUCKET,
                "allgather_bucket_size": ZERO_BUCKET,
                "stage3_prefetch_bucket_size": ZERO_BUCKET,
                "stage3_max_reuse_distance": ZERO_BUCKET,
                "stage3_max_live_parameters": ZERO_LIVE,
                "offload_optimizer": {"device": "cpu" if self.config.offload != "none" else "none"},
                "offload_param": {"device": "cpu" if self.config.offload == "all" else "none"},
            },
        }

    def microbatch(self, last: bool) -> AbstractContextManager:
        if self.config.zero_stage == 0:
            self.deepspeed.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        if self.config.zero_stage == 0:
            loss = self.scaler.scale(loss)
        else:
            self.deepspeed.optimizer.override_loss_scale(self.scaler.get_scale())
        self.deepspeed.backward(loss)

    def step(self, lr: float) -> float:
        if self.config.zero_stage == 0:
            return super().step(lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.deepspeed.step()  # all ranks skip it together when the norm is not finite
        norm = float(self.deepspeed.get_global_grad_norm())
        self._scale_after(finite=math.isfinite(norm))
        return norm

    def moment(self, slot: str, name: str) -> Tensor:
        if self.config.zero_stage == 0:
            return super().moment(slot, name)
        return safe_get_full_optimizer_state(self.model.get_parameter(name), slot)

    @torch.no_grad()
    def load_weights(self, get: Callable[[str], Tensor]) -> None:
        super().load_weights(get)
        if self.config.zero_stage == 0:
            return
        for p in self.model.parameters():
            safe_set_full_fp32_param(p, p.detach())  # the optimizer has a copy of its share

    @torch.no_grad()
    def load_optimizer(self, get: Callable[[str], Tensor], steps: int) -> None:
        if self.config.zero_stage == 0:
            super().load_optimizer(get, steps)
        elif steps:
            self._make_moments(self.deepspeed.optimizer.single_partition_of_fp32_groups, steps)
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
            for name, p in self.model.named_parameters():
                for slot in MOMENTS:
                    safe_set_full_optimizer_state(p, get(f"{slot}.{name}"), slot)

    def _make_moments(self, shares: list[Tensor], steps: int) -> None:
        """Adam's state of this rank's shares, which Adam itself would make in its first step."""
        for share in shares:
            step = torch.tensor(float(steps), device=share.device if self.optimizer.defaults["fused"] else "cpu")
            self.optimizer.state[share] = {slot: torch.zeros_like(share) for slot in MOMENTS} | {"step": step}

    def _scale_after(self, finite: bool) -> None:
        """What torch.amp.GradScaler.update does, for a gradient that it never saw."""
        if not self.scaler.is_enabled():
            return
        known = self.scaler.state_dict()
        known["_growth_tracker"] = known["_growth_tracker"] + 1 if finite else 0
        if not finite:
            known["scale"] *= known["backoff_factor"]
        elif known["_growth_tracker"] == known["growth_interval"]:
            known["scale"], known["_growth_tracker"] = known["scale"] * known["growth_factor"], 0
        self.scaler.load_state_dict(known)


class ZeRO3(ZeRO):
    """Stage 3: each rank stores N / R elements of every parameter, rounded up; layers are gathered as they run."""

    sharded = True

    def build(self, model: NetworkConfig) -> Network:
        """Each block is shared out once it is drawn: no rank ever holds more than one whole."""
        with self._sharing_out():
            return model.build()

    @contextmanager
    def _sharing_out(self) -> Iterator[None]:
        def share_out(parent: nn.Module, name: str, child: nn.Module) -> None:
            if isinstance(child, Block):
                deepspeed.zero.Init(module=child, config_dict_or_path=self.settings(), dtype=torch.float32)

        hook = register_module_module_registration_hook(share_out)
        try:
            yield
        finally:
            hook.remove()

    def shape_of(self, parameter: nn.Parameter) -> tuple[int, ...]:
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def weights(self) -> dict[str, Tensor]:
        return {name: p.ds_tensor.detach() for name, p in self.model.named_parameters()}

    def whole(self, name: str, stored: Tensor) -> Tensor:
        shape = self.shapes[name]
        return all_gather_flat(stored.to(self.device))[: math.prod(shape)].view(shape)

    def part(self, name: str, whole: Tensor) -> Tensor:
        size = -(-whole.numel() // self.num_ranks)
        mine = whole.flatten()[self.rank * size : (self.rank + 1) * size]
        return nn.functional.pad(mine, (0, size - len(mine)))

    def weights_changed(self) -> None:
        """DeepSpeed keeps the small parameters whole besides; they are gathered anew, as after its own steps."""
        optimizer = self.deepspeed.optimizer
        optimizer._partition_all_parameters()
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    @torch.no_grad()
    def load_weights(self, get: Callable[[str], Tensor]) -> None:
        SingleDevice.load_weights(self, get)
        for p in self.model.parameters():
            safe_set_local_fp32_param(p, p.ds_tensor)

    @torch.no_grad()
    def load_optimizer(self, get: Callable[[str], Tensor], steps: int) -> None:
        if steps:
            self._make_moments(self.deepspeed.optimizer.fp32_partitioned_groups_flat, steps)
            for name, p in self.model.named_parameters():
                for slot in MOMENTS:
                    safe_set_local_optimizer_state(p, self.part(name, get(f"{slot}.{name}")), slot)


def zero(stage: int) -> type[ZeRO]:
    """The engine of a stage."""
    return ZeRO3 if stage == 3 else ZeRO
