"""make chaos: faults at random moments under load, on real processes; counts, and what was lost or wrong.

    python -m tests.chaos [--trials N] [--seed N] [--only FAULT ...] [--json FILE]

A trial runs two creating and two predicting clients, does the harm at a random moment, takes its cause away, waits for
recovery, and holds every acknowledged task and every answer against a service that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic

from tests.chaos import faults
from tests.chaos.faults import Fault
from tests.chaos.ledger import Reference
from tests.chaos.sites import Site, embedded, shared
from tests.chaos.trials import Outcome, run_trial

DISK_BYTES = 8_000_000
N_TRIALS = 208
EMBEDDED: dict[str, Fault] = {
    "kill -9 of the service": faults.kill_service,
    "file-size limit": faults.file_size_limit,
    "corrupt bundle file": faults.corrupt_bundle_files,
    "corrupt database page": faults.corrupt_page,
    "clock jump": faults.clock_jump,
}
MOUNTED: dict[str, Fault] = {"full disk": faults.full_disk}
SHARED: dict[str, Fault] = {
    "kill -9 of a service": faults.kill_service,
    "kill -9 of a worker": faults.kill_worker,
    "kill -9 of Redis": faults.kill_redis,
    "Redis's disk full": faults.redis_disk_full,
    "Redis slow": faults.slow_redis,
    "cut off from Redis": faults.cut_off,
    "Redis silent (half-open)": faults.silent_redis,
    "Redis out of memory": faults.redis_out_of_memory,
    "corrupt bundle in Redis": faults.corrupt_bundle_keys,
    "clock jump, with Redis": faults.clock_jump,
}


def run(folder: Path, *, n_trials: int, seed: int, only: list[str] | None = None) -> Iterator[Outcome]:
    """Trials spread over all faults, each kind of site started once."""
    groups: list[tuple[dict[str, Fault], AbstractContextManager[Site]]] = [
        (EMBEDDED, embedded(folder / "embedded", with_clock=True)),
        (SHARED, shared(folder / "shared", with_clock=True)),
    ]
    if can_mount(folder):
        groups.append((MOUNTED, on_small_disk(folder / "mounted")))
    else:
        say("no full disk: mounting one needs root; the file-size limit stands in for it")
    chosen = [({n: f for n, f in these.items() if not only or n in only}, site) for these, site in groups]
    n_faults = sum(len(these) for these, _ in chosen)
    n_each = max(1, -(-n_trials // max(1, n_faults)))
    with embedded(folder / "reference") as fault_free:
        reference, seeds, rng = Reference(fault_free.services[0].http), count(), Random(seed)
        for these, site in chosen:
            if these:
                yield from _trials(these, site, reference, seeds, n_each, rng)


def _trials(
    these: dict[str, Fault], opened: AbstractContextManager[Site], reference: Reference, seeds: Iterator[int],
    n_each: int, rng: Random,
) -> Iterator[Outcome]:  # fmt: skip
    order = [name for name in these for _ in range(n_each)]
    rng.shuffle(order)
    known: dict[int, str] = {}
    with opened as site:
        for name in order:
            yield run_trial(name, these[name], site, reference, known, seeds, Random(rng.getrandbits(64)))


@contextmanager
def on_small_disk(folder: Path) -> Iterator[Site]:
    """An embedded site whose state lies on a disk of its own."""
    disk = _made(folder / "disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "classmith-chaos", str(disk)], check=True)
    try:
        with embedded(folder, state=disk) as site:
            yield site
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system (root, and allowed to)."""
    probe = _made(folder / "mount-probe")
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "probe", str(probe)], capture_output=True, check=False)
        return done.returncode == 0 and not subprocess.run(["umount", str(probe)], check=False).returncode
    except OSError:
        return False


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def table(outcomes: list[Outcome]) -> str:
    """A row for each fault, and one for all."""
    names = list(dict.fromkeys(one.fault for one in outcomes))
    head = (
        f"{'fault':26} {'trials':>6} {'tasks':>6} {'answers':>8} {'lost':>5} {'wrong':>6} {'told lost':>9} "
        f"{'5xx':>5} {'refused':>8} {'recovery p50 s':>15} {'max s':>6}"
    )
    rows = [_row(name, [one for one in outcomes if one.fault == name]) for name in names]
    return "\n".join([head, *rows, _row("all", outcomes)])


def _row(name: str, these: list[Outcome]) -> str:
    times = [one.recovery_s for one in these]
    return (
        f"{name:26} {len(these):6} {sum(o.n_acknowledged for o in these):6} {sum(o.n_answers for o in these):8} "
        f"{sum(o.n_lost for o in these):5} {sum(o.n_wrong for o in these):6} "
        f"{sum(o.n_reported_lost for o in these):9} {sum(o.n_server_errors for o in these):5} "
        f"{sum(o.n_refused for o in these):8} {median(times):15.2f} {max(times):6.2f}"
    )


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=N_TRIALS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="FAULT")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every process is ended, too
    outcomes: list[Outcome] = []
    began = monotonic()
    with tempfile.TemporaryDirectory(prefix="classmith-chaos-") as folder:
        for outcome in run(Path(folder), n_trials=args.trials, seed=args.seed, only=args.only):
            outcomes.append(outcome)
            say(f"{len(outcomes):4} {outcome.fault}: recovered in {outcome.recovery_s:.2f} s")
            for complaint in outcome.complaints[:5]:
                say(f"     {complaint}")
            if args.json:  # after each, so that a run that is broken off leaves its figures
                args.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    print(table(outcomes))
    print(f"{len(outcomes)} trials in {monotonic() - began:.0f} s, seed {args.seed}")
    return int(any(one.n_lost or one.n_wrong for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
