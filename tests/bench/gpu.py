"""ResNet-18 at 224 px on a GPU: the service beside the raw loop, both by IO binding; without one, the bench says so."""

from __future__ import annotations

from models.device import providers_on
from models.errors import MissingDevice
from tests.bench.measure import Bench, Figures, write_images
from tests.bench.server import service
from tests.bench.yardsticks import Served, beside_raw, create, photographs


def gpu(bench: Bench) -> Figures:
    try:
        providers_on("cuda")
    except MissingDevice as error:
        return {"skipped": f"no GPU here ({error.message})"}
    subject, model = photographs(bench.folder), bench.folder / "gpu.onnx"
    bodies = write_images(bench.folder / "gpu-images", subject.images)
    with service(bench.folder / "gpu", META_MODELS=str(subject.meta_models), DEVICE="cuda") as server:
        ours = Served(server, create(server, subject, model), bodies, subject.media_type)
        return beside_raw(bench, ours, model, device="cuda")


TABLE = (
    ("ResNet-18 on the GPU: a raw loop", "gpu", "raw_per_s", "{:,.0f} a second", ""),
    ("ResNet-18 on the GPU: the service, 16 connections", "gpu", "per_s", "{:,.0f} a second", ""),
    ("of the raw loop", "gpu", "of_raw", "{:.0%}", "90 % or more"),
    ("ResNet-18 on the GPU: the service, p99", "gpu", "p99_ms", "{:.1f} ms", ""),
    ("ResNet-18 on the GPU: one connection, p50 over the raw call", "gpu", "overhead_ms", "{:.2f} ms", "under 1.5 ms"),
)
