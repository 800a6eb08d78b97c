"""Which network a stage has: its config is read by the key `network`, which parallel_unet may leave out."""

import json
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from model.concat_unet import ConcatUNetConfig
from model.efficient_unet import EfficientUNetConfig
from model.network import NetworkConfig
from model.parallel_unet import ParallelUNetConfig

NETWORKS: dict[str, type[NetworkConfig]] = {
    "parallel_unet": ParallelUNetConfig,
    "efficient_unet": EfficientUNetConfig,
    "concat_unet": ConcatUNetConfig,
}


def network_of(values: Any) -> str:
    """The name of the network that these values, or this config, are of."""
    if isinstance(values, NetworkConfig):
        return values.network
    named = values.get("network", "parallel_unet") if isinstance(values, dict) else "parallel_unet"
    return named if isinstance(named, str) else json.dumps(named)


AnyNetworkConfig = Annotated[
    Annotated[ParallelUNetConfig, Tag("parallel_unet")]
    | Annotated[EfficientUNetConfig, Tag("efficient_unet")]
    | Annotated[ConcatUNetConfig, Tag("concat_unet")],
    Discriminator(network_of),
]
