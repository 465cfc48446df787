"""Whether Hugging Face's hub can be reached, found out before its client tries for half a minute."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE_S = 3.0
_VARIABLE = "HF_HUB_ETAG_TIMEOUT"  # the client's own, for how long it waits for an answer
_PORTS = {"http": 80, "https": 443}


def hub() -> str:
    """The hub's address, or that of what stands in for it."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def patience_s() -> float:
    """How long to wait for a connection."""
    try:
        return float(os.environ[_VARIABLE])
    except (KeyError, ValueError):
        return PATIENCE_S


def hub_answers() -> bool:
    """Whether somebody takes a connection to the hub, or to the proxy on the way to it, within `patience_s`.

    Where nobody does, the client would try six times with ever longer pauses, which nothing can shorten; told
    to look at local files only, it answers at once.
    """
    if _offline():
        return False
    answered = threading.Event()
    threading.Thread(target=_connect, args=(answered,), daemon=True).start()
    # To look up a name may take longer than any time limit of a socket.
    return answered.wait(patience_s())


def silence_told(model: str) -> str:
    """One line for the user of a model that is neither here nor to be had."""
    if _offline():
        return (
            f"{model}: not among the models downloaded before, and HF_HUB_OFFLINE keeps from asking the hub"
        )
    return (
        f"{model}: not among the models downloaded before, and {hub()} did not answer within "
        f"{patience_s():g} s; {_VARIABLE}=30 waits longer, and a local folder needs no hub"
    )


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _connect(answered: threading.Event) -> None:
    way = urlsplit(hub())
    proxy = getproxies().get(way.scheme)
    if proxy is not None and not proxy_bypass(way.hostname or ""):
        way = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        address = (way.hostname or "", way.port or _PORTS.get(way.scheme, 443))
        socket.create_connection(address, timeout=patience_s()).close()
    except (OSError, ValueError):
        return
    answered.set()
