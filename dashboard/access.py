"""Who looks at the dashboard, and what they may do there. Without sign-in it is whoever reaches it, and all of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from html import escape
from pathlib import Path
from typing import ParamSpec

import streamlit as st

from agg2exp_core import access
from agg2exp_core.access import SignIn
from agg2exp_core.records import InputError
from dashboard import words

Arguments = ParamSpec("Arguments")

MAY_NOT = "{what} takes the role **{needed}**. Yours is **{mine}**, which {may}."

RETURN = """
<span class='looks'></span>
<script>
// The provider sends everybody to the first page: what a link asked for waits in the tab that followed it.
{
  const waits = "agg2exp-asked", asked = sessionStorage.getItem(waits);
  if (__SIGNED_IN__ && asked) {
    sessionStorage.removeItem(waits);
    if (new URL(asked).origin === location.origin && asked !== location.href) location.replace(asked);
  } else if (!__SIGNED_IN__ && location.pathname + location.search !== "/") {
    sessionStorage.setItem(waits, location.href);
  }
}
</script>
"""


def gate() -> None:
    """Let nobody further who has not signed in, or has no role here."""
    try:
        sign_in = _sign_in()
    except InputError as error:  # the file was changed since the start, and nobody is let in by mistake
        words.refuse(error)
        st.stop()
    if sign_in is None:
        return
    _return(bool(st.user.is_logged_in))
    if not st.user.is_logged_in:
        _turned_back("Sign in to see scans and explanations.", "Sign in", ":material/login:", st.login)
    if role() is None:
        told = words.plain(person() or "Your provider, which told no confirmed e-mail address,")
        refusal = f"{told} has no role in this dashboard. Who runs it can give one."
        _turned_back(refusal, "Sign out", ":material/logout:", st.logout)


def who() -> None:
    """A line of the sidebar that says who is signed in, and lets them out."""
    if (name := person()) is None:
        return
    with st.sidebar, st.container(horizontal=True, vertical_alignment="center", gap="small", key="signed_in"):
        # Markdown would make a link of an e-mail address.
        st.html(f"<small>{escape(name)} · {role()}</small>", width="content")
        st.button("", key="sign_out", icon=":material/logout:", type="tertiary", help="Sign out", on_click=st.logout)


def person() -> str | None:
    """The e-mail address of who is signed in, as their provider confirms it; None without sign-in."""
    if _sign_in() is None or not st.user.is_logged_in:
        return None
    confirmed = str(st.user.get("email_verified", True)).lower() == "true"  # some providers never say it
    return str(st.user.get("email") or "") or None if confirmed else None


def role() -> str | None:
    """One of ROLES; None: nobody who may enter."""
    sign_in = _sign_in()
    return "operator" if sign_in is None else sign_in.role(person() or "")


def is_operator(address: str | None) -> bool:
    """Whether who has that e-mail address may upload now, outside of any page; without sign-in all may."""
    try:
        sign_in = _sign_in()
    except InputError:
        return False
    return sign_in is None or sign_in.role(address or "") == "operator"


def may(needed: str) -> bool:
    """Whether who looks may do what that role is needed for."""
    return access.allows(role(), needed)


def require(needed: str) -> None:
    """InputError unless who acts may: a role may have been taken since the page was drawn."""
    if not may(needed):
        raise InputError(f"this takes the role {needed}", role() or "no role")


def fragment(draw: Callable[Arguments, None], run_every: float | None = None) -> Callable[Arguments, None]:
    """`st.fragment` of what people with a role may see: it is drawn again without the page around it, and its gate."""

    @wraps(draw)
    def guarded(*args: Arguments.args, **named: Arguments.kwargs) -> None:
        if not _may_enter():
            st.rerun()
        draw(*args, **named)

    return st.fragment(guarded, run_every=run_every)


def _may_enter() -> bool:
    try:
        return role() is not None
    except InputError:
        return False


def keeps_from(what: str, needed: str) -> bool:
    """Whether who looks may not do this; then the page says so in place of the controls."""
    if may(needed):
        return False
    mine = role() or "viewer"
    st.caption(MAY_NOT.format(what=what, needed=needed, mine=mine, may=access.ROLES[mine]))
    return True


def _turned_back(text: str, title: str, icon: str, act: object) -> None:
    with st.container(horizontal_alignment="center", key="gate", gap="small"):
        st.markdown("## Agg²Exp Explorer", width="content")
        st.markdown(text, width="content")
        st.button(title, icon=icon, type="primary", on_click=act, key="gate_button")  # type: ignore[arg-type]
        st.caption("For research only; not a medical device.", width="content")
    st.stop()


def _return(signed_in: bool) -> None:
    st.html(RETURN.replace("__SIGNED_IN__", "true" if signed_in else "false"), unsafe_allow_javascript=True)


def _sign_in() -> SignIn | None:
    path = access.sign_in_file()
    if path is None:
        return None
    return _read(path, path.stat().st_mtime_ns if path.is_file() else 0)


@st.cache_resource(max_entries=1, show_spinner=False)
def _read(path: Path, changed: int) -> SignIn:
    return access.read_sign_in(path)
