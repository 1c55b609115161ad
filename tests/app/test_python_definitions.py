import ast
from collections import Counter
from pathlib import Path

import pytest

from app.python_definitions import Candidate, first_sentence, read_candidates


def candidates(tmp_path: Path, source: str) -> tuple[dict[str, Candidate], Counter[str]]:
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    dropped: Counter[str] = Counter()
    return {found.id: found for found in read_candidates("pkg.module", path, dropped)}, dropped


@pytest.mark.parametrize(
    ("docstring", "query"),
    [
        ("Return the sum of both numbers.", "Return the sum of both numbers."),
        (
            "\n    Return the sum\n    of  both numbers\n\n    More words follow here.",
            "Return the sum of both numbers",
        ),
        ("Read all lines, e.g. The first one. Then close it.", "Read all lines, e.g. The first one."),
        ("Split at v1.2 of the format. Second sentence.", "Split at v1.2 of the format."),
        ("Keep ``markup`` in *this* sentence!  Next one.", "Keep ``markup`` in *this* sentence!"),
        ("Write the rows to disk\n:param rows: the rows", "Write the rows to disk"),
        ("Write the rows to disk\nArgs:\n    rows: the rows", "Write the rows to disk"),
    ],
)
def test_a_query_is_the_first_sentence(docstring: str, query: str) -> None:
    assert first_sentence(docstring) == query


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Constructor.",
        "Return the sum.",
        "word " * 41,
        "Args:\n    x: a number that is added to the other",
        ":param x: a number that is added to the other",
        "func(a, b, out=None) -> tuple of arrays",
        "marker_var = VARIABLE | QUOTED_STRING",
        "See the base class for what this does.",
        "Deprecated since version 3, use the other function.",
        "Copyright 2020 by the authors of this file.",
        "Возвращает сумму двух чисел из списка",
        "Return the \ud800 lone surrogate of a text.",
    ],
)
def test_what_says_nothing_is_no_query(docstring: str) -> None:
    assert first_sentence(docstring) is None


def test_the_source_is_kept_but_for_its_docstring(tmp_path: Path) -> None:
    found, _ = candidates(
        tmp_path,
        "class Outer(Base, metaclass=Meta):\n"
        "    @decorated(\n"
        "        'é')\n"
        "    def total(self, numbers):  # signature\n"
        '        """Return the sum of all numbers.\n'
        "\n"
        '        Über mehr Zeilen."""  # noqa\n'
        "\n"
        "        text = '''\n"
        "flush left'''\n"
        "        # why\n"
        "        return sum(numbers)\n",
    )
    assert found == {
        "pkg.module.Outer.total": Candidate(
            "pkg.module.Outer.total",
            "@decorated(\n    'é')\ndef total(self, numbers):  # signature\n    text = '''\nflush left'''\n"
            "    # why\n    return sum(numbers)",
            "Return the sum of all numbers.",
        )
    }


def test_no_bare_string_survives_and_the_rest_still_parses(tmp_path: Path) -> None:
    found, _ = candidates(
        tmp_path,
        "class Shape:\n"
        '    """Holds the outline of a drawn shape."""; sides = 3\n'
        '    name: str = "kept"\n'
        '    """Secret words on the name."""\n'
        "    class Empty:\n"
        "        'Secret words and nothing else.'\n"
        '    def area(self): "secret é"; return "kept"\n'
        "    def edge(self):\n"
        "        r'''Secret words''' 'and more'\n"
        "        ('secret '\n"
        "         'in brackets')\n"
        "    async def draw(self):\n"
        "        try:\n"
        "            'secret in a try'\n"
        "        except KeyError:\n"
        "            'secret in an except'\n",
    )
    (shape,) = found.values()
    tree = ast.parse(shape.text)
    assert "ecret" not in shape.text and shape.text.count('"kept"') == 2 and "sides = 3" in shape.text
    assert not [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is not ...
    ]


BODY = "    a = first(x)\n    b = second(a)\n    return b\n"


def test_small_documented_classes_stand_for_their_methods(tmp_path: Path) -> None:
    method = "    def go{}(self, x):\n        a = first(x)\n        b = second(a)\n        return b\n"
    small = 'class Small:\n    """Holds the things that matter here."""\n' + method.format("")
    large = 'class Large:\n    """Holds the things that matter there."""\n' + "".join(map(method.format, range(12)))
    bare = "class Bare:\n" + method.format("")
    found, _ = candidates(tmp_path, small + large + bare)
    assert list(found) == [
        "pkg.module.Small",
        *(f"pkg.module.Large.go{number}" for number in range(12)),
        "pkg.module.Bare.go",
    ]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    found, dropped = candidates(
        tmp_path,
        f"try:\n    import fast\nexcept ImportError:\n    def tiny(x):\n        return x\n"
        f"def test_first(x):\n{BODY}"
        f"class TestCase:\n    def set_up(self):\n        a = 1\n        b = 2\n        return a\n"
        f"def __str__(x):\n{BODY}"
        f"def silent(x):\n{BODY}"
        f"def vague(x):\n    'Constructor.'\n{BODY}"
        f"def echo(x):\n    'Say the name of x.'\n    print('say the NAME of x')\n{BODY}"
        f"def twice(x):\n    'Return the second of x.'\n{BODY}"
        f"if FLAG:\n    def twice(x):\n        a = 1\n        b = 2\n        return a\n",
    )
    assert {name.rpartition(".")[2]: value.query for name, value in found.items()} == {
        "silent": None,
        "vague": None,
        "echo": None,
        "twice": "Return the second of x.",
    }
    assert dropped == {
        "trivial": 1,
        "test or dunder name": 3,
        "no docstring": 2,
        "poor docstring": 2,
        "redefinition": 1,
    }


@pytest.mark.parametrize("content", [b"def broken(:\n", b"\xff\xfe\x00", b"# coding: no-such\n", b"x = 1\x00\n"])
def test_a_file_that_does_not_parse_is_counted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(content)
    dropped: Counter[str] = Counter()
    assert read_candidates("broken", path, dropped) == []
    assert dropped == {"unparsable file": 1}


def test_warnings_of_the_source_stay_silent_and_its_encoding_counts(tmp_path: Path) -> None:
    path = tmp_path / "latin.py"
    source = f"# coding: latin-1\nNAME = '\\d'\r\ndef f(x):\r\n    'Gives the größe of x.'\r\n{BODY}"
    path.write_bytes(source.encode("latin-1"))
    (found,) = read_candidates("latin", path, Counter())
    assert found == Candidate("latin.f", "def f(x):\n" + BODY.rstrip(), "Gives the größe of x.")
