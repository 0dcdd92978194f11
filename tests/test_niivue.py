"""The NiiVue viewer: what is sent and to whom, and in a browser with WebGL what is seen where."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib import request as asked
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page
from starlette.requests import Request
from streamlit.testing.v1 import AppTest

from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Method, SumTable, Volume
from agg2exp_core.store import results
from agg2exp_core.volumes import to_ras, write_volume
from bench.browser import started
from dashboard.viewer import addresses, fetch, parcels, slices
from dashboard.viewer.addresses import LIFETIME, STRIDE, Shelf
from dashboard.viewer.parcels import Parcel

LABELS = load_label_set("thorax17")
RUNS = ("thorax17_swinunetr-smoothgrad-4", "thorax17_swinunetr-gradient")
SHAPE = (40, 32, 24)
AFFINE = np.array([[-4.0, 0, 0, 80], [0, -4, 0, 70], [0, 0, 6, -50], [0, 0, 0, 1]])  # stored LPS
LEFT, RIGHT = np.s_[26:34, 8:16, 12:20], np.s_[8:16, 8:16, 12:20]
"""Boxes on the stored grid: high i is the patient's left, low j anterior, high k superior."""


# ---- tokens -----------------------------------------------------------------------------------


def _parcel(content: bytes) -> Parcel:
    return Parcel(hashlib.sha256(content).hexdigest(), (1, 1, 1), np.eye(4), (0, 0, 0), lambda: content)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_token_gives_its_parcel_and_no_other() -> None:
    shelf = Shelf()
    one, other = shelf.token(_parcel(b"one")), shelf.token(_parcel(b"other"))
    assert (shelf.collect(one), shelf.collect(other)) == (b"one", b"other")
    assert shelf.collect(one) == b"one"


def test_every_changed_letter_makes_a_token_worthless() -> None:
    shelf = Shelf()
    token = shelf.token(_parcel(b"one"))
    for at, letter in enumerate(token):
        changed = token[:at] + ("A" if letter != "A" else "B") + token[at + 1 :]
        assert shelf.collect(changed) is None
    assert [shelf.collect(text) for text in ("", "=", "ä", token[:-4], token + "AAAA", token + "\n")] == [None] * 6


def test_a_token_expires() -> None:
    clock = Clock()
    shelf = Shelf(clock)
    token = shelf.token(_parcel(b"one"))
    clock.now += LIFETIME
    assert shelf.collect(token) == b"one"
    clock.now += STRIDE + 1
    assert shelf.collect(token) is None
    assert shelf.collect(shelf.token(_parcel(b"one"))) == b"one"


def test_a_token_of_another_server_is_worthless() -> None:
    parcel = _parcel(b"one")
    there, here = Shelf(), Shelf()
    here.token(parcel)
    assert here.collect(there.token(parcel)) is None


def test_a_page_drawn_again_soon_has_the_same_addresses() -> None:
    clock = Clock()
    shelf = Shelf(clock)
    first = shelf.token(_parcel(b"one"))
    clock.now += 1
    assert shelf.token(_parcel(b"one")) == first


def test_a_parcel_is_made_once() -> None:
    made = []
    parcel = Parcel("00" * 32, (1, 1, 1), np.eye(4), (0, 0, 0), lambda: made.append(1) or b"x")  # type: ignore[func-returns-value]
    shelf = Shelf()
    token = shelf.token(parcel)
    assert shelf.collect(token) == shelf.collect(token) == b"x" and made == [1]


def test_parcels_of_many_users_at_once_are_all_served() -> None:
    gate, ids = threading.Event(), [f"{number:064x}" for number in range(addresses.KEPT_PARCELS + 6)]
    shelf = Shelf()
    made = [Parcel(name, (1, 1, 1), np.eye(4), (0, 0, 0), lambda: (gate.wait(9) and b"x") or b"") for name in ids]
    tokens = [shelf.token(parcel) for parcel in made]
    gate.set()
    assert [shelf.collect(token) for token in tokens] == [b"x"] * len(ids)


# ---- what is sent -----------------------------------------------------------------------------


def _scan() -> Volume:
    """Air, a body in it that lies off centre, and a value of its own in every voxel of the body."""
    array = np.full(SHAPE, -1000, np.int16)
    array[5:30, 6:20, 8:15] = np.arange(25 * 14 * 7, dtype=np.int16).reshape(25, 14, 7) - 160
    affine = np.array([[2.0, 0.3, 0, -10], [-0.3, 3, 0, 20], [0, 0, 5, -30], [0, 0, 0, 1]])
    return Volume(array, affine)


def _opened(parcel: Parcel) -> Volume:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(parcel.make()))
    return Volume(np.asarray(image.dataobj), image.affine)


@pytest.mark.parametrize("accepted", ["gzip, br", "identity"])
def test_a_volume_is_sent_as_the_browser_takes_it(accepted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses.shelf(), "serving", False)  # as it is again after `routes`
    parcel = parcels.labels_parcel(Volume(np.ones((4, 3, 2), np.uint8), np.eye(4)))
    token = addresses.volume_address(parcel).rpartition("/")[2]
    headers = [(b"host", b"127.0.0.1"), (b"accept-encoding", accepted.encode())]
    route = addresses.routes()[0]
    answer = route.endpoint(Request({"type": "http", "headers": headers, "path_params": {"token": token}}))
    encoding = answer.headers.get("content-encoding")
    assert encoding == ("gzip" if "gzip" in accepted else None)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(answer.body) if encoding else answer.body)
    assert image.shape == (4, 3, 2) and (np.asanyarray(image.dataobj) == 1).all()


def test_a_cropped_scan_keeps_every_value_at_its_place() -> None:
    scan = _scan()
    parcel = parcels.scan_parcel(scan, [])
    sent = _opened(parcel)
    assert sent.array.dtype == np.int16 and sent.array.shape == parcel.shape == (29, 18, 11)
    for voxel in np.argwhere(scan.array > -1000)[::97]:
        place = slices.world(scan.affine, voxel)
        there = slices.nearest_voxel(sent.affine, place, parcel.shape)
        assert np.allclose(slices.world(sent.affine, there), place, atol=1e-4)
        assert sent.array[there] == scan.array[tuple(voxel)]
        assert np.array_equal(np.array(there) + parcel.origin, voxel)


@pytest.mark.parametrize(("strength", "whole"), [(127, True), (3, False)], ids=["visible", "faint"])
def test_a_scan_is_not_cropped_where_attribution_would_be_lost(strength: int, whole: bool) -> None:
    scan = _scan()
    attribution = Volume(np.zeros(SHAPE, np.int8), scan.affine)
    attribution.array[38, 30, 2] = -strength
    assert (parcels.scan_parcel(scan, [attribution]).shape == SHAPE) == whole


def test_quantised_attribution_is_off_by_half_a_step_at_most() -> None:
    values = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    end = 2.5
    sent = _opened(parcels.attribution_parcel(parcels.quantised(Volume(values, np.eye(4)), end)))
    assert sent.array.dtype == np.int8
    back = sent.array * (end / 127)
    assert np.abs(back - np.clip(values, -end, end)).max() <= end / 254 + 1e-6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_sent_as_they_are(dtype: type) -> None:
    labels = Volume(np.zeros(SHAPE, dtype), AFFINE)
    labels.array[LEFT] = np.iinfo(dtype).max
    sent = _opened(parcels.labels_parcel(labels))
    assert sent.array.dtype == dtype and sent.array.shape == (8, 8, 8) and (sent.array == np.iinfo(dtype).max).all()


def test_an_empty_volume_is_sent_whole() -> None:
    assert parcels.attribution_parcel(Volume(np.zeros(SHAPE, np.int8), AFFINE)).shape == SHAPE


def test_ids_name_the_content() -> None:
    first, again, moved, changed = _scan(), _scan(), _scan(), _scan()
    moved.affine[0, 3] += 1
    changed.array[10, 10, 10] += 1
    ids = [parcels.scan_parcel(scan, []).id for scan in (first, again, moved, changed)]
    assert ids[0] == ids[1] and len(set(ids)) == 3
    assert parcels.scan_parcel(first, []).make() == parcels.scan_parcel(again, []).make()


def test_an_organs_centre_lies_in_the_organ() -> None:
    bent = Volume(np.zeros((9, 9, 3), np.uint8), np.diag([2.0, 2, 2, 1]))
    bent.array[0, :, 1] = bent.array[:, 0, 1] = bent.array[8, :, 1] = 5
    place = slices.centre(bent, 5)
    assert place is not None and bent.array[slices.nearest_voxel(bent.affine, place, (9, 9, 3))] == 5
    assert slices.centre(bent, 6) is None


# ---- what it needs ----------------------------------------------------------------------------


def test_the_lock_pins_niivue_and_names_no_address() -> None:
    lock = fetch.LOCK.read_text("utf-8")
    packages = json.loads(lock)["packages"]
    assert fetch.VERSION.startswith("0.69.") and "://" not in lock and "resolved" not in lock
    assert all("integrity" in package for name, package in packages.items() if name)


def test_a_failed_fetch_is_one_line_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(folder: Path) -> Path:
        raise OSError("no network")

    monkeypatch.setattr(fetch, "_installed", unreachable)
    monkeypatch.setattr(fetch, "MODULE", tmp_path / "vendor" / "niivue.js")
    with pytest.raises(SystemExit, match=r"could not be fetched \(no network\)"):
        fetch.main()
    assert not fetch.MODULE.exists()


def test_without_the_module_the_slices_serve_and_say_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses.shelf(), "serving", True)
    monkeypatch.setattr(fetch, "MODULE", root / "none.js")
    app = _drawn(monkeypatch, root)
    assert any("has not been fetched" in c.value and "These slices serve" in c.value for c in app.caption)


def _drawn(monkeypatch: pytest.MonkeyPatch, root: Path) -> AppTest:
    def script() -> None:
        from dashboard.views import case

        case.page()

    monkeypatch.setenv("AGG2EXP_DATA", str(root))
    app = AppTest.from_function(script, default_timeout=60)
    for name, value in {"cohort": "tiny", "run": RUNS[0], "case": "one", "target": "heart"}.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


# ---- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scan, two runs: evidence for the heart at the patient's left, against it at the right."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "cohorts" / "tiny"
    (folder / "images").mkdir(parents=True)
    write_volume(folder / "images" / "one.nii.gz", Volume(_hu(), AFFINE))
    (folder / "cases.csv").write_text("case_id,image,label\none,images/one.nii.gz,\n")
    for run, method in zip(RUNS, ("smoothgrad", "gradient"), strict=True):
        _explained(root, run, method)
    return root


def _hu() -> np.ndarray:
    """Air around a body of −160 HU, black in the soft tissue window, with one bright box: left, anterior, superior."""
    hu = np.full(SHAPE, -1000, np.int16)
    hu[4:36, 4:28, 2:22] = -160
    hu[30:34, 20:26, 4:8] = 240
    return hu


def _explained(root: Path, run: str, method: str) -> None:
    info = {
        "model": "thorax17_swinunetr", "model_hash": "0", "method": method, "versions": {},
        "parameters": Method(method, 4, estimator="plain").parameters(), "label_set": "thorax17", "values": "sums",
    }  # fmt: skip
    results.write_run(root, "tiny", run, info)
    sums = np.random.default_rng(0).random((2, 1, 17))
    table = SumTable(("heart",), LABELS.names, sums[0], sums[1], np.full(17, 50, np.int64))
    prediction, saliency = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    prediction[LEFT] = 8
    saliency[LEFT], saliency[RIGHT] = 2, -1.6
    with results.case_folder(
        root / "runs/tiny" / run / "cases/one", {"case_id": "one", "targets": ["heart"]}
    ) as folder:
        results.write_importance(folder, table)
        results.write_agreement(folder, LABELS.names, np.full(17, 0.9), np.full(17, 0.8))
        write_volume(folder / "prediction.nii.gz", Volume(prediction, AFFINE))
        (folder / "saliency").mkdir()
        write_volume(folder / "saliency" / "heart.nii.gz", Volume(saliency, AFFINE))


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    """What the page said and did while the tests drove it."""
    return {"errors": [], "hosts": [], "sent": []}


@pytest.fixture(scope="module")
def page(
    webgl_chromium: Browser, server: Callable[[Path], str], root: Path, told: dict[str, list[str]]
) -> Iterator[Page]:
    if not fetch.MODULE.is_file():
        pytest.fail("NiiVue is not there: `make` fetches it")
    page = webgl_chromium.new_page(viewport={"width": 1440, "height": 1000}, base_url=server(root))
    page.set_default_timeout(60_000)
    page.on("console", lambda message: told["errors"].extend(_error(message)))
    page.on("pageerror", lambda error: told["errors"].append(str(error)))
    page.on("request", lambda request: told["hosts"].append(urlsplit(request.url).hostname or "in the page"))
    page.on("websocket", lambda socket: socket.on("framesent", lambda _: told["sent"].append("frame")))
    page.goto(f"/case?cohort=tiny&run={RUNS[0]}&case=one&target=heart")
    page.locator(".viewer[data-state=ready]").wait_for()
    yield page
    page.close()


def _error(message: ConsoleMessage) -> list[str]:
    return [message.text] if message.type == "error" else []


def _place(box: tuple[slice, ...]) -> np.ndarray:
    """World position of a box's centre."""
    return slices.world(AFFINE, np.array([(s.start + s.stop - 1) / 2 for s in box]))


def _seen(page: Page, plane: slices.Plane, place: np.ndarray) -> tuple[int, int, int]:
    """The colour on the screen where a world position lies in the plane, wherever the crosshair stands in depth."""
    parcel = parcels.scan_parcel(to_ras(Volume(_hu(), AFFINE)), [])
    voxel = np.linalg.solve(parcel.affine, np.append(place, 1))[:3]
    share = 1 - (voxel + 0.5) / parcel.shape
    tile = page.locator(f'.tile[data-plane="{plane.name}"]').first
    picture = Image.open(io.BytesIO(tile.screenshot())).convert("RGB")
    at = (share[plane.horizontal] * picture.width, share[plane.vertical] * picture.height)
    return picture.getpixel((int(at[0]), int(at[1])))


def _until(seen: Callable[[], object], expected: object) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and seen() != expected:
        time.sleep(0.1)
    assert seen() == expected


def _readout(page: Page) -> str:
    return page.locator(".readout").inner_text()


def _click(page: Page, plane: slices.Plane, place: np.ndarray) -> None:
    parcel = parcels.scan_parcel(to_ras(Volume(_hu(), AFFINE)), [])
    share = 1 - (np.linalg.solve(parcel.affine, np.append(place, 1))[:3] + 0.5) / parcel.shape
    tile = page.locator(f'.tile[data-plane="{plane.name}"]').first
    box = tile.bounding_box()
    assert box is not None
    tile.click(position={"x": share[plane.horizontal] * box["width"], "y": share[plane.vertical] * box["height"]})


def _slider(page: Page, name: str) -> Locator:
    return page.locator(f".{name} input")


AXIAL, CORONAL, SAGITTAL = slices.PLANES
BRIGHT = np.s_[30:34, 20:26, 4:8]


@pytest.mark.browser
def test_saliency_and_scan_are_where_they_should_be(page: Page, told: dict[str, list[str]]) -> None:
    """Evidence for it (orange) at the patient's left, thus at the screen's right; against it (blue) opposite."""
    off = np.array([6.0, 6, 6])  # beside the crosshair, which stands in the middle of what it points to
    _click(page, CORONAL, _place(LEFT))
    for plane in (AXIAL, CORONAL):
        left, right = _seen(page, plane, _place(LEFT) + off), _seen(page, plane, _place(RIGHT) + off)
        assert left[0] > left[2] + 60 and right[2] > right[0] + 60
    assert _seen(page, SAGITTAL, _place(LEFT) + off)[0] > 150
    assert AXIAL.left == "R" and _place(LEFT)[0] < 0 < _place(RIGHT)[0]
    _click(page, CORONAL, _place(BRIGHT))
    assert min(_seen(page, AXIAL, _place(BRIGHT) + off)) > 200
    mirrored = _place(BRIGHT) * [-1, 1, 1]
    assert max(_seen(page, AXIAL, mirrored + off)) < 60
    assert "right is on your left" in page.locator(".words").inner_text()
    for plane in slices.PLANES:
        tile = page.locator(f'.tile[data-plane="{plane.name}"]').first
        assert [tile.locator(f".at-{side}").inner_text() for side in ("left", "right", "top", "bottom")] == [
            plane.left, plane.right, plane.top, plane.bottom,
        ]  # fmt: skip
    assert told["errors"] == [] and set(told["hosts"]) <= {"127.0.0.1", "in the page"}


@pytest.mark.browser
def test_what_is_under_the_crosshair_is_told_without_asking_the_server(page: Page, told: dict[str, list[str]]) -> None:
    page.get_by_role("button", name="Peak", exact=True).click()
    _until(lambda: "Heart" in _readout(page) and "+100 %" in _readout(page), True)
    page.wait_for_timeout(500)
    told["sent"].clear()
    _click(page, AXIAL, _place(RIGHT))
    _until(lambda: "−80 %" in _readout(page) and "−160 HU" in _readout(page), True)
    place = _place(RIGHT)
    assert f"R {abs(place[0]) // 4 * 4:.0f}"[:3] in _readout(page)
    axial = page.locator('.tile[data-plane="axial"]')
    before = int(axial.get_attribute("aria-valuenow") or 0)
    axial.press("ArrowUp")
    _until(lambda: axial.get_attribute("aria-valuenow"), str(before + 1))
    axial.hover()
    page.mouse.wheel(0, 120)
    _until(lambda: axial.get_attribute("aria-valuenow"), str(before))
    page.get_by_role("radio", name="Bone").click()
    assert _slider(page, "numbers").first.input_value() == "2500"
    page.get_by_role("radio", name="Soft tissue").click()
    _slider(page, "opacity").fill("0")
    off = np.array([6.0, 6, 6])
    _until(lambda: max(_seen(page, AXIAL, _place(RIGHT) + off)) < 60, True)
    _slider(page, "opacity").fill("100")
    _until(lambda: max(_seen(page, AXIAL, _place(RIGHT) + off)) > 200, True)
    assert told["sent"] == []


@pytest.mark.browser
def test_organs_are_found_jumped_to_and_hidden(page: Page) -> None:
    page.get_by_role("searchbox", name="Search organs").fill("hea")
    assert page.locator(".organs li:visible").all_inner_texts() == ["Heart"]
    page.locator(".organs li button", has_text="Heart").click()
    _until(lambda: "Heart" in _readout(page), True)
    _slider(page, "opacity").fill("0")
    _slider(page, "fill").fill("100")
    off = np.array([6.0, 6, 6])
    color = tuple(int(LABELS["heart"].color[at : at + 2], 16) for at in (1, 3, 5))
    _until(lambda: bool(np.abs(np.subtract(_seen(page, AXIAL, _place(LEFT) + off), color)).max() <= 3), True)
    page.get_by_role("checkbox", name="Show Heart").uncheck()
    _until(lambda: max(_seen(page, AXIAL, _place(LEFT) + off)) < 60, True)
    page.get_by_role("checkbox", name="Show Heart").check()
    _slider(page, "fill").fill("0")
    _slider(page, "opacity").fill("70")


@pytest.mark.browser
def test_runs_stand_side_by_side_with_one_crosshair(page: Page) -> None:
    chooser = page.get_by_role("combobox", name="Side by side with")
    chooser.click()
    page.get_by_role("option").first.click()
    page.locator(".stack").nth(1).wait_for()
    axial = page.locator('.tile[data-plane="axial"][aria-valuenow]')
    axial.nth(1).wait_for()  # the first one was ready before
    page.locator(".viewer[data-state=ready]").wait_for()
    axial.nth(1).press("PageDown")
    _until(lambda: len({axial.nth(n).get_attribute("aria-valuenow") for n in (0, 1)}), 1)
    off = np.array([6.0, 6, 6])
    _click(page, AXIAL, _place(RIGHT))
    page.get_by_role("button", name="Peak", exact=True).click()
    _until(lambda: _seen(page, AXIAL, _place(LEFT) + off)[0] > 150, True)
    assert _readout(page).count("%") == 2


PAGE = """
from pathlib import Path
import streamlit as st
from agg2exp_core.organs import load_label_set
from dashboard.viewer import niivue, slices
from dashboard.viewer.scene import Sources, load_scene

root = Path(ROOT)
result = root / "runs/tiny" / RUN / "cases/one"
labels = load_label_set("thorax17")
scene = load_scene(Sources(root / "cohorts/tiny/images/one.nii.gz", result, "heart"), labels)
if st.button("Heart"):
    niivue.point_at("here", slices.centre(scene.prediction, 8))
niivue.viewer([niivue.Shown(scene)], "here", (20, 16, 12), lambda voxel: st.session_state.update(rested=voxel))
st.text(f"rested {st.session_state.get('rested')}")
"""
"""A page of another kind, which moves the crosshair and wants to know where it rests."""


@pytest.mark.browser
def test_python_moves_the_crosshair_and_hears_of_it(webgl_chromium: Browser, root: Path, tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(PAGE.replace("ROOT", repr(str(root))).replace("RUN", repr(RUNS[0])))
    (tmp_path / "server.py").write_text(
        "import streamlit as st\nfrom dashboard.viewer import addresses\n"
        "app = st.App('page.py', routes=addresses.routes())\n"
    )
    options = ["--server.address=127.0.0.1", "--server.headless=true", "--server.port"]
    command = [sys.executable, "-m", "streamlit", "run", str(tmp_path / "server.py"), *options]
    with started(command) as running:
        url = running.url
        page = webgl_chromium.new_page(viewport={"width": 1440, "height": 1000}, base_url=url)
        page.set_default_timeout(60_000)
        page.goto("/")
        page.locator(".viewer[data-state=ready]").wait_for()
        assert "Heart" not in _readout(page)
        for _ in range(2):  # asked twice, moved twice, although the place is the same
            page.get_by_role("button", name="Heart").first.click()
            _until(lambda: "Heart" in _readout(page), True)
            axial = page.locator('.tile[data-plane="axial"]')
            axial.press("End")
            _until(lambda: "Heart" in _readout(page), False)
            top = to_ras(Volume(_hu(), AFFINE)).array.shape[2] - 1
            page.get_by_text(f"{top})", exact=False).filter(has_text="rested").wait_for()
        page.close()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/viewer/volumes/" + "A" * 96, "127.0.0.1", 403),
        (f"/viewer/{fetch.MODULE.name}", "elsewhere.example", 403),
        ("/viewer/code/0/nothing.js", "127.0.0.1", 404),
    ],
)
def test_what_is_not_allowed_is_refused_without_a_word(
    server: Callable[[Path], str], root: Path, path: str, host: str, status: int
) -> None:
    with pytest.raises(HTTPError) as refused:
        urlopen(asked.Request(server(root) + path, headers={"Host": host}), timeout=20)
    assert refused.value.code == status and refused.value.read() == b""
