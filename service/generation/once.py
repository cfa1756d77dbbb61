"""Bringing a task to its end, once, in this process; queued.py has it done by workers.

Everywhere the same steps: claim the task (others then wait, and take over if the lease runs out), run the generator,
encode, put the bundle, release the task as ready. A bundle can be made again from its recipe at any time, the same; so
what keeps a task from being made again passes, and leaves it queued, with the figures of the first time.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from models import bundle, errors, task
from models.generator import OnnxGenerator
from models.metamodel import MetaModel
from service.generation.leases import LEASE_S, existing, pauses, renewing
from service.generation.single_flight import SingleFlight
from service.ports import BundleStore, State, TaskRecord, TaskStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a generation ended; the fields of ``TaskStore.release``."""

    state: State
    generate_ms: float | None = None
    n_bytes: int | None = None
    error: str | None = None


class LocalGeneration:
    """A Generation in this process.

    A task that failed is tried again by the next ``run``; whoever waits while it fails gets the failed record.
    ``owner`` names this process among all that share the store; equal names would break the claim.
    """

    def __init__(
        self,
        tasks: TaskStore,
        bundles: BundleStore,
        meta_models: Mapping[str, MetaModel],
        *,
        owner: str | None = None,
        lease_s: float = LEASE_S,
        generator: OnnxGenerator | None = None,
    ) -> None:
        self._tasks = tasks
        self._bundles = bundles
        self._meta_models = meta_models
        self._owner = owner or uuid.uuid4().hex
        self._lease_s = lease_s
        self._generator = generator or OnnxGenerator()
        self._flights: SingleFlight[TaskRecord] = SingleFlight()

    def run(self, tenant: str, task_id: str) -> TaskRecord:
        """Block until the task is ready or failed, generating it if need be."""
        return self._flights.run((tenant, task_id), lambda: self._bring_to_end(tenant, task_id))

    def check_room(self) -> None:
        """Nothing waits here: whoever calls bounds the calls."""

    def close(self) -> None:
        """Finish what is being generated, stop waiting for others, take no more."""
        self._flights.close()

    def is_intact(self, record: TaskRecord) -> bool:
        """Whether the task's bundle is there, whole, and of the meta-model that is loaded now."""
        data = self._bundles.get(record.id)
        meta_model = self._meta_models.get(record.meta_model)
        try:
            header = bundle.decode(data).header if data is not None else None
        except errors.CorruptBundle:
            return False
        return header is not None and meta_model is not None and header.meta_model_digest == meta_model.digest

    def check_remake(self, record: TaskRecord) -> None:
        """Raise Unavailable, and leave the task alone, where it was made once and could not be made again here."""
        recipe = self._tasks.recipe(record.tenant, record.id) if record.generate_ms is not None else None
        if recipe is None:
            return
        try:
            self._meta_model(record, recipe)
        except errors.GenerationFailed as error:
            raise errors.Unavailable(error.message) from error

    def _bring_to_end(self, tenant: str, task_id: str) -> TaskRecord:
        waited = False
        for pause_s in pauses():
            record = existing(self._tasks, tenant, task_id)
            if record.state == "ready" and (waited or self.is_intact(record)):
                return record
            if record.state == "failed" and waited:
                return record
            if not waited:
                self.check_remake(record)
            if self._tasks.claim(tenant, task_id, owner=self._owner, lease_s=self._lease_s):
                self._hold(record)
            elif self._flights.closing.wait(pause_s):
                self._flights.check_open()
            waited = True
        raise AssertionError  # pauses() has no end

    def _hold(self, record: TaskRecord) -> None:
        """Generate under the lease just claimed, and end it."""
        tenant, task_id = record.tenant, record.id
        try:
            with renewing(self._tasks, tenant, task_id, owner=self._owner, lease_s=self._lease_s):
                outcome = self._outcome(tenant, task_id)
        except BaseException:
            self._release(tenant, task_id, Outcome("queued", record.generate_ms, record.bytes))
            raise
        self._release(tenant, task_id, outcome)

    def _outcome(self, tenant: str, task_id: str) -> Outcome:
        record = existing(self._tasks, tenant, task_id)
        if record.generate_ms is not None and self.is_intact(record):  # made between our look and our claim
            return Outcome("ready", record.generate_ms, record.bytes)
        try:
            return self._generate(record)
        except (errors.NotFound, errors.Unavailable):
            raise
        except errors.ClassmithError as error:
            message = error.message
        except Exception as error:
            log.exception("generating task %s failed", task_id)
            message = f"Making the classifier failed unexpectedly ({type(error).__name__}); see the service's log."
        if record.generate_ms is not None:  # the same was made of the same before: what is wrong now passes
            raise errors.Unavailable(message)
        return Outcome("failed", error=message)

    def _generate(self, record: TaskRecord) -> Outcome:
        started = time.perf_counter()
        recipe = self._tasks.recipe(record.tenant, record.id)
        if recipe is None:
            raise errors.NotFound("The task was deleted; create it again.")
        written = self._generator.generate(self._meta_model(record, recipe), task.decode_recipe(recipe))
        data = bundle.encode(written)
        self._bundles.put(record.id, data)
        return Outcome("ready", (time.perf_counter() - started) * 1000, len(data))

    def _meta_model(self, record: TaskRecord, recipe: bytes) -> MetaModel:
        """The very meta-model that the task's id was made with: another would write another network under this id."""
        found = self._meta_models.get(record.meta_model)
        if found is None:
            message = f"The meta-model {record.meta_model} is not installed here; install it, or create the task again."
            raise errors.GenerationFailed(message)
        expected = task.task_id(
            recipe,
            tenant=record.tenant,
            meta_model_digest=found.digest,
            preprocessing=found.manifest.preprocess.version,
        )
        if expected != record.id:
            remedy = "put the version back that it was made with, or create the task again"
            message = f"The meta-model {record.meta_model} has changed since the task was made; {remedy}."
            raise errors.GenerationFailed(message)
        return found

    def _release(self, tenant: str, task_id: str, outcome: Outcome) -> None:
        """End the lease; where the task was deleted meanwhile, its bundle goes, too."""
        released = self._tasks.release(
            tenant,
            task_id,
            owner=self._owner,
            state=outcome.state,
            generate_ms=outcome.generate_ms,
            bytes=outcome.n_bytes,
            error=outcome.error,
        )
        if not released and self._tasks.get(tenant, task_id) is None:
            self._bundles.delete(task_id)
