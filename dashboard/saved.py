"""Saved lists of scans on a page: keeping the scans it shows, and the shelf that brings them back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import streamlit as st

from agg2exp_core.records import InputError
from agg2exp_core.store.lists import CaseList, remove_list, save_list
from dashboard import access, data, filters, words
from dashboard.address import Address, Link

MOST_NOTE = 2000
"""Characters of a list's note."""

KEEP_HELP = (
    "The list keeps these very scans, and the way to this view. Lists become filters on every page, and the view "
    "`lists` on the Query page; each is a small file in `lists/`."
)
SHELF_HELP = (
    "**Show scans** shows the scans that the list holds. **Open view** opens what it was saved from, filters and all; "
    "scans that came later can pass those too."
)


def keep(root: Path, shown: CaseList, key: str) -> None:
    """A button that saves the scans shown under a name.

    shown: cohort, cases and, where a link opens the view again, the link. key: of the page.
    """
    if not access.may("reviewer"):
        return
    count = len(shown.cases)
    names = {part: f"keep_{key}_{part}" for part in ("open", "name", "note", "replacing", "told")}
    with st.container(key=f"keep_{key}", width="content"):
        place = st.popover(
            "Save as list", icon=":material/bookmark_add:", key=names["open"], disabled=not count, type="tertiary",
            on_change="rerun", help=f"Save {'this scan' if count == 1 else f'these {count} scans'} under a name",
        )  # fmt: skip
    with place, st.form(f"keep_{key}_form", border=False):
        st.text_input("Name", key=names["name"], max_chars=64, help="Letters, digits, _ . and -; blanks become -.")
        st.text_area("Note", key=names["note"], max_chars=MOST_NOTE, height=80, placeholder="Why these scans?")
        st.checkbox("Replace a list of that name", key=names["replacing"])
        title = f"Save {count} scan{'' if count == 1 else 's'}"
        st.form_submit_button(title, type="primary", on_click=_keep, args=(root, shown, names), help=KEEP_HELP)
        if told := st.session_state.pop(names["told"], None):
            words.refuse(told)


def _keep(root: Path, shown: CaseList, names: dict[str, str]) -> None:
    """Save what the form says; once that is done, its fields are emptied and it closes."""
    name, note = words.as_name(st.session_state[names["name"]]), st.session_state[names["note"]].strip()
    try:
        access.require("reviewer")
        save_list(root, replace(shown, name=name, note=note), st.session_state[names["replacing"]])
    except InputError as error:
        st.session_state[names["told"]] = error
        return
    data.forget()
    st.toast(f"Saved **{words.plain(name)}**", icon=":material/bookmark_added:")
    st.session_state.update({names["name"]: "", names["note"]: "", names["replacing"]: False, names["open"]: False})


def shelf(address: Address, root: Path, cohort: str) -> None:
    """The cohort's lists, and what can be done with one: show its scans, open its view, download, remove."""
    lists = {saved.name: saved for saved in data.lists(root, cohort)}
    if not lists:
        return
    with st.expander(f"Saved lists ({len(lists)})", icon=":material/bookmarks:", key=address.key("shelf")):
        key = address.key(f"shelf_{cohort}")
        if st.session_state.get(key) not in lists:
            st.session_state[key] = next(iter(lists))
        titles = {name: f"{name} ({len(saved.cases)})" for name, saved in lists.items()}
        name = st.selectbox("List", lists, key=key, format_func=titles.__getitem__, help=SHELF_HELP)
        chosen = lists[name]
        if chosen.note:
            st.caption(words.plain(chosen.note))
        _actions(address, root, chosen)


def _actions(address: Address, root: Path, chosen: CaseList) -> None:
    with st.container(horizontal=True, gap="small"):
        place = address, chosen.cohort, chosen.name
        st.button("Show scans", key=address.key("shelf_scans"), on_click=filters.only_list, args=place)
        if chosen.link is not None and st.button(
            "Open view", key=address.key("shelf_view"), on_click=_open, args=(address, chosen.link)
        ):
            st.rerun()  # the choosers are no part of the fragment that this button stands in
        text = "case_id\n" + "".join(f"{case_id}\n" for case_id in chosen.cases)
        st.download_button(
            "CSV", text, f"{chosen.name}.csv", "text/csv", icon=":material/download:", on_click="ignore",
            key=address.key("shelf_csv"),
        )  # fmt: skip
        if not access.may("operator"):
            return
        with st.popover("", icon=":material/delete:", help="Remove this list", key=address.key("shelf_remove")):
            st.markdown(f"Remove **{words.plain(chosen.name)}**? Its scans and results stay.")
            st.button("Remove", key=address.key("shelf_removed"), on_click=_remove, args=(root, chosen.name))


def _open(address: Address, link: Link) -> None:
    """Show the view of a link, and nothing that it does not name."""
    filters.clear(address)
    address.open({"pick": []} | link)


def _remove(root: Path, name: str) -> None:
    try:
        access.require("operator")
        remove_list(root, name)
    except InputError as error:  # another session was first
        st.toast(words.plain(error))
    data.forget()
