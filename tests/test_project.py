"""The project as a whole: what it ships with, and what its two front doors promise."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import typer
from command import run
from pages import APP, opened, texts
from playwright.sync_api import Browser
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from agg2exp_core.cli import app
from agg2exp_core.settings import SHIPPED
from bench.browser import SERVE, free_port, started
from dashboard import start

PROJECT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "monai", "captum"}

IMPORT_ALL = """
import importlib, pkgutil, sys
import dashboard
names = [module.name for module in pkgutil.walk_packages(dashboard.__path__, "dashboard.")]
for name in names:
    importlib.import_module(name)
print(len(names), *sorted({name.partition(".")[0] for name in sys.modules}))
"""

RUN_APP = """
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("dashboard/app.py", default_timeout=60).run()
assert not app.exception, app.exception
print(1, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def command_names(group: typer.core.TyperGroup, prefix: str = "agg2exp") -> list[str]:
    """`agg2exp demo`, `agg2exp cohort add`, … as a user types them."""
    names = []
    for name, command in group.commands.items():
        words = f"{prefix} {name}"
        names += command_names(command, words) if isinstance(command, typer.core.TyperGroup) else [words]
    return names


def test_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, PROJECT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("script", [IMPORT_ALL, RUN_APP], ids=["imported", "run"])
def test_the_dashboard_loads_no_network(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env={"AGG2EXP_DATA": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    count, *loaded = done.stdout.split()
    assert int(count) > 0
    assert "streamlit" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_every_command_is_in_the_readme() -> None:
    front = typer.main.get_command(app)
    assert isinstance(front, typer.core.TyperGroup)
    names = command_names(front)
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert {"agg2exp demo", "agg2exp cohort add"} <= set(names)
    assert [name for name in names if not re.search(rf"{name}\b", readme)] == []


def test_every_file_that_the_readme_links_is_there() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (PROJECT / name).read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
        assert [link for link in links if not (PROJECT / link).exists()] == []


def test_the_dashboard_stays_on_this_machine_and_reports_nothing() -> None:
    config = tomllib.loads((PROJECT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert config["server"]["address"] == "127.0.0.1"
    assert config["browser"]["gatherUsageStats"] is False


def test_ctrl_c_is_answered_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def pressed(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agg2exp_core.cli.list_models", pressed)
    assert run("model", "list") == 130
    assert capsys.readouterr().err == "agg2exp: stopped; what was finished stays\n"


@pytest.mark.parametrize("option", ["--address", "--host"])
@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7", "example.org", ""])
def test_other_machines_are_let_in_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, address: str
) -> None:
    started: list[str] = []
    monkeypatch.setattr("os.execv", lambda _, words: started.extend(words))
    monkeypatch.setattr("os.chdir", lambda _: None)
    monkeypatch.setenv("AGG2EXP_DATA", str(tmp_path))
    assert run("dashboard", option, address) == 2 and not started
    assert "needs --sign-in FILE" in capsys.readouterr().err
    assert run("dashboard", option, address, "--insecure", "--host", "reading-room") == 0
    assert {f"--server.allowedHosts={address}", "--server.allowedHosts=reading-room"} <= set(started)
    assert f"--server.address={address if option == '--address' else '127.0.0.1'}" in started


def test_a_dashboard_that_others_reach_asks_nobody_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither when it starts nor when a page elsewhere tries to connect, which is turned back."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr("urllib.request._opener", None)  # which keeps the proxies that it first met
        with started([*SERVE, str(tmp_path), "--address", "0.0.0.0", "--insecure", "--port"], port) as running:
            stream = running.url.replace("http", "ws") + "/_stcore/stream"
            with pytest.raises(InvalidStatus, match="403"):
                connect(stream, origin=Origin("http://evil.org"), proxy=None)
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_other_machines_may_use_the_address_that_this_one_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started: list[str] = []
    monkeypatch.setattr("os.execv", lambda _, words: started.extend(words))
    monkeypatch.setattr("os.chdir", lambda _: None)
    monkeypatch.setattr("agg2exp_core.cli.own_address", lambda: "192.0.2.7")
    monkeypatch.setenv("AGG2EXP_DATA", str(tmp_path))
    assert run("dashboard", "--address", "0.0.0.0", "--insecure", "--port", 8600) == 0
    assert "http://192.0.2.7:8600" in capsys.readouterr().out and "--server.allowedHosts=192.0.2.7" in started


def test_a_dashboard_that_others_reach_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    badge = "Without sign-in"
    assert badge not in texts(opened(monkeypatch, tmp_path, APP, {}))
    for option, told in (("address", "0.0.0.0"), ("allowedHosts", ["127.0.0.1", "reading-room"])):
        known = {"server.address": "127.0.0.1", "server.allowedHosts": ["localhost"], f"server.{option}": told}
        monkeypatch.setattr("dashboard.about.st.get_option", known.__getitem__)
        assert badge in texts(opened(monkeypatch, tmp_path, APP, {}))


def test_a_link_to_every_page_is_told_where_the_server_is() -> None:
    pages = re.findall(r'url_path="(\w+)"', (PROJECT / "dashboard" / "app.py").read_text(encoding="utf-8"))
    assert tuple(pages) == start.PAGES
    for page, route in zip(pages, start.routes(), strict=True):
        html = route.endpoint(None).body.decode()
        assert route.path == f"/{page}" and html.index(start.TOLD) < html.index('type="module"')


@pytest.mark.browser
def test_the_browser_asks_no_other_host(chromium: Browser, server: Callable[[Path], str]) -> None:
    asked = set()
    page = chromium.new_page()
    page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
    page.goto(server(SHIPPED))
    page.locator(".js-plotly-plot").first.wait_for(timeout=60_000)
    assert asked == {"127.0.0.1"}


def test_requirements_are_pinned() -> None:
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-nnunet.txt", "requirements-oracle.txt"):
        lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
        wanted = [line for line in lines if line and not line.startswith(("#", "-r "))]
        assert wanted
        assert [line for line in wanted if not re.fullmatch(r"[A-Za-z0-9-]+==[\w.]+", line)] == []
