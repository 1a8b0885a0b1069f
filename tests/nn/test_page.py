"""docs/nn.md: its Python blocks run, and print what stands below them."""

from __future__ import annotations

import contextlib
import io

from tests.test_docs import blocks, text_of


def test_the_page_prints_what_it_shows() -> None:
    text, printed = text_of("docs/nn.md"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("\n".join(blocks(text, "python")), {"__name__": "page"})
    assert printed.getvalue() == "".join(blocks(text, "text"))
