"""Names of cases that tell nobody who they are: the same for the same key, and not to be traced without it."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from agg2exp_core.records import InputError

KEY = re.compile("[0-9a-f]{64}")


def pseudonyms(key_file: Path) -> Callable[[str], str]:
    """case_id → `p-` and 16 digits of its HMAC-SHA-256 by the key (32 bytes, hexadecimal) in the file.

    A file that is not there is made, with a new key, to be read by its owner alone. InputError: it holds no key.
    """
    try:
        made = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    except OSError as error:
        raise InputError("the key of pseudonyms must be a file", f"{key_file}: {error.strerror}") from None
    else:
        with os.fdopen(made, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    try:
        key = key_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        key = ""
    if not KEY.fullmatch(key):
        raise InputError("the key of pseudonyms must be 64 hexadecimal digits", key_file.name)
    return lambda case_id: "p-" + hmac.digest(bytes.fromhex(key), case_id.encode(), "sha256").hex()[:16]
