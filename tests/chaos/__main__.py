"""make chaos: faults at random moments under load, on real processes; counts, and what was lost or wrong.

    python -m tests.chaos [--trials N] [--seed N] [--only FAULT ...] [--save]

A trial runs two creating and two predicting clients, does the harm at a random moment, takes its cause away, waits for
recovery, and holds every acknowledged task and every answer against a service that nothing happened to. --save keeps
the counts in tests/chaos/results.json, from which the README's table is made.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from random import Random
from time import monotonic

from tests.chaos import faults, figures
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


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=N_TRIALS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="FAULT")
    parser.add_argument("--save", action="store_true")
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
    counts = figures.counts(outcomes)
    print(figures.as_text(counts))
    print(f"{len(outcomes)} trials in {monotonic() - began:.0f} s, seed {args.seed}")
    if args.save:
        figures.keep("faults", counts)
    return int(any(one.n_lost or one.n_wrong for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
