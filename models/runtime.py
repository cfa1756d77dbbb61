"""ONNX Runtime sessions that start no threads and hold no more memory than they use.

Left alone, ONNX Runtime gives every session a pool of spinning threads as wide as the host (whatever the container's
quota) and an arena that never shrinks; with many small sessions that starves the process. Here the calling thread
does the work, and parallelism comes from the service's own few runner threads. (A global pool, the other way to share
threads, is not used: up to 1.31 its threads spin, Python has no switch for that, and once it exists no session may have
threads of its own.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ERRORS_ONLY = 3


def make_session(
    model: bytes,
    weights: Mapping[str, NDArray[np.generic]],
    *,
    providers: Sequence[str] | None = None,
    n_threads: int = 1,
) -> ort.InferenceSession:
    """A graph and the weights it keeps external -> a session; the arrays are copied and may be dropped afterwards.

    Weights go in with ``add_external_initializers``, before any optimisation. (``add_initializer`` over baked weights
    is silently wrong: constants already folded keep their old values.) ``providers``: those wanted, best first; the
    ones this machine lacks are left out, and the processor is always the last resort. ``n_threads`` counts the
    caller; over 1 gives this session its own pool, without spinning: for the few large graphs, never for those of
    tasks. Raises ONNX Runtime's exceptions where the graph needs weights that are not given, or of other shapes.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False  # it would cache one plan of memory for every batch size seen
    options.log_severity_level = ERRORS_ONLY
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor)) for tensor in weights.values()]
        options.add_external_initializers(list(weights), values)
    return ort.InferenceSession(model, options, providers=choose_providers(providers))


def choose_providers(wanted: Sequence[str] | None = None) -> list[str]:
    """Those of ``wanted`` that this build of ONNX Runtime has, in order, then the processor."""
    available = set(ort.get_available_providers())
    return [p for p in wanted or () if p in available and p != CPU] + [CPU]
