"""Who is asking: a key's tenant, or the one local tenant where there are no keys.

Keys are kept and compared as digests, so that a comparison's time tells nothing of a key. Without keys, whoever can
connect is trusted, so requests that a web page elsewhere could make the user's browser send are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from models.errors import Forbidden, Unauthenticated
from service.settings import LOCAL_TENANT, Grant, is_loopback

REMEDY = "send an API key as `Authorization: Bearer KEY`"


@dataclass(frozen=True)
class Caller:
    """Who sent a request: what its key grants, and the key's digest (empty where there are no keys)."""

    grant: Grant
    key: bytes = b""

    @property
    def tenant(self) -> str:
        """Whose tasks it may use."""
        return self.grant.tenant


LOCAL = Caller(Grant(tenant=LOCAL_TENANT))


class Keyring:
    """Callers by the digests of their keys; without keys, everyone is the local tenant."""

    def __init__(self, keys: Mapping[str, Grant]) -> None:
        self._callers = {_digest(key): Caller(grant, _digest(key)) for key, grant in keys.items()}

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Who sent a request with these headers, named in lower case; raises Unauthenticated or Forbidden."""
        if not self._callers:
            _check_browser(headers.get("host", ""), headers.get("origin"))
            return LOCAL
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated(f"This service needs a key; {REMEDY}.", where="Authorization")
        caller = self._callers.get(_digest(key.strip()))
        if caller is None:
            raise Unauthenticated(f"This key is not known here; {REMEDY}.", where="Authorization")
        return caller


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@lru_cache(maxsize=1024)
def _check_browser(host: str, origin: str | None) -> None:
    """Refuse what came through a name on the internet (DNS rebinding), or from another site's page."""
    name = _name_in(host)
    if name is None or ("." in name and not is_loopback(name) and not name.endswith(".localhost")):
        shown = (name or host)[:100]
        remedy = "use http://127.0.0.1 or http://localhost, or set API keys to serve other names"
        raise Forbidden(f"Without API keys the service answers on this machine only, not as {shown!r}; {remedy}.")
    if origin is not None and origin.partition("://")[2] != host:
        raise Forbidden("A page of another site may not call this service; use a program, or the service's own page.")


def _name_in(host: str) -> str | None:
    """A Host header without its port; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return None
