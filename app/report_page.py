"""What reports have in common as pages: one file that needs no other, and tables.

Does not know what is reported.
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("report_page.css")


def page(title: str, body: Sequence[str], more_style: str = "") -> str:
    """Return a page with ``body``, its parts; ``more_style`` is CSS after that of every report."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text()}{more_style}</style>\n</head>",
            "<body>\n<main>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def framed_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    style: str = "figures",
    cell: Callable[[str], str] = escape,
) -> str:
    """Return a table that scrolls within a narrow page; ``cell`` makes HTML of the text of all but a row's first."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = [
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{cell(text)}</td>" for text in rest)}</tr>'
        for first, *rest in rows
    ]
    inner = "\n".join([f"<thead><tr>{head}</tr></thead>", "<tbody>", *lines, "</tbody>"])
    return f'<div class="wide" tabindex="0"><table class="{style}">\n{inner}\n</table></div>'
