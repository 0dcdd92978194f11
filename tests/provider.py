"""A provider of OpenID Connect for tests: whoever asks is signed in as the person that the test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT = "explorer"


class Provider(ThreadingHTTPServer):
    """claims: what the next token says of who signs in."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.claims: dict[str, Any] = {}
        self.nonce = ""
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})

    @property
    def discovery(self) -> str:
        return f"{self.url}/.well-known/openid-configuration"

    def token(self) -> str:
        now = int(time.time())
        about = {"iss": self.url, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 300, "nonce": self.nonce}
        return jwt.encode({"alg": "RS256", "kid": "one"}, about | self.claims, self.key)


class _Answers(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        asked, url = urlsplit(self.path), self.server.url
        if asked.path == "/authorize":
            words = {name: values[0] for name, values in parse_qs(asked.query).items()}
            self.server.nonce = words["nonce"]
            self.send_response(302)
            back = urlencode({"code": "c", "state": words["state"]})
            self.send_header("Location", f"{words['redirect_uri']}?{back}")
            self.end_headers()
        elif asked.path == "/jwks":
            self._say({"keys": [self.server.key.as_dict(private=False)]})
        else:
            ends = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "jwks"}
            known = {name: f"{url}/{path}" for name, path in ends.items()}
            self._say({"issuer": url, "id_token_signing_alg_values_supported": ["RS256"], **known})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say({"access_token": "a", "token_type": "Bearer", "id_token": self.server.token()})

    def _say(self, content: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def provider() -> Iterator[Provider]:
    with Provider() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()
