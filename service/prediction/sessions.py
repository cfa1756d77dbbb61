"""What answers for a task: the network shared by all tasks of its meta-model where there is one, or one of its own.

A shared network is made once; a task's session is then its weights alone, ready at once, and its images run together
with those of other tasks. A network of its own takes milliseconds to make and is the faster one for a busy task, unless
tasks write their logits layer alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models import device, quantised
from models.bundle import Bundle, BundleHeader, Tensors
from models.errors import CorruptBundle, Unavailable
from models.graph import INPUT, LOGITS, skeleton_for
from models.metamodel import MetaModel
from models.mixed import MixedNetwork, mixed_network
from models.preprocess import PreprocessSpec
from models.runtime import make_session, run

OVERHEAD_BYTES = 250_000
"""What ONNX Runtime keeps for a session besides its weights (measured, x86-64, version 1.31)."""
SHARING_OVERHEAD_BYTES = 8_000
"""What a session on a shared network takes besides its weights: class names, arrays and dictionaries."""


class Network(Protocol):
    """Runs images of the tasks it serves together; MixedNetwork and OwnNetwork do."""

    def run(self, tasks: Sequence[Tensors], pixels: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Pixels ``(N, H, W, C)`` and each row's task -> N times logits ``(K,)``; a row depends on its image alone."""


@dataclass(frozen=True, eq=False)
class OwnNetwork:
    """The network of one task, its weights in it."""

    network: ort.InferenceSession

    def run(self, tasks: Sequence[Tensors], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """N times logits ``(K,)``; whose task each row is, is known."""
        return list(run(self.network, LOGITS, {INPUT: pixels}))


@dataclass(frozen=True, eq=False)
class Session:
    """One task, ready to run; ``n_bytes`` is what it takes of memory. Safe to run from many threads.

    ``tensors``: what the task brings to a shared network. ``promote``: makes the faster session of its own, where
    there is one.
    """

    tenant: str
    task_id: str
    header: BundleHeader
    preprocess: PreprocessSpec
    n_bytes: int
    network: Network
    tensors: Tensors = field(default_factory=dict)
    promote: Callable[[], Session] | None = None

    @property
    def kind(self) -> str:
        """Sessions of one kind cost the same to run."""
        return f"{self.header.meta_model}, shared" if self.tensors else self.header.meta_model

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels ``(N, H, W, C)`` uint8 -> logits ``(N, K)``; each row depends on its own image alone."""
        return np.asarray(self.network.run([self.tensors] * len(pixels), pixels))


@dataclass(frozen=True)
class Placement:
    """How networks of tasks are run.

    ``providers``: for those that are large enough. ``int8``: quantised skeletons by the digest of their meta-model,
    whose networks are run in 8-bit integers where it is the processor that runs them.
    """

    providers: Sequence[str] = ()
    int8: Mapping[str, bytes] = field(default_factory=dict)


ON_THE_PROCESSOR = Placement()


def build_session(
    meta_model: MetaModel, bundle: Bundle, tenant: str, task_id: str, placement: Placement = ON_THE_PROCESSOR
) -> Session:
    """A session with a network of its own; raises as ``check``."""
    check(meta_model, bundle)
    graph = skeleton_for(meta_model.read("skeleton.onnx"), meta_model.manifest, len(bundle.header.class_names))
    weights = meta_model.weights(bundle.tensors)
    providers = device.worth_it(weights.values(), placement.providers)
    if not providers and (skeleton := placement.int8.get(meta_model.digest)):
        graph = skeleton_for(skeleton, meta_model.manifest, len(bundle.header.class_names))
        weights = quantised.weights(graph, weights)
    n_bytes = len(graph) + sum(tensor.nbytes for tensor in weights.values()) + OVERHEAD_BYTES
    network = OwnNetwork(make_session(graph, weights, providers=providers))
    return Session(tenant, task_id, bundle.header, meta_model.manifest.preprocess, n_bytes, network)


class SharedNetworks:
    """The shared network of each meta-model that can have one, made at its first task. Blocking and thread-safe.

    ``placement``: of these, and of the networks of single tasks.
    """

    def __init__(self, placement: Placement = ON_THE_PROCESSOR) -> None:
        self._placement = placement
        self._lock = threading.Lock()
        self._found: dict[str, MixedNetwork | None] = {}

    def session(self, meta_model: MetaModel, bundle: Bundle, tenant: str, task_id: str) -> Session:
        """A session on the shared network, else one of its own; raises as ``check``."""
        check(meta_model, bundle)
        network = self._network(meta_model)
        if network is None:
            return build_session(meta_model, bundle, tenant, task_id, self._placement)
        n_bytes = sum(tensor.nbytes for tensor in bundle.tensors.values()) + SHARING_OVERHEAD_BYTES
        preprocess = meta_model.manifest.preprocess
        own = None
        if not network.writes_heads_alone:
            own = partial(build_session, meta_model, bundle, tenant, task_id, self._placement)
        return Session(tenant, task_id, bundle.header, preprocess, n_bytes, network, bundle.tensors, own)

    def _network(self, meta_model: MetaModel) -> MixedNetwork | None:
        with self._lock:
            if meta_model.digest not in self._found:
                self._found[meta_model.digest] = mixed_network(meta_model, self._placement.providers)
            return self._found[meta_model.digest]


def check(meta_model: MetaModel, bundle: Bundle) -> None:
    """Whether a bundle is of this meta-model: Unavailable where another version wrote it, CorruptBundle where none did.

    A task's id holds the digest of its meta-model, so another version's bundle is right for its task: a replica that
    has that version answers.
    """
    if bundle.header.meta_model_digest != meta_model.digest:
        message = f"The task was made with another version of {meta_model.name} than is loaded here"
        raise Unavailable(f"{message}; put that version back, or create the task again.")
    specs, n_classes = meta_model.manifest.tensors.items(), len(bundle.header.class_names)
    expected = {name: spec.shape_for(n_classes) for name, spec in specs if spec.source == "bundle"}
    if {name: tensor.shape for name, tensor in bundle.tensors.items()} != expected:
        raise CorruptBundle("A bundle's tensors are not those of its meta-model; it is made again from its recipe.")
