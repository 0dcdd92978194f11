"""The command line, called as a user calls it."""

from __future__ import annotations

import pytest

from agg2exp_core import cli


def run(*words: object) -> int:
    """The exit code of `agg2exp …`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["agg2exp", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return int(stopped.value.code or 0)
