from html.parser import HTMLParser

from app.report_page import framed_table, page


class Tags(HTMLParser):
    """Notes which tags are open when the page ends, and which came at all."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_needs_nothing_beside_it_and_whatever_is_shown_is_text() -> None:
    nasty = "<script>alert(1)</script>"
    made = page(nasty, [framed_table((nasty, "b"), [(nasty, nasty)])], ".own { color: red }")
    tags = Tags()
    tags.feed(made)
    assert tags.open == [] and "table" in tags.seen and not {"script", "link", "img"} & tags.seen
    assert ".own { color: red }" in made and "http" not in made


def test_cells_may_be_made_otherwise_than_heads() -> None:
    made = framed_table(("a", "b"), [("x", "y")], "words", lambda text: f"<b>{text}</b>")
    assert '<th scope="row">x</th><td><b>y</b></td>' in made and 'class="words"' in made
