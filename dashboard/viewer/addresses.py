"""Where the browser gets volumes and code: HTTP routes beside Streamlit's own, volumes behind signed tokens.

A token names one parcel and when it expires, and nothing else: no path, no case. It is signed with a key that
lives and dies with the server's process. Whatever is wrong with a token, the answer is 403 without a word.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path

import streamlit as st
from isal import igzip
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from streamlit.web.server.starlette.starlette_websocket import is_host_allowed

from dashboard.viewer import fetch
from dashboard.viewer.parcels import Parcel

LIFETIME = 600
"""Seconds that a token is valid: long enough to load a page, too short to be passed on."""

STRIDE = 300

KEPT_BYTES = 256 * 2**20
KEPT_PARCELS = 24

CODE = {path.name: path for path in fetch.WEB.glob("*.js")}
"""The viewer's own modules. They are few and small, so their address carries one hash of them all."""


class Shelf:
    """Parcels by id, made in the background as soon as they are offered, and kept while there is room."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self.serving = False
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._parcels: OrderedDict[str, Parcel] = OrderedDict()
        self._made: OrderedDict[str, bytes] = OrderedDict()
        self._waiting: set[str] = set()  # ids offered and not made yet
        self._lock = threading.Lock()
        # One at a time: two requests for one volume must not both compress it, and two cores serve no more.
        self._making = threading.Lock()
        self._ahead = ThreadPoolExecutor(1, "viewer")

    def token(self, parcel: Parcel) -> str:
        """Put the parcel on the shelf; a token for it, good for LIFETIME seconds and up to STRIDE more."""
        with self._lock:
            new = parcel.id not in self._parcels
            self._parcels[parcel.id] = parcel
            self._parcels.move_to_end(parcel.id)
            if new:
                self._waiting.add(parcel.id)
            # What waits stays: many users at once must not push each other's volumes off before they are made.
            ready = [name for name in self._parcels if name not in self._waiting and name != parcel.id]
            for name in ready[: max(len(self._parcels) - KEPT_PARCELS, 0)]:
                del self._parcels[name]
        if new:  # ready by the time that the browser has drawn the page around it
            self._ahead.submit(self._content, parcel.id)
        # Ends on whole strides, so that a page drawn again soon has the same addresses and nothing to load.
        ends = math.ceil((self._clock() + LIFETIME) / STRIDE) * STRIDE
        text = bytes.fromhex(parcel.id) + ends.to_bytes(8, "big")
        return urlsafe_b64encode(text + self._signature(text)).decode()

    def collect(self, token: str) -> bytes | None:
        """The bytes that a valid token names; None for any other token."""
        text = self._opened(token)
        if text is None or int.from_bytes(text[32:], "big") < self._clock():
            return None
        return self._content(text[:32].hex())

    def _content(self, name: str) -> bytes | None:
        with self._making:
            with self._lock:
                content, parcel = self._made.pop(name, None), self._parcels.get(name)
            if content is None:
                if parcel is None:
                    return None
                try:
                    content = parcel.make()
                finally:
                    with self._lock:
                        self._waiting.discard(name)
            with self._lock:
                self._waiting.discard(name)
                self._made[name] = content
                while len(self._made) > 1 and sum(map(len, self._made.values())) > KEPT_BYTES:
                    self._made.popitem(last=False)
        return content

    def _opened(self, token: str) -> bytes | None:
        """What a token says, if this shelf signed it: 32 bytes of id, 8 of expiry."""
        try:
            raw = urlsafe_b64decode(token.encode("ascii"))
        except ValueError:
            return None
        text, signature = raw[:-32], raw[-32:]
        valid = len(text) == 40 and hmac.compare_digest(signature, self._signature(text))
        # Base64 has several spellings of the same bytes; only the one that was given counts.
        return text if valid and urlsafe_b64encode(raw).decode() == token else None

    def _signature(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, "sha256")


@st.cache_resource(show_spinner=False)
def shelf() -> Shelf:
    """The process's one shelf. Kept by Streamlit, so that it outlives a reload of this module."""
    return Shelf()


def routes() -> list[Route]:
    """The routes for `st.App`. From then on pages may point the browser to them."""
    shelf().serving = True
    return [
        Route("/viewer/volumes/{token}", _volume),
        Route(f"/viewer/{fetch.MODULE.name}", _niivue),
        Route("/viewer/code/{digest}/{name}", _code),
    ]


def volume_address(parcel: Parcel) -> str:
    return f"/viewer/volumes/{shelf().token(parcel)}"


def niivue_address() -> str:
    return f"/viewer/{fetch.MODULE.name}"


def code_address() -> str:
    """The folder of the viewer's own modules. Another content has another address, so browsers may keep them."""
    digest = hashlib.sha256(b"".join(CODE[name].read_bytes() for name in sorted(CODE))).hexdigest()
    return f"/viewer/code/{digest[:16]}/"


def _guarded(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """Answer hosts that the dashboard itself answers, against pages elsewhere that rebind their name to this one."""

    @wraps(answer)
    def guarded(request: Request) -> Response:
        if not is_host_allowed(request.headers.get("host")):
            return Response(status_code=403)
        response = answer(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    return guarded


@_guarded
def _volume(request: Request) -> Response:
    content = shelf().collect(request.path_params["token"])
    if content is None:
        return Response(status_code=403)
    # Patients' images: a token that expired must not be outlived by a copy in the browser's cache.
    headers = {"Cache-Control": "no-store"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"  # the browser decompresses beside the page, not in it
    else:
        content = igzip.decompress(content)
    return Response(content, media_type="application/octet-stream", headers=headers)


@_guarded
def _niivue(request: Request) -> Response:
    if not fetch.MODULE.is_file():
        return Response(status_code=404)
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return _script(fetch.MODULE)
    return _script(fetch.MODULE.with_suffix(".js.gz"), {"Content-Encoding": "gzip"})


@_guarded
def _code(request: Request) -> Response:
    path = CODE.get(request.path_params["name"])
    return Response(status_code=404) if path is None else _script(path)


def _script(path: Path, headers: dict[str, str] | None = None) -> Response:
    """A module. Its address names its version, so a browser need never ask again."""
    lasting = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(path.read_bytes(), media_type="text/javascript", headers=lasting | (headers or {}))
