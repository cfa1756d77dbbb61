"""Everything that can go wrong, in the words of the domain; every message says what to do about it.

ClassmithError
├── InvalidRequest          malformed: cannot be read at all
│   └── BrokenImage         an image whose bytes do not decode
├── UnsupportedMedia        not an image format (or body type) we take
├── TooLarge                over a limit of size, pixels or count
├── ImpossibleTask          understood, but no classifier can be made of it
├── Unauthenticated         no key, or an unknown one
├── Forbidden               known who, and still not allowed
│   └── QuotaExceeded       no more tasks for this tenant
├── NotFound                no such task (or not this tenant's)
├── Conflict                the request contradicts an earlier one
│   └── ReusedKey           an Idempotency-Key that came before with another request
├── Busy                    a bounded queue is full; carries ``retry_after_s``
│   └── RateLimited         this caller sends faster than it may
├── Unavailable             draining, or a tier we need is down
│   └── MissingEncoder      the files of a text encoder are not here, or are not the right ones
├── MissingDevice           no such accelerator, or no ONNX Runtime for it
├── GenerationFailed        the generator could not make this task's network
├── CorruptBundle           stored weights fail their checksum (they are remade)
└── InvalidMetaModel        a meta-model folder that must not be loaded
"""

from __future__ import annotations


class ClassmithError(Exception):
    """The root. ``where`` points at the part of the request at fault, e.g. ``classes[2].images[0]``."""

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where

    def at(self, where: str) -> ClassmithError:
        """The same error, located: callers that know where a value came from say so."""
        self.where = where
        return self


class InvalidRequest(ClassmithError):
    """The request is malformed."""


class BrokenImage(InvalidRequest):
    """The bytes claim to be an image and do not decode."""


class UnsupportedMedia(ClassmithError):
    """Not a format we take."""


class TooLarge(ClassmithError):
    """Over a size, pixel or count limit."""


class ImpossibleTask(ClassmithError):
    """Understood, but no classifier can be made of it."""


class Unauthenticated(ClassmithError):
    """No key, or an unknown one."""


class Forbidden(ClassmithError):
    """Understood, and not allowed from there."""


class QuotaExceeded(Forbidden):
    """The tenant keeps as many tasks as it may."""


class NotFound(ClassmithError):
    """No such task for this tenant."""


class Conflict(ClassmithError):
    """The request contradicts an earlier one."""


class ReusedKey(Conflict):
    """An idempotency key that came before with another request."""


class Busy(ClassmithError):
    """A bounded queue is full; try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Busy):
    """The caller's requests come faster than its limit."""


class Unavailable(ClassmithError):
    """The service cannot answer now; another replica, or a later moment, can."""


class MissingEncoder(Unavailable):
    """The files of a text encoder are not here, or are not the right ones."""


class MissingDevice(ClassmithError):
    """The machine, or this build of ONNX Runtime, lacks the device that was asked for."""


class GenerationFailed(ClassmithError):
    """The generator could not make this task's network."""


class CorruptBundle(ClassmithError):
    """Stored weights fail their checksum."""


class InvalidMetaModel(ClassmithError):
    """A meta-model folder that must not be loaded."""
