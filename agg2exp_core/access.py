"""Who may enter a dashboard that other machines reach, and what each may do: the file that sets up its sign-in.

The file is Streamlit's own for secrets: [auth] names the provider (OpenID Connect), [roles] the people.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agg2exp_core.records import InputError, reason
from agg2exp_core.settings import is_own_address

VARIABLE = "AGG2EXP_SIGN_IN"
ROLES = {
    "viewer": "looks at everything",
    "reviewer": "looks, saves lists and gives verdicts",
    "operator": "does all that, starts and stops computations, uploads and removes",
}
"""Each may do what those before it may."""

CALLBACK = "/oauth2callback"
NEEDED = ("redirect_uri", "cookie_secret", "client_id", "client_secret", "server_metadata_url")
LEAST_SECRET = 32
"""Characters of what signs the cookie that says who somebody is."""


@dataclass(frozen=True)
class SignIn:
    """host: under which browsers reach the dashboard. people: role → e-mail addresses, or `@domain` for all of one."""

    host: str
    people: dict[str, tuple[str, ...]]

    def role(self, address: str) -> str | None:
        """The highest role of an e-mail address; None: who has it may not enter."""
        name, _, domain = _plain(address).rpartition("@")
        if not name or not domain:
            return None
        known = f"{name}@{domain}", f"@{domain}"
        return next((role for role in reversed(ROLES) if any(one in known for one in self.people[role])), None)


def allows(role: str | None, needed: str) -> bool:
    """Whether somebody of that role may do what the other is needed for."""
    order = [*ROLES]
    return role is not None and order.index(role) >= order.index(needed)


def sign_in_file() -> Path | None:
    """The file that AGG2EXP_SIGN_IN names, if any."""
    path = os.environ.get(VARIABLE)
    return Path(path) if path else None


def read_sign_in(path: Path) -> SignIn:
    """InputError: the file is not there, lacks a part, or lets nobody in."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("the sign-in file must be readable TOML", f"{path.name}: {reason(error)}") from None
    return SignIn(_checked_host(_section(content, "auth")), _people(_section(content, "roles")))


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name)
    if not isinstance(section, dict):
        raise InputError(f"the sign-in file must have a section [{name}]", ", ".join(content) or "an empty file")
    return section


def _checked_host(auth: dict[str, Any]) -> str:
    if missing := [name for name in NEEDED if not isinstance(auth.get(name), str) or not auth[name].strip()]:
        raise InputError("[auth] must name its provider whole", f"no {', '.join(missing)}", ", ".join(NEEDED))
    if len(auth["cookie_secret"]) < LEAST_SECRET:
        got = f"{len(auth['cookie_secret'])} characters"
        raise InputError(f"cookie_secret must be random and at least {LEAST_SECRET} characters long", got)
    for name in ("redirect_uri", "server_metadata_url"):
        parts = urlsplit(auth[name])
        if not parts.hostname or (parts.scheme != "https" and not is_own_address(parts.hostname)):
            raise InputError(f"{name} must be an https address", repr(auth[name])[:120])
    if urlsplit(auth["redirect_uri"]).path != CALLBACK:
        raise InputError(f"redirect_uri must end with {CALLBACK}", repr(auth["redirect_uri"])[:120])
    return str(urlsplit(auth["redirect_uri"]).hostname)


def _people(roles: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    if unknown := [name for name in roles if name not in ROLES]:
        raise InputError("a role must be a known one", ", ".join(unknown)[:120], ", ".join(ROLES))
    people: dict[str, tuple[str, ...]] = dict.fromkeys(ROLES, ())
    for role, listed in roles.items():
        if not isinstance(listed, list) or not all(isinstance(one, str) and _is_address(one) for one in listed):
            raise InputError(f"[roles] {role} must list e-mail addresses or @domains", repr(listed)[:120])
        people[role] = tuple(map(_plain, listed))
    if not any(people.values()):
        raise InputError("[roles] must let somebody in", "nobody", 'operator = ["ada@hospital.org"]')
    return people


def _plain(address: str) -> str:
    """Small letters, of ASCII alone: others become these, too, and would be taken for somebody else's."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in address.strip())


def _is_address(text: str) -> bool:
    name, sign, domain = text.strip().rpartition("@")
    return bool(sign and domain) and "@" not in name and not any(part.isspace() for part in text.strip())
