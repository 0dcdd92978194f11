"""The published wide table: in and out bit for bit, its golden values, and everything that is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agg2exp_core.records import InputError, Selection, SumTable
from agg2exp_core.store import catalog, cohorts, published_csv, queries, results
from agg2exp_core.store.published_csv import Layout, export_csv, import_csv

LAYOUT = Layout(("background", "heart"), ("background", "heart"), True, ("background", "heart"))
LOWER_LEFT = "lung_lower_lobe_left"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, published_table: Path) -> Path:
    root = tmp_path_factory.mktemp("root")
    assert import_csv(root, published_table, "tsv2") == 32
    return root


def _table(**changed: str) -> str:
    """Two patients; `changed` gives other texts to cells of the first."""
    columns = LAYOUT.columns()
    rows = [dict.fromkeys(columns, "0.25") | {"patient": name} for name in ("s1", "s2")]
    rows[0] |= changed
    lines = [columns, *([row[name] for name in columns] for row in rows)]
    return "".join(",".join(line) + "\n" for line in lines)


def _written(folder: Path, text: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


# ---- the published table -----------------------------------------------------------------------------


def test_the_published_table_comes_out_bit_for_bit(imported: Path, published_table: Path, tmp_path: Path) -> None:
    export_csv(imported, "tsv2", "published", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == published_table.read_bytes()


def test_golden_values_through_the_store(imported: Path) -> None:
    con = catalog.connect(imported)
    selection = Selection("tsv2", "published")
    median = queries.box_stats(con, selection, LOWER_LEFT).set_index("region")["median"].round(4)
    expected = {
        LOWER_LEFT: 0.0969, "lung_upper_lobe_left": 0.0738, "heart": 0.0283, "lung_lower_lobe_right": 0.0195,
        "vertebraes": 0.0160, "ribs": 0.0150,
    }  # fmt: skip
    assert median.drop("background").head(6).to_dict() == expected
    cells = queries.matrix(con, selection).set_index(["target", "region"])["value"]
    assert cells[LOWER_LEFT, "heart"] == pytest.approx(0.0283, abs=5e-5)
    assert queries.cases(con, selection)["dice"].mean() == pytest.approx(0.960, abs=5e-4)
    dice = con.execute("SELECT target, avg(dice) AS dice FROM agreement GROUP BY target ORDER BY dice").df()
    assert dice.loc[0, "target"] == "thyroid_gland" and dice.loc[0, "dice"] == pytest.approx(0.876, abs=5e-4)


def test_every_number_is_the_files_own(imported: Path, published_table: Path) -> None:
    wide = pd.read_csv(published_table).set_index("patient")
    local = catalog.connect(imported).execute("FROM importance WHERE sign = 'abs'").df()
    assert len(local) == 32 * 17 * 17
    for value in ("mass", "mean"):
        names = [published_csv.local_column(row.target, row.region, value) for row in local.itertuples()]
        expected = [wide.at[case, name] for case, name in zip(local["case_id"], names, strict=True)]
        np.testing.assert_array_equal(local[value], expected)
    sums = local.groupby(["case_id", "target"])["mass"].sum()
    np.testing.assert_allclose(sums, 1, atol=3e-6)
    without = local[local["region"] != "background"].groupby(["case_id", "target"])["organ_mass"].sum()
    np.testing.assert_allclose(without, 1, atol=1e-12)


def test_an_imported_run_is_listed_and_has_no_signs(imported: Path) -> None:
    con = catalog.connect(imported)
    record = queries.runs(con, "tsv2").to_dict("records")[0]
    assert (record["values"], record["label_set"], record["cases"]) == ("shares", "thorax17", 32)
    assert con.execute("SELECT DISTINCT sign FROM importance").fetchall() == [("abs",)]
    assert (queries.box_stats(con, Selection("tsv2", "published", "pos"), "heart")["n"] == 0).all()
    assert queries.case_importance(con, Selection("tsv2", "published"), "s0029", "heart")["value"].notna().all()


def test_the_same_table_twice_is_harmless(imported: Path, published_table: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in _files(imported) if path.suffix == ".csv"}
    import_csv(imported, published_table, "tsv2")
    assert {path: path.stat().st_mtime_ns for path in before} == before


# ---- small tables ------------------------------------------------------------------------------------

numbers = st.one_of(st.none(), st.floats(0, 1), st.just(5e-324), st.floats(0, 1, width=16))
rows = st.lists(st.lists(numbers, min_size=16, max_size=16), min_size=1, max_size=3)


@given(rows)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_comes_back(tmp_path_factory: pytest.TempPathFactory, table: list[list[float | None]]) -> None:
    root = tmp_path_factory.mktemp("root")
    cells = [[f"s.{place}", *("" if v is None else repr(v) for v in row)] for place, row in enumerate(table)]
    lines = [LAYOUT.columns(), *cells]
    text = "".join(",".join(line) + "\n" for line in lines)
    import_csv(root, _written(root, text), "c")
    export_csv(root, "c", "published", root / "out.csv")
    assert (root / "out.csv").read_text() == text


@pytest.mark.parametrize("change", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: t + "\n"])
def test_windows_tables_are_read(tmp_path: Path, change: object) -> None:
    assert import_csv(tmp_path, _written(tmp_path, change(_table())), "c") == 2  # type: ignore[operator]
    export_csv(tmp_path, "c", "published", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == _table()


def test_organs_of_another_label_set_keep_their_order(tmp_path: Path) -> None:
    text = _table().replace("heart", "spleen").replace("background", "zebra")
    import_csv(tmp_path, _written(tmp_path, text), "c")
    export_csv(tmp_path, "c", "published", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == text
    assert not queries.runs(catalog.connect(tmp_path), "c")["label_set"].iloc[0]


def test_a_table_without_dice_or_spread_is_whole(tmp_path: Path) -> None:
    layout = Layout(("heart",), ("background", "heart"), False, ())
    text = ",".join(layout.columns()) + "\ns1,0.5,1.0,0.5,1.0\n"
    import_csv(tmp_path, _written(tmp_path, text), "c")
    export_csv(tmp_path, "c", "published", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == text


def test_empty_cells_are_absent(tmp_path: Path) -> None:
    text = _table(**{name: "" for name in LAYOUT.columns() if name.startswith("heart_explanation_in")})
    text = text.replace("s2,0.25,0.25,0.25,0.25", "s2,0.25,0.25,,")
    import_csv(tmp_path, _written(tmp_path, text), "c")
    con = catalog.connect(tmp_path)
    absent = con.execute("SELECT case_id, target, region, absent FROM importance WHERE mass IS NULL ORDER BY ALL")
    assert absent.fetchall() == [
        ("s1", "heart", "background", "not predicted"),
        ("s1", "heart", "heart", "not predicted"),
        ("s2", "background", "heart", "region not predicted"),
    ]
    assert list(queries.ranked(con, Selection("c", "published"), "heart", "heart")["case_id"]) == ["s2"]
    assert list(queries.cases(con, Selection("c", "published", present=("heart",)))["case_id"]) == ["s1", "s2"]


def _drop(text: str, name: str) -> str:
    table = [line.split(",") for line in text.splitlines()]
    place = table[0].index(name)
    return "".join(",".join(line[:place] + line[place + 1 :]) + "\n" for line in table)


HEART = "heart_explanation_in_heart_mass"
BAD = {
    "empty file": ("", "empty file"),
    "header only": (_table().splitlines()[0] + "\n", "none in table.csv"),
    "another table": ("a,b\n1,2\n", "patient"),
    "missing column": (_drop(_table(), HEART), HEART),
    "missing dice": (_drop(_table(), "heart_dice"), "heart_dice"),
    "missing var": (_drop(_table(), "heart_explanation_var"), "heart_explanation_var"),
    "unknown column": (_table().replace("patient", "patient,age", 1), "age"),
    "column twice": (_table().replace("heart_dice", "background_dice"), "heart_dice"),
    "cut line": (_table()[:-60], "in line 3"),
    "long line": (_table()[:-1] + ",1\n", "in line 3"),
    "text": (_table(**{HEART: "many"}), f"'many' in column {HEART}, line 2"),
    "not a number": (_table(**{HEART: "nan"}), "line 2"),
    "infinite": (_table(heart_explanation_mean="inf"), "line 2"),
    "no share": (_table(**{HEART: "1.5"}), "between 0 and 1"),
    "patient twice": (_table(patient="s2"), "'s2' again in line 3"),
    "unsafe patient": (_table(patient="../s1"), "patient in line 2"),
    "no patient": (_table(patient=""), "patient in line 2"),
    "open quote": (_table(patient='"s1'), "line"),
    "not UTF-8": (b"patient,\xff\n", "UTF-8"),
}


@pytest.mark.parametrize(("text", "told"), BAD.values(), ids=BAD)
def test_a_bad_table_is_refused_and_nothing_written(tmp_path: Path, text: str | bytes, told: str) -> None:
    file = _written(tmp_path, text)
    root = tmp_path / "root"
    with pytest.raises(InputError) as refused:
        import_csv(root, file, "c")
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert not root.exists()


@pytest.mark.parametrize(("cohort", "run"), [("../c", "published"), ("c", "a/b"), ("", "published"), ("c", "..")])
def test_unsafe_names_are_refused(tmp_path: Path, cohort: str, run: str) -> None:
    with pytest.raises(InputError):
        import_csv(tmp_path / "root", _written(tmp_path, _table()), cohort, run)
    assert not (tmp_path / "root").exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        import_csv(tmp_path, tmp_path / "no.csv", "c")


# ---- what is there already ---------------------------------------------------------------------------


def test_other_content_under_the_same_name_is_refused(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = _written(tmp_path, _table())
    import_csv(tmp_path, file, "c")
    before = {path: path.read_bytes() for path in _files(tmp_path)}
    elsewhere = tmp_path_factory.mktemp("tables")
    other = _written(elsewhere, _table(**{HEART: "0.5"}), "other.csv")
    fewer = _written(elsewhere, "\n".join(_table().splitlines()[:2]) + "\n", "fewer.csv")
    for name in (other, fewer):
        with pytest.raises(InputError):
            import_csv(tmp_path, name, "c")
    assert {path: path.read_bytes() for path in _files(tmp_path)} == before
    import_csv(tmp_path, other, "c", "second")
    assert list(queries.runs(catalog.connect(tmp_path), "c")["run"]) == ["published", "second"]


def test_a_cohort_with_these_cases_keeps_its_metadata(tmp_path: Path) -> None:
    table = pd.DataFrame({"case_id": ["s2", "s1"], "image": "", "label": "", "age": ["5", "6"]})
    cohorts.write_cases(tmp_path, "c", table)
    import_csv(tmp_path, _written(tmp_path, _table()), "c")
    assert list(queries.cases(catalog.connect(tmp_path), Selection("c", "published"))["age"]) == [5, 6]


def test_an_interrupted_import_is_finished(tmp_path: Path) -> None:
    file = _written(tmp_path, _table())
    import_csv(tmp_path, file, "c")
    cases = tmp_path / "runs" / "c" / "published" / "cases"
    (cases / "s1" / "manifest.json").unlink()
    (cases / "s2" / "importance.csv").write_text("cut")
    import_csv(tmp_path, file, "c")
    assert not results.verify(cases / "s1") and not results.verify(cases / "s2")


# ---- exporting ---------------------------------------------------------------------------------------


def _computed(root: Path) -> dict[str, SumTable]:
    """Two cases with sums; b lacks the heart, and a has no label map."""
    cohorts.write_cases(root, "c", pd.DataFrame({"case_id": ["b", "a"], "image": "", "label": ""}))
    results.write_run(root, "c", "r", {"model_hash": "", "method": "m", "parameters": {}, "values": "sums"})
    rng = np.random.default_rng(0)
    names = ("background", "heart")
    tables = {}
    for case in ("a", "b"):
        positive, negative = rng.random((2, 2, 2))
        voxels = np.array([90, 10])
        if case == "b":
            positive[:, 1] = negative[:, 1] = voxels[1] = 0
            positive[1] = negative[1] = np.nan
        absent = {"heart": "not predicted"} if case == "b" else {}
        tables[case] = SumTable(names, names, positive, negative, voxels, absent)
        with results.case_folder(root / "runs" / "c" / "r" / "cases" / case, {"case_id": case}) as folder:
            results.write_importance(folder, tables[case])
            scored = names if case == "b" else ()
            results.write_agreement(folder, scored, *np.array([[0.5, np.nan], [0.4, np.nan]])[:, : len(scored)])
    return tables


def test_a_computed_run_is_exported_in_class_order(tmp_path: Path) -> None:
    tables = _computed(tmp_path)
    export_csv(tmp_path, "c", "r", tmp_path / "out.csv")
    wide = pd.read_csv(tmp_path / "out.csv").set_index("patient")
    scores = ["background_iou", "heart_iou", "background_dice", "heart_dice"]
    assert list(wide.columns)[-4:] == scores and list(wide.index) == ["b", "a"]
    assert not any(name.endswith("_var") for name in wide)
    sums = tables["a"].positive + tables["a"].negative
    assert wide.at["a", HEART] == pytest.approx(sums[1, 1] / sums[1].sum(), rel=1e-15)
    assert wide.at["a", HEART.replace("mass", "mean")] == sums[1, 1] / 10
    assert wide.loc["b"].filter(like="in_heart").isna().all() and wide.loc["a", scores].isna().all()
    assert import_csv(tmp_path / "again", tmp_path / "out.csv", "c") == 2


def test_an_export_leaves_no_case_out_in_silence(tmp_path: Path) -> None:
    _computed(tmp_path)
    (tmp_path / "runs" / "c" / "r" / "cases" / "a" / "importance.csv").write_text("cut")
    with pytest.raises(InputError, match="1 damaged"):
        export_csv(tmp_path, "c", "r", tmp_path / "out.csv")


def test_no_damaged_number_is_exported(tmp_path: Path) -> None:
    """Mean and variance, too, which no view tells."""
    import_csv(tmp_path, _written(tmp_path, _table()), "c")
    path = tmp_path / "runs" / "c" / "published" / "cases" / "s1" / "statistics.csv"
    path.write_text(path.read_text().replace("0.25", "0.35", 1))
    with pytest.raises(InputError, match=r"s1: statistics.csv is damaged"):
        export_csv(tmp_path, "c", "published", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(("cohort", "run"), [("gone", "published"), ("tsv2", "gone")])
def test_an_export_of_what_is_not_there_is_refused(imported: Path, tmp_path: Path, cohort: str, run: str) -> None:
    with pytest.raises(InputError):
        export_csv(imported, cohort, run, tmp_path / "out.csv")
    with pytest.raises(InputError):
        export_csv(imported, "tsv2", "published", tmp_path / "no" / "out.csv")
    with pytest.raises(InputError, match="must be a file"):
        export_csv(imported, "tsv2", "published", tmp_path)
    assert _files(tmp_path) == []
