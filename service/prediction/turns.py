"""Who is next: tenants, their networks and their tasks take turns, and a batch is of one network.

Tenants take turns by deficit round robin (Shreedhar and Varghese, Efficient Fair Queuing, 1995) in predicted seconds of
work. Within a tenant the networks take turns, and the tasks of a shared network: a batch is filled from one task after
another, then from other tenants' tasks of that network.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from service.prediction.pieces import Batch, Piece, TaskQueue, TenantQueue
from service.prediction.sessions import Network, Session


class Turns:
    """Pieces that wait, by tenant, network and task. Not safe for several threads: the caller has a lock.

    ``turn_s``: the work of a tenant's turn. ``limit``: the most images of a batch of a kind of network.
    """

    def __init__(self, turn_s: float, limit: Callable[[str], int]) -> None:
        self._turn_s, self._limit = turn_s, limit
        self._tenants: OrderedDict[str, TenantQueue] = OrderedDict()
        self.n_images = 0
        """Images that wait."""

    @property
    def is_empty(self) -> bool:
        """Whether nobody has a turn to come."""
        return not self._tenants

    def add(self, session: Session, pieces: Sequence[Piece]) -> None:
        """At the end of the task's queue."""
        self._task(session).pieces.extend(pieces)
        for piece in pieces:
            self._count(session, len(piece.images), piece.cost_s)

    def remove(self, piece: Piece) -> None:
        """A piece that waits: it counts no longer, and its turn is passed over."""
        self._count(piece.request.session, -len(piece.images), -piece.cost_s)
        piece.images = ()

    def share(self, session: Session) -> tuple[TaskQueue, int]:
        """What waits for a task, and how many shares there would be with it.

        In turns a task gets one share in as many as there are tenants times this tenant's tasks, whatever others queue.
        """
        tenant = self._tenants.get(session.tenant) or TenantQueue()
        own = tenant.networks.get(session.network, OrderedDict()).get(session) or TaskQueue()
        return own, (len(self._tenants) + (not tenant.n_tasks)) * (tenant.n_tasks + (not own.pieces))

    def waiting(self, tenant: str, task_id: str) -> Session | None:
        """The session for which a tenant's task waits, if it does."""
        queue = self._tenants.get(tenant) or TenantQueue()
        sessions = (session for tasks in queue.networks.values() for session in tasks)
        return next((session for session in sessions if session.task_id == task_id), None)

    def next_batch(self) -> list[Piece]:
        """From the tenant whose turn it is, for the network whose turn it is there; empty where nothing waits."""
        while self._tenants:
            name, tenant = next(iter(self._tenants.items()))
            if len(self._tenants) == 1:
                tenant.deficit_s = max(0.0, tenant.deficit_s)  # time that nobody else wanted is not owed
            elif tenant.deficit_s <= 0:
                tenant.deficit_s += self._turn_s
                self._tenants.move_to_end(name)
                continue
            network = next(iter(tenant.networks))
            tenant.networks.move_to_end(network)
            if batch := self._fill(network, name):
                return batch
        return []

    def _fill(self, network: Network, first: str) -> list[Piece]:
        """A batch for one network: of the tenant whose turn it is, then of the others, as far as there is room."""
        session = next(iter(self._tenants[first].networks[network]))
        batch = Batch(self._limit(session.kind))
        for name in [first, *(name for name in self._tenants if name != first)]:
            for session in list(self._tenants[name].networks.get(network, ())):
                if not self._take_from(session, batch):
                    return batch.pieces
        return batch.pieces

    def _take_from(self, session: Session, batch: Batch) -> bool:
        """Move what fits of a task's pieces into the batch; False where there is no more room.

        Of one request only one piece, so that another free runner gets the next.
        """
        task, n_before, has_room = self._task(session), len(batch.pieces), True
        while task.pieces and has_room:
            piece = task.pieces[0]
            if batch.pieces and piece.request is batch.pieces[-1].request and piece.images:
                break
            has_room = batch.fits(piece)
            if has_room:
                self._begin(task.pieces.popleft(), batch)
        self._end_turn(session, was_served=len(batch.pieces) > n_before)
        return has_room

    def _begin(self, piece: Piece, batch: Batch) -> None:
        """Put a piece into the batch, unless it was withdrawn."""
        if not piece.images:
            return
        batch.pieces.append(piece)
        batch.n_images += len(piece.images)
        self._count(piece.request.session, -len(piece.images), -piece.cost_s)
        self._tenants[piece.request.session.tenant].deficit_s -= piece.cost_s

    def _end_turn(self, session: Session, *, was_served: bool) -> None:
        """A task with more to come goes to the end; what is empty goes altogether."""
        tenant = self._tenants[session.tenant]
        tasks = tenant.networks[session.network]
        if tasks[session].pieces:
            if was_served:
                tasks.move_to_end(session)
            return
        del tasks[session]
        tenant.n_tasks -= 1
        if not tasks:
            del tenant.networks[session.network]
        if not tenant.networks:
            del self._tenants[session.tenant]

    def _task(self, session: Session) -> TaskQueue:
        """The queue of a task, begun where there is none."""
        tenant = self._tenants.setdefault(session.tenant, TenantQueue())
        tasks = tenant.networks.setdefault(session.network, OrderedDict())
        if session not in tasks:
            tenant.n_tasks += 1
            tasks[session] = TaskQueue()
        return tasks[session]

    def _count(self, session: Session, n_images: int, cost_s: float) -> None:
        task = self._task(session)
        task.n_images += n_images
        task.cost_s += cost_s
        self.n_images += n_images
