"""Networks in TensorFlow Lite's format, run by ai-edge-litert."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from data.estimators.weights import Unusable, Weights, read

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:  # an optional package
    Interpreter = None

INSTALL = "pip install -r requirements-photos.txt"


@lru_cache
def load(weights: Weights) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function from an input (H, W, 3) float32 to the network's outputs without their first axis.

    It runs on one CPU core: processes share the others.  Raises Unusable naming the command that brings what is
    missing, the package or the weights.
    """
    if Interpreter is None:
        raise Unusable(f"estimating poses and parts needs the package ai-edge-litert; {INSTALL}")
    network = Interpreter(model_content=read(weights), num_threads=1)
    network.allocate_tensors()
    source = network.get_input_details()[0]["index"]
    targets = [output["index"] for output in network.get_output_details()]

    def run(x: np.ndarray) -> list[np.ndarray]:
        network.set_tensor(source, x[None].astype(np.float32))
        network.invoke()
        return [network.get_tensor(target)[0] for target in targets]

    return run
