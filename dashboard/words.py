"""Texts of others on a page: shown as they are, and what the user asked wrongly for in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import streamlit as st

from agg2exp_core.records import InputError

Arguments = ParamSpec("Arguments")

AUTOMATIC = re.compile(r":(?=material/|[\w+-]+:)|(?<=http):(?=//)|(?<=https):(?=//)|(?<=www)(?=\.)", re.IGNORECASE)
"""Where an icon, an emoji or a link is about to be: Streamlit looks for these when the escapes are gone already."""

JOINER = "\u2060"
"""Has no width and breaks no line."""

LIST_START = re.compile(r"^(\d*)([.-])(?= |$)")


def plain(text: object) -> str:
    r"""A text as Markdown that shows just it, in one line: metadata, names and links bring no pictures or headings."""
    line = AUTOMATIC.sub(rf"\g<0>{JOINER}", " ".join(str(text).split()))
    signs = "".join(f"\\{sign}" if sign in r"\`*_{}[]()#+!|~<>:$&" else sign for sign in line)
    return LIST_START.sub(r"\1\\\2", signs)


def column_title(name: object) -> str:
    """A column's name as a heading: its first letter large, the others as they are (`BMI`)."""
    return f"{str(name)[:1].upper()}{str(name)[1:]}"


def model_title(name: object) -> str:
    """A model's name in words: `thorax17_swinunetr` is thorax17 swinunetr."""
    return str(name).replace("_", " ")


def as_name(text: str) -> str:
    """What a user calls a list or a session, as the name of a file: `wet lungs` is kept as `wet-lungs`."""
    return "-".join(text.split())


def refuse(reason: object) -> None:
    """Say what was refused or went wrong."""
    st.error(plain(reason), icon=":material/error:")


def not_here(label: str, wish: str) -> None:
    """Say that a link names what is not here."""
    st.warning(f"{plain(label)} of the link is not here: {plain(repr(wish[:64]))}", icon=":material/link_off:")


def told(draw: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A page, or a fragment of one, that says what the user asked wrongly for.

    Each needs this of its own: Streamlit draws a fragment again without the page around it.
    """

    @wraps(draw)
    def drawn(*args: Arguments.args, **named: Arguments.kwargs) -> None:
        try:
            draw(*args, **named)
        except InputError as error:
            refuse(error)

    return drawn
