"""What GPUs offer: memory, and dense TFLOP/s of their matrix units."""

from typing import NamedTuple


class GPU(NamedTuple):
    memory_gib: float  # what the driver shows as total
    half_tflops: float  # bf16 with fp32 sums, dense; V100: fp16
    fp32_tflops: float  # without TF32, as engine.precision=fp32 computes
    bf16: bool = True  # in its matrix units


# Speed: NVIDIA's data sheets of each product (where they print figures "with sparsity", half of them) and, for the
# GeForce cards, the GA102 and AD102 architecture papers' tables.  H100 and H200 are the SXM boards.
# Memory: nvidia-smi's "Total" in MiB / 1024, which is below the name's where ECC or firmware keep some.
GPUS = {
    "v100-32": GPU(32.0, 125, 15.7, bf16=False),  # Tesla V100 data sheet
    "a100-40": GPU(40.0, 312, 19.5),  # A100 data sheet
    "a100-80": GPU(80.0, 312, 19.5),  # A100 data sheet
    "h100": GPU(79.6, 989, 67),  # H100 data sheet: 80 GB
    "h200": GPU(140.4, 989, 67),  # H200 data sheet: 141 GB
    "b200": GPU(179.0, 2250, 75),  # HGX B200 data sheet, an eighth of the board: 180 GB
    "l40s": GPU(45.0, 362, 91.6),  # L40S data sheet: 48 GB, ECC on
    "l4": GPU(22.5, 121, 30.3),  # L4 data sheet: 24 GB, ECC on
    "a6000": GPU(48.0, 155, 38.7),  # RTX A6000 data sheet
    "a10": GPU(22.5, 125, 31.2),  # A10 data sheet: 24 GB, ECC on
    "rtx4090": GPU(24.0, 165, 82.6),  # Ada (AD102) architecture paper, table 2
    "rtx3090": GPU(24.0, 71, 35.6),  # Ampere (GA102) architecture paper, table 2
}


def find_gpu(name: str) -> GPU:
    """The GPU of a name such as h100, RTX-4090 or A100_80.  Raises ValueError listing the known."""
    plain = {known.replace("-", ""): gpu for known, gpu in GPUS.items()}
    wanted = name.lower().removeprefix("nvidia").translate(str.maketrans("", "", "-_ ")).removesuffix("gb")
    if wanted not in plain:
        raise ValueError(f"{name!r} is not in the table of launch/gpus.py; known are {', '.join(GPUS)}")
    return plain[wanted]
