"""The address: a link is followed once, a page comes back as it was left, and what is shown goes along."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest


def _script() -> None:
    """A page, named by the session, that says what it was asked for and writes what it shows."""
    import streamlit as st

    from dashboard.address import Address

    page = Address(st.session_state.get("page", "one"), st.session_state.get("side", ""))
    page.follow()
    st.session_state["asked"] = {name: page.asked(name) for name in ("cohort", "pick")}
    st.session_state["outside"] = page.from_outside
    if "shows" in st.session_state:
        page.write(page.own(st.session_state["shows"]))


def _run(app: AppTest, **state: object) -> tuple[dict, bool]:
    for name, value in state.items():
        app.session_state[name] = value
    app.run()
    assert not app.exception
    return app.session_state["asked"], app.session_state["outside"]


def test_a_link_is_followed_once() -> None:
    app = AppTest.from_function(_script)
    app.query_params["cohort"] = "clinic"
    asked = {"cohort": ["clinic"], "pick": None}
    assert _run(app, shows={"cohort": ["clinic"]}) == (asked, True)
    assert _run(app)[0] == {"cohort": None, "pick": None}
    app.query_params["cohort"] = "reference"  # another link, followed on the same page
    assert _run(app) == ({"cohort": ["reference"], "pick": None}, True)


def test_a_page_comes_back_as_it_was_left_and_what_is_shown_goes_along() -> None:
    app = AppTest.from_function(_script)
    _run(app, shows={"cohort": ["clinic"], "pick": ["heart"]})
    app.query_params.clear()
    assert _run(app, page="two", shows={"cohort": ["reference"]}) == ({"cohort": ["clinic"], "pick": None}, False)
    app.query_params.clear()
    assert _run(app, page="one") == ({"cohort": ["reference"], "pick": ["heart"]}, False)


def test_parameters_that_another_page_left_in_the_address_are_no_link() -> None:
    app = AppTest.from_function(_script)
    _run(app, shows={"cohort": ["clinic"]})
    assert app.query_params["cohort"] in ("clinic", ["clinic"])
    assert _run(app, page="two")[1] is False


def test_two_sides_have_parameters_of_their_own() -> None:
    app = AppTest.from_function(_script)
    app.query_params["b.cohort"] = "clinic"
    assert _run(app, side="b", shows={"cohort": ["clinic"]})[0]["cohort"] == ["clinic"]
    assert set(app.query_params) == {"b.cohort"}
