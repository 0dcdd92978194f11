"""The browser's address: a link opens the same view for a colleague. A page follows it once, then its widgets rule."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from dashboard import data

Link = dict[str, list[str]]
"""A link's parameters: name → values."""

_WRITTEN, _SHOWN = "address_written", "address_shown"
MOST_IN_LINK = 60
"""Scans that a link names; of more, it would be longer than some servers take."""

SHARED = ("cohort", "run", "target")
"""What goes along from page to page."""

STEPS = """
<span class='looks'></span>
<script>
// Streamlit makes every writing of the address a step of the browser's history. What a page writes before anybody
// touched it only completes the address that opened it: as a step, it would cost a press of Back that changes nothing.
if (!window.agg2expSteps) {
  const steps = window.agg2expSteps = { touched: false };
  const push = history.pushState;
  history.pushState = (state, title, url) => {
    const stays = new URL(url, location).pathname === location.pathname;
    (stays && !steps.touched ? history.replaceState : push).call(history, state, title, url);
    if (!stays) steps.touched = false;
  };
  for (const touch of ["pointerdown", "keydown"]) addEventListener(touch, () => { steps.touched = true; }, true);
}
</script>
"""


@dataclass(frozen=True)
class Address:
    """What one page reads from the address and writes to it.

    side: where a page shows two sets, the name of one: its parameters begin with it and a dot.
    """

    page: str
    side: str = ""

    def key(self, name: str) -> str:
        """The session's key of a widget."""
        return "_".join(part for part in (self.page, self.side, name) if part)

    def follow(self) -> None:
        """Note what a link asks for if it came from outside, else, if the page was left, what it showed last.

        Once a page, before its widgets.
        """
        written = st.session_state.setdefault(_WRITTEN, {})
        now = _now()
        if now in [link for page, link in written.items() if page != self.page]:
            now = {}  # the browser's Back leaves another page's parameters in place
        left = st.session_state.get("address_page") != self.page
        st.session_state["address_page"] = self.page
        opened = st.session_state.pop(f"{self.page}_opened", None)
        if opened is not None:
            self._ask(opened, outside=True)
        elif now and now != written.get(self.page):
            self._ask(now, outside=True)
            data.forget()  # a link may name what was written since anybody last looked
        elif left:
            self._ask(written.get(self.page, {}) | st.session_state.get(_SHOWN, {}), outside=False)
        if now:  # this page's, even if the user leaves before it is drawn and has written its own
            written[self.page] = now

    def open(self, link: Link) -> None:
        """Let the page answer this link when it is drawn next, as if the user had followed it."""
        st.session_state[f"{self.page}_opened"] = link

    def asked(self, name: str) -> list[str] | None:
        """What the link asks for under this name, once."""
        return st.session_state.get(self._asked, {}).pop(self._named(name), None)

    def waiting(self, name: str) -> list[str] | None:
        """What the link asks for under this name, as long as nothing has answered it."""
        return st.session_state.get(self._asked, {}).get(self._named(name))

    def unanswered(self, beginnings: tuple[str, ...]) -> list[str]:
        """Rests of the names that a link from outside asks for, begin so and answer to nothing here; told once."""
        asked = st.session_state.get(self._asked, {})
        found = [(name, start) for name in asked for start in map(self._named, beginnings) if name.startswith(start)]
        for name, _ in found:
            del asked[name]
        return [name.removeprefix(start) for name, start in found] if self.from_outside else []

    @property
    def from_outside(self) -> bool:
        """Whether a user followed a link, and so should hear of what is not here."""
        return bool(st.session_state.get(f"{self.page}_from_outside"))

    def own(self, link: Link) -> Link:
        """The parameters of this side, as they stand in the address."""
        return {self._named(name): values for name, values in link.items()}

    def write(self, link: Link) -> None:
        """Let the address name what is shown; what a link asked for has been answered by then."""
        st.session_state[self._asked] = {}
        # Noted first: a user who leaves the page at this very moment stops the script in the next line.
        st.session_state.setdefault(_WRITTEN, {})[self.page] = link
        st.session_state[_SHOWN] = st.session_state.get(_SHOWN, {}) | {
            name: link[name] for name in SHARED if name in link
        }
        # Each writing is a step of the browser's history, so that the same address written again would trap Back.
        if _now() != link:
            st.query_params.from_dict(link)

    def amend(self, link: Link) -> None:
        """Write a part of the address anew, as a fragment that alone is drawn again does."""
        self.write(st.session_state.get(_WRITTEN, {}).get(self.page, {}) | link)

    def _ask(self, link: Link, outside: bool) -> None:
        st.session_state[self._asked] = dict(link)
        st.session_state[f"{self.page}_from_outside"] = outside

    def _named(self, name: str) -> str:
        return f"{self.side}.{name}" if self.side else name

    @property
    def _asked(self) -> str:
        return f"{self.page}_asked"


def count_steps() -> None:
    """Let the browser's history hold what a user did, and not what a page wrote of itself."""
    st.html(STEPS, unsafe_allow_javascript=True)


def _now() -> Link:
    """What the browser's address says."""
    return {name: st.query_params.get_all(name) for name in st.query_params}
