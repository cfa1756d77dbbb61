import errno
import io
import json
import logging
import subprocess
import sys
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.errors import Unavailable
from service.observability import telemetry, tracing
from service.observability.telemetry import JsonFormatter, Metrics, choose_request_id, configure_logging, server_timing

QUEUE = ("redis_up", "job_queue_depth", "workers")


@pytest.fixture
def root_logger():
    """The root logger, put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def lines(root_logger):
    """JSON lines logged by the test, as objects."""
    stream = io.StringIO()
    configure_logging("debug", stream=stream)

    def written():
        root_logger.handlers[0].flush()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return written


def test_every_metric_has_the_namespace_and_base_units():
    families = list(text_string_to_metric_families(Metrics().render().decode()))
    names = {family.name for family in families}
    assert all(name.startswith("classmith_") for name in names)
    assert not any(name.endswith(("_ms", "_kb", "_mb", "_minutes")) for name in names)
    assert {"classmith_queue_depth", "classmith_queue_duration_seconds", "classmith_infer_duration_seconds",
            "classmith_decode_duration_seconds", "classmith_generation_duration_seconds", "classmith_shed",
            "classmith_session_create_seconds", "classmith_batch_size", "classmith_cache_hits",
            "classmith_process_resident_memory_bytes"} <= names  # fmt: skip


def test_no_metric_is_labelled_by_what_users_make():
    metrics = Metrics()
    labels = {label for metric in vars(metrics).values() for label in getattr(metric, "_labelnames", ())}
    assert labels == {"endpoint", "code", "reason", "tier", "outcome"}


def test_two_applications_count_apart():
    one, two = Metrics(), Metrics()
    one.shed.labels("deadline").inc()
    name, labels = "classmith_shed_total", {"reason": "deadline"}
    assert one.registry.get_sample_value(name, labels) == 1
    assert two.registry.get_sample_value(name, labels) == 0


def test_observed_times_come_out_of_the_exposition():
    metrics = Metrics()
    metrics.infer_seconds.observe(0.0003)
    text = metrics.render().decode()
    assert 'classmith_infer_duration_seconds_bucket{le="0.00025"} 0.0' in text
    assert 'classmith_infer_duration_seconds_bucket{le="0.0005"} 1.0' in text


def test_a_log_line_is_json_with_the_request_id(lines):
    token = telemetry.request_id.set("abc-1")
    try:
        logging.getLogger("x").info("a task was made", extra={"task_id": "t1", "duration_ms": 1.5})
    finally:
        telemetry.request_id.reset(token)
    logging.getLogger("x").warning("line\nbreak")
    first, second = lines()
    assert first["message"] == "a task was made"
    assert (first["level"], first["logger"], first["request_id"]) == ("info", "x", "abc-1")
    assert (first["task_id"], first["duration_ms"]) == ("t1", 1.5)
    assert first["time"].endswith("Z")
    assert "request_id" not in second


def test_a_log_line_says_which_trace_it_is_part_of(lines):
    with tracing.under({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}):
        logging.getLogger("x").info("inside")
    logging.getLogger("x").info("outside")
    inside, outside = lines()
    assert (inside["trace_id"], inside["span_id"]) == ("a" * 32, "b" * 16)
    assert "trace_id" not in outside


def test_what_may_happen_is_counted_from_nothing():
    metrics = Metrics()
    for reason in telemetry.SHED_REASONS:
        assert metrics.registry.get_sample_value("classmith_shed_total", {"reason": reason}) == 0
    assert metrics.registry.get_sample_value("classmith_generations_total", {"outcome": "failed"}) == 0


def test_a_scrape_says_how_the_shared_queue_stands():
    metrics = Metrics()
    metrics.watch_queue(lambda: 3, lambda: 2)
    found = {name: metrics.registry.get_sample_value(f"classmith_{name}") for name in QUEUE}
    assert found == {"redis_up": 1, "job_queue_depth": 3, "workers": 2}


def test_a_scrape_without_redis_says_so_and_gives_the_rest():
    def silent():
        raise Unavailable("Redis does not answer.")

    metrics = Metrics()
    metrics.watch_queue(silent, silent)
    found = {name: metrics.registry.get_sample_value(f"classmith_{name}") for name in QUEUE}
    assert found == {"redis_up": 0, "job_queue_depth": None, "workers": None}
    assert b"classmith_queue_depth 0.0" in metrics.render()


def test_fields_that_are_not_allowed_are_left_out(lines):
    logging.getLogger("x").info("a task was made", extra={"class_names": ["my secret"], "n_classes": 3})
    (line,) = lines()
    assert line["n_classes"] == 3
    assert "secret" not in json.dumps(line)


def test_an_exception_is_logged_without_its_message(lines):
    def refuse():
        try:
            raise ValueError("my secret class")
        except ValueError as error:
            raise RuntimeError("my secret class is not valid") from error

    try:
        refuse()
    except RuntimeError:
        logging.getLogger("x").exception("a request failed")
    (line,) = lines()
    assert line["exception"]["type"] == "RuntimeError"
    assert line["exception"]["cause"]["type"] == "ValueError"
    assert any(entry.endswith(" refuse") for entry in line["exception"]["stack"])
    assert "secret" not in json.dumps(line)


def test_a_suppressed_context_is_not_logged(lines):
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second") from None
    except ValueError:
        logging.getLogger("x").exception("failed")
    (line,) = lines()
    assert "cause" not in line["exception"]


def test_configuring_again_replaces_the_handler(root_logger):
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", stream=first)
    configure_logging("warning", stream=second)
    logging.getLogger("x").info("unheard")
    logging.getLogger("x").warning("heard")
    root_logger.handlers[0].flush()
    assert first.getvalue() == ""
    assert [json.loads(line)["message"] for line in second.getvalue().splitlines()] == ["heard"]
    assert isinstance(root_logger.handlers[0].formatter, JsonFormatter)


class Pipe(io.StringIO):
    """A reader that tells what it got, and is stuck until it is let go."""

    def __init__(self):
        super().__init__()
        self.open, self.got = threading.Event(), threading.Event()

    def write(self, text):
        assert self.open.wait(120)
        super().write(text)
        self.got.set()
        return len(text)


def test_lines_are_written_without_being_asked_for(root_logger):
    pipe = Pipe()
    pipe.open.set()
    configure_logging("info", stream=pipe)
    logging.getLogger("x").info("one")
    assert pipe.got.wait(120)
    assert json.loads(pipe.getvalue())["message"] == "one"


def test_a_stuck_reader_holds_nobody_up_and_costs_the_oldest_lines(root_logger, monkeypatch):
    monkeypatch.setattr(telemetry.LineWriter, "MAX_LINES", 100)
    monkeypatch.setattr(telemetry.LineWriter, "GATHER_S", 0.0)
    pipe = Pipe()
    configure_logging("info", stream=pipe)
    for i in range(1000):
        logging.getLogger("x").info("%d", i)
    pipe.open.set()
    root_logger.handlers[0].close()
    messages = [int(json.loads(line)["message"]) for line in pipe.getvalue().splitlines()]
    assert messages[-100:] == list(range(900, 1000))
    assert messages == sorted(set(messages))


class FullDisk(io.StringIO):
    """Takes nothing until there is room, as a full disk does."""

    def __init__(self):
        super().__init__()
        self.has_room, self.refused, self.got = False, threading.Event(), threading.Event()

    def flush(self):
        if not self.has_room:
            self.refused.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        self.got.set()


def test_where_the_disk_was_full_for_a_moment_logging_goes_on(root_logger):
    disk = FullDisk()
    configure_logging("info", stream=disk)
    logging.getLogger("x").info("while it is full")
    assert disk.refused.wait(120)
    disk.has_room = True
    logging.getLogger("x").info("afterwards")
    assert disk.got.wait(120)
    assert json.loads(disk.getvalue().splitlines()[-1])["message"] == "afterwards"


def test_what_was_logged_last_is_written_at_the_end_of_the_process():
    program = (
        "import logging; from service.observability.telemetry import configure_logging; configure_logging();"
        "logging.getLogger('x').error('the last words')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(ended.stderr)["message"] == "the last words"


@pytest.mark.parametrize("sent", ["abc", "A1._-", "x" * 64])
def test_a_plain_request_id_is_kept(sent):
    assert choose_request_id(sent) == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 65, "a b", "a\nb", 'a"b', "é", "../../etc"])
def test_any_other_request_id_is_replaced_by_a_new_one(sent):
    first, second = choose_request_id(sent), choose_request_id(sent)
    assert first != second
    assert sent != first
    assert len(first) == 32


def test_server_timing_lists_names_and_milliseconds():
    assert server_timing(queue=0.4123, run=1.0) == "queue;dur=0.41, run;dur=1.00"
    assert server_timing() == ""
