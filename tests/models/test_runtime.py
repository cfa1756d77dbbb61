import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from models import graph, metamodel, runtime
from tests.service import tiny


@pytest.fixture(scope="module")
def meta_model(tmp_path_factory):
    return tiny.meta_model(tmp_path_factory.mktemp("zoo") / "tiny")


def session_of(meta_model, written, **options):
    n_classes = len(written.header.class_names)
    skeleton = graph.skeleton_for(meta_model.read("skeleton.onnx"), meta_model.manifest, n_classes)
    return runtime.make_session(skeleton, {**meta_model.base, **written.tensors}, **options)


@pytest.mark.parametrize("n_classes", [2, 20, 64])
def test_external_weights_give_what_the_reference_evaluator_gives(meta_model, n_classes):
    written = tiny.bundle(meta_model, n_classes=n_classes, seed=3)
    pixels = tiny.pixels(9)
    expected = ReferenceEvaluator(tiny.reference_model(meta_model, written)).run(["logits"], {"pixels": pixels})[0]
    logits = session_of(meta_model, written).run(["logits"], {"pixels": pixels})[0]
    assert logits.shape == (9, n_classes)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_every_weight_reaches_the_graph(meta_model):
    written = tiny.bundle(meta_model)
    pixels = tiny.pixels(4)
    before = session_of(meta_model, written).run(["logits"], {"pixels": pixels})[0]
    for name, tensor in written.tensors.items():
        changed = type(written)(written.header, {**written.tensors, name: tensor + 1})
        after = session_of(meta_model, changed).run(["logits"], {"pixels": pixels})[0]
        assert abs(after - before).max() > 1e-3, name


def test_weights_may_change_after_the_session_was_made(meta_model):
    written = tiny.bundle(meta_model)
    session = session_of(meta_model, written)
    pixels = tiny.pixels(4)
    before = session.run(["logits"], {"pixels": pixels})[0]
    for tensor in written.tensors.values():
        tensor[...] = np.nan
    np.testing.assert_array_equal(session.run(["logits"], {"pixels": pixels})[0], before)


def test_more_threads_give_the_same_answers(meta_model):
    written = tiny.bundle(meta_model)
    pixels = tiny.pixels(16)
    one, two = (session_of(meta_model, written, n_threads=n).run(["logits"], {"pixels": pixels})[0] for n in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6 * abs(one).max())


def test_a_session_with_threads_does_not_spin(meta_model):
    """In a fresh process; where its pool spins, this is 0.2 s even on a busy processor, and else 0.0002 s."""
    program = "import sys; from tests.models.test_runtime import idle_cpu_s; print(idle_cpu_s(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(meta_model.folder)]
    assert float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 0.05


def idle_cpu_s(folder):
    """Processor time of the pool's own threads just after runs: whatever else runs here takes none of it."""
    meta_model, earlier = metamodel.load(Path(folder)), thread_ids()
    session = session_of(meta_model, tiny.bundle(meta_model), n_threads=3)
    pool = thread_ids() - earlier
    assert len(pool) == 2
    total_s = 0.0
    for _ in range(10):
        session.run(["logits"], {"pixels": tiny.pixels(64)})
        before_s = sum(map(cpu_s, pool))
        threading.Event().wait(0.05)
        total_s += sum(map(cpu_s, pool)) - before_s
    return total_s


def thread_ids():
    return {int(name) for name in os.listdir("/proc/self/task")}


def cpu_s(thread_id):
    """Of any thread of this process: Linux derives the clock from its id (CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED)."""
    return time.clock_gettime((~thread_id << 3) | 6)


def test_a_weight_of_the_wrong_shape_is_refused(meta_model):
    written = tiny.bundle(meta_model)
    wrong = type(written)(written.header, {**written.tensors, "logits.bias": np.zeros(3, np.float32)})
    with pytest.raises(Exception, match="dimensions do not match"):
        session_of(meta_model, wrong)


def test_a_missing_weight_is_refused(meta_model):
    skeleton = meta_model.read("skeleton.onnx")
    with pytest.raises(Exception, match="weight"):
        runtime.make_session(skeleton, meta_model.base)


def test_providers_that_are_not_there_are_left_out():
    available = ort.get_available_providers()
    chosen = runtime.choose_providers(["NoSuchExecutionProvider", runtime.CUDA])
    assert chosen == [p for p in (runtime.CUDA,) if p in available] + [runtime.CPU]
    assert runtime.choose_providers() == [runtime.CPU]


@pytest.mark.parametrize("n", [1, 9])
def test_bound_to_a_device_a_graph_gives_the_same_answers(meta_model, n):
    """The processor stands in for the device; what is bound and copied is the same."""
    session, pixels = session_of(meta_model, tiny.bundle(meta_model)), tiny.pixels(n)
    expected = session.run(["logits"], {"pixels": pixels})[0]
    np.testing.assert_array_equal(runtime.run_bound(session, "logits", {"pixels": pixels}, "cpu"), expected)
    np.testing.assert_array_equal(runtime.run(session, "logits", {"pixels": pixels}), expected)


def test_bound_runs_do_not_disturb_each_other(meta_model):
    session = session_of(meta_model, tiny.bundle(meta_model))
    given = [tiny.pixels(n) for n in (1, 3, 8, 5)] * 20
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pixels: runtime.run_bound(session, "logits", {"pixels": pixels}, "cpu"), given))
    for logits, pixels in zip(found, given, strict=True):
        np.testing.assert_array_equal(logits, session.run(["logits"], {"pixels": pixels})[0])


def test_sessions_of_tasks_start_no_threads(meta_model):
    """A hundred sessions in a fresh process, where every thread counts."""
    program = (
        "import os, sys, pathlib; from models import metamodel, graph, runtime; from tests.service import tiny;"
        "meta = metamodel.load(pathlib.Path(sys.argv[1])); written = tiny.bundle(meta);"
        "skeleton = graph.skeleton_for(meta.read('skeleton.onnx'), meta.manifest, 20);"
        "weights = {**meta.base, **written.tensors}; make = lambda: runtime.make_session(skeleton, weights);"
        "first = make(); first.run(None, {'pixels': tiny.pixels(8)}); before = len(os.listdir('/proc/self/task'));"
        "rest = [make() for _ in range(100)]; [s.run(None, {'pixels': tiny.pixels(8)}) for s in rest];"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    command = [sys.executable, "-c", program, str(meta_model.folder)]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == 0


def test_a_session_runs_from_many_threads_at_once(meta_model):
    session = session_of(meta_model, tiny.bundle(meta_model))
    pixels = tiny.pixels(8)
    expected = session.run(["logits"], {"pixels": pixels})[0]
    wrong = []

    def run():
        for _ in range(20):
            if not np.array_equal(session.run(["logits"], {"pixels": pixels})[0], expected):
                wrong.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_exported_file_holds_no_weights(meta_model):
    model = onnx.load_model_from_string(meta_model.read("skeleton.onnx"))
    external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert {t.name for t in external} == set(meta_model.manifest.tensors)
    assert all(not t.raw_data and not t.float_data for t in external)
