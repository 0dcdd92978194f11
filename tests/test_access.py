"""Sign-in and roles: who gets in, what each may do, and what is refused before the dashboard starts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from command import run
from pages import APP, opened, texts, watched
from playwright.sync_api import Browser, Page, expect
from provider import CLIENT, Provider, provider
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.testing.v1 import AppTest
from websockets.sync.client import connect

from agg2exp_core.access import ROLES, VARIABLE, allows, read_sign_in
from agg2exp_core.records import InputError
from agg2exp_core.settings import SHIPPED
from agg2exp_core.store.lists import CaseList, list_lists, save_list
from bench.browser import SERVE, free_port, started
from dashboard import access, uploads

AUTH = {
    "redirect_uri": "https://explorer.hospital.org/oauth2callback",
    "cookie_secret": "0123456789abcdef0123456789abcdef",
    "client_id": CLIENT,
    "client_secret": "secret",
    "server_metadata_url": "https://login.hospital.org/.well-known/openid-configuration",
}
PEOPLE = {"viewer": ["@hospital.org"], "reviewer": ["Ada@hospital.org"], "operator": ["it@other.org"]}


def written(folder: Path, auth: dict[str, object] = AUTH, roles: dict[str, object] | None = None) -> Path:
    """The sign-in file; what it names is text or lists, which TOML writes as Python does."""
    path = folder / "sign-in.toml"
    sections = {"auth": auth, "roles": PEOPLE if roles is None else roles}
    path.write_text(
        "".join(
            f"[{name}]\n" + "".join(f"{key} = {value!r}\n" for key, value in section.items())
            for name, section in sections.items()
        )
    )
    return path


# ---- the file --------------------------------------------------------------------------------------


def test_a_person_has_the_highest_role_that_names_them_or_their_domain(tmp_path: Path) -> None:
    known = read_sign_in(written(tmp_path))
    asked = {
        "ada@hospital.org": "reviewer", "ADA@Hospital.ORG ": "reviewer", "bob@hospital.org": "viewer",
        "it@other.org": "operator", "bob@other.org": None, "hospital.org": None, "@hospital.org": None, "": None,
        "x@hospital.org@evil.org": None, "bob@hospital.org.evil.org": None, "bob@sub.hospital.org": None,
    }  # fmt: skip
    assert {address: known.role(address) for address in asked} == asked
    assert known.host == "explorer.hospital.org"


def test_letters_that_only_look_alike_without_their_case_are_others(tmp_path: Path) -> None:
    known = read_sign_in(written(tmp_path, AUTH, {"viewer": ["@hospital.org"], "operator": ["Sko@other.org"]}))
    assert known.role("SKO@OTHER.ORG") == "operator"
    assert known.role("\u017f\u212ao@other.org") is None and known.role("eve@ho\u017fpital.org") is None


def test_each_role_may_do_what_those_before_it_may() -> None:
    table = [[allows(role, needed) for needed in ROLES] for role in (None, *ROLES)]
    assert table == [[False] * 3, [True, False, False], [True, True, False], [True] * 3]


@pytest.mark.parametrize(
    ("auth", "roles", "said"),
    [
        ({}, PEOPLE, "no redirect_uri, cookie_secret"), (AUTH | {"client_id": 3}, PEOPLE, "no client_id"),
        (AUTH | {"cookie_secret": "short"}, PEOPLE, "at least 32 characters long; got 5"),
        (AUTH | {"redirect_uri": "http://explorer.org/oauth2callback"}, PEOPLE, "redirect_uri must be an https"),
        (AUTH | {"redirect_uri": "https://explorer.org/"}, PEOPLE, "must end with /oauth2callback"),
        (AUTH | {"server_metadata_url": "http://login.org/x"}, PEOPLE, "server_metadata_url must be an https"),
        (AUTH, {}, "must let somebody in"), (AUTH, {"operator": []}, "must let somebody in"),
        (AUTH, {"admin": ["a@b.org"]}, "role must be a known one"), (AUTH, {"operator": "a@b.org"}, "must list e-mail"),
        (AUTH, {"operator": ["everybody"]}, "must list e-mail"), (AUTH, {"viewer": ["*"]}, "must list e-mail"),
        (AUTH, {"viewer": ["a b@c.org"]}, "must list e-mail"), (AUTH, {"viewer": ["@"]}, "must list e-mail"),
    ],
)  # fmt: skip
def test_a_file_that_would_not_serve_stops_the_start_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    auth: dict[str, object], roles: dict[str, object], said: str,
) -> None:  # fmt: skip
    commands = starts(monkeypatch, tmp_path)
    assert run("dashboard", "--sign-in", written(tmp_path, auth, roles)) == 2 and not commands
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and AUTH["cookie_secret"] not in line


@pytest.mark.parametrize("content", [None, b"", b"[auth", b"\xff", b"auth = 1"])
def test_a_file_that_cannot_be_read_stops_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    commands, path = starts(monkeypatch, tmp_path), tmp_path / "sign-in.toml"
    if content is not None:
        path.write_bytes(content)
    assert run("dashboard", "--sign-in", path) == 2 and not commands


def test_other_machines_come_in_by_sign_in_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands, path = starts(monkeypatch, tmp_path), written(tmp_path)
    assert run("dashboard", "--address", "0.0.0.0", "--sign-in", path, "--insecure") == 2 and not commands
    assert run("dashboard", "--address", "0.0.0.0", "--sign-in", path.name) == 0  # as seen from where it was typed
    assert {f"--secrets.files={path}", "--server.allowedHosts=explorer.hospital.org"} <= set(commands)


def starts(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """The words with which the server would be started."""
    words: list[str] = []
    monkeypatch.setattr("os.execv", lambda _, command: words.extend(command))
    monkeypatch.chdir(root)  # the command leaves it for the project's folder
    for name in ("AGG2EXP_DATA", VARIABLE):
        monkeypatch.setenv(name, str(root))  # so that what the command sets is taken back
    monkeypatch.delenv(VARIABLE)
    return words


# ---- what a role may do ----------------------------------------------------------------------------


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The demo, with a saved list."""
    for path in SHIPPED.iterdir():
        (tmp_path / path.name).symlink_to(path)
    save_list(tmp_path, CaseList("mine", "clinic", ("cli-01", "cli-02")), False)
    return tmp_path


@pytest.fixture
def as_role(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Lets the pages be drawn for somebody of that role."""
    people = {role: [f"{role}@hospital.org"] for role in ROLES}
    monkeypatch.setenv(VARIABLE, str(written(tmp_path_factory.mktemp("sign-in"), AUTH, people)))
    monkeypatch.setattr(access, "person", lambda: None)
    return lambda role: monkeypatch.setattr(access, "person", lambda: f"{role}@hospital.org")


def controls(app: AppTest) -> set[str]:
    keys = {str(one.key) for one in [*app.button, *app.get("file_uploader")]}
    return {name for name in keys for part in CONTROLS if part in name}


CONTROLS = (
    "compute_start",
    "outliers_leave_out",
    "shelf_removed",
    "FormSubmitter:keep",
    "review_create",
    "upload_file",
    "review_new",
)


def test_a_viewer_looks_a_reviewer_saves_and_an_operator_computes(
    monkeypatch: pytest.MonkeyPatch, demo: Path, as_role: Callable[[str], None]
) -> None:
    found: dict[str, set[str]] = {}
    for role in ROLES:
        as_role(role)
        found[role] = set()
        for page in ("case", "cohort", "outliers", "runs", "review"):
            app = opened(monkeypatch, demo, page, {"cohort": "clinic"} if page != "review" else {})
            found[role] |= {part for part in CONTROLS for name in controls(app) if part in name}
            if role == "viewer" and page in ("case", "runs", "review"):
                assert "Yours is **viewer**" in texts(app)
    assert found["viewer"] == set()
    assert found["reviewer"] == {"FormSubmitter:keep", "outliers_leave_out", "review_create"}
    assert found["operator"] >= found["reviewer"] | {"compute_start", "shelf_removed"}


def test_a_role_that_was_taken_since_the_page_was_drawn_no_longer_acts(
    monkeypatch: pytest.MonkeyPatch, demo: Path, as_role: Callable[[str], None]
) -> None:
    as_role("operator")
    runs, shelf, unusual = (
        opened(monkeypatch, demo, page, {"cohort": "clinic"}) for page in ("runs", "cohort", "outliers")
    )
    as_role("reviewer")
    runs.button("compute_start").click().run()
    assert not (demo / "jobs").exists()
    shelf.button("cohort_shelf_removed").click().run()
    as_role("viewer")
    unusual.button("outliers_leave_out_here").click().run()
    assert "this takes the role reviewer; got viewer" in texts(unusual)
    assert [one.name for one in list_lists(demo, "clinic")] == ["mine"]
    as_role("reviewer")
    with pytest.raises(InputError, match="takes the role operator; got reviewer"):
        access.require("operator")


def test_what_is_drawn_again_without_its_page_is_kept_from_who_lost_their_role(
    monkeypatch: pytest.MonkeyPatch, as_role: Callable[[str], None]
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("streamlit.fragment", lambda draw, run_every: draw)
    monkeypatch.setattr("streamlit.rerun", lambda: pytest.fail("the whole page is drawn, which begins at the gate"))
    part = access.fragment(drawn.append)
    as_role("viewer")
    part("once")
    for lost in (lambda: as_role("nobody"), lambda: monkeypatch.setenv(VARIABLE, "/gone.toml")):
        lost()
        with pytest.raises(pytest.fail.Exception, match="begins at the gate"):
            part("again")
    assert drawn == ["once"]
    files = [path for path in Path(access.__file__).parent.rglob("*.py") if "st.fragment" in path.read_text()]
    assert files == [Path(access.__file__)]


def test_files_are_taken_from_those_whom_a_page_invited_while_they_are_operators(
    monkeypatch: pytest.MonkeyPatch, demo: Path, as_role: Callable[[str], None], tmp_path: Path
) -> None:
    sessions = []
    monkeypatch.setattr(uploads, "_invited", OrderedDict())
    for role in ROLES:
        as_role(role)
        opened(monkeypatch, demo, "case", {"cohort": "clinic"})
        sessions.append([*uploads._invited])
    assert sessions[:2] == [[], []] and uploads.is_welcome(*sessions[2]) and not uploads.is_welcome("another")
    monkeypatch.setenv(VARIABLE, str(written(tmp_path, AUTH, {"reviewer": ["operator@hospital.org"]})))
    assert not uploads.is_welcome(*sessions[2])
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone.toml"))
    assert not uploads.is_welcome(*sessions[2])


def test_without_sign_in_whoever_reaches_it_may_do_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert access.person() is None and all(access.may(role) for role in ROLES)


def test_nobody_gets_in_while_the_file_is_broken(monkeypatch: pytest.MonkeyPatch, demo: Path, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone.toml"))
    app = opened(monkeypatch, demo, APP, {})
    assert "sign-in file must be readable" in texts(app) and not app.sidebar.button


# ---- a server ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Provider, str]]:
    """A provider, and the address of a dashboard that asks it who comes."""
    port = free_port()
    with provider() as asked, pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{port}"
        auth = AUTH | {"redirect_uri": f"{url}/oauth2callback", "server_metadata_url": asked.discovery}
        patch.setenv(VARIABLE, str(written(tmp_path_factory.mktemp("sign-in"), auth)))
        with started([*SERVE, str(SHIPPED), "--port"], port):
            yield asked, url


def test_nobody_fills_the_memory_from_before_the_gate(guarded: tuple[Provider, str]) -> None:
    _, url = guarded
    with connect(url.replace("http", "ws") + "/_stcore/stream", proxy=None) as stream:
        asking = BackMsg()
        asking.rerun_script.query_string = ""
        stream.send(asking.SerializeToString())
        session = ""
        while not session:
            session = ForwardMsg.FromString(stream.recv(30)).new_session.initialize.session_id
        with httpx.Client(trust_env=False) as client:
            token = client.get(f"{url}/_stcore/health").cookies["_streamlit_xsrf"]
            place, mine = f"{url}/_stcore/upload_file/{session}/1", {"X-Xsrftoken": token}
            assert client.put(place, files={"file": ("scan.nii", b"0")}, headers=mine).status_code == 403


def test_nobody_is_told_how_many_are_here(guarded: tuple[Provider, str]) -> None:
    _, url = guarded
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"{url}/_stcore/health").status_code == 200
        assert client.get(f"{url}/_stcore/metrics").status_code == 404


def arrived(chromium: Browser, url: str) -> Page:
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(url)
    return page


@pytest.mark.browser
def test_a_link_opens_its_view_once_its_reader_has_signed_in(chromium: Browser, guarded: tuple[Provider, str]) -> None:
    asked, url = guarded
    asked.claims = {"email": "ada@hospital.org", "email_verified": True}
    page = arrived(chromium, f"{url}/case?cohort=clinic&case=cli-04")
    noted = watched(page)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator(".st-key-signed_in")).to_contain_text("ada@hospital.org · reviewer")
    page.wait_for_url("**/case?*case=cli-04*")
    expect(page.get_by_text("cli-04").first).to_be_visible()
    assert noted == []
    page.locator(".st-key-sign_out button").first.click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize(
    "claims",
    [
        {"email": "eve@evil.org", "email_verified": True}, {"email": "ada@hospital.org", "email_verified": False},
        {"email": "ada@hospital.org", "email_verified": "no"}, {"name": "ada@hospital.org"},
    ],
)  # fmt: skip
def test_who_has_no_role_or_no_confirmed_address_sees_nothing(
    chromium: Browser, guarded: tuple[Provider, str], claims: dict[str, object]
) -> None:
    asked, url = guarded
    asked.claims = claims
    page = arrived(chromium, url)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("has no role in this dashboard")).to_be_visible()
    assert page.locator(".stSidebar .stSelectbox, .js-plotly-plot").count() == 0
    page.close()
