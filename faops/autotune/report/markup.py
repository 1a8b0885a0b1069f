"""HTML in which whatever is not made here is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = ("br", "meta", "col")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Iterable["Content"]


def tag(name: str, content: Content = (), /, **attributes: str) -> Markup:
    """An element. Text in ``content`` is escaped unless it is Markup, and so are the values of attributes.

    An attribute that is a word of Python is written with an underscore at its end: ``class_``.
    """
    written = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{markup(content)}</{name}>")


def markup(content: Content) -> Markup:
    """Content in a row, escaped where it is not Markup."""
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(escape(content))
    return Markup("".join(markup(part) for part in content))
