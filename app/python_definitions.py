"""Turns Python source into pairs: first sentence of a docstring, and the definition without its docstrings.

Does not know packages, limits or splits.
"""

import ast
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

MIN_BODY_LINES = 3
MAX_CLASS_LINES = 40
MIN_WORDS = 4
MAX_WORDS = 40

ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "vs.", "cf.", "resp.", "approx.", "incl.", "al.")
WORD = re.compile(r"[\W_]*[^\W\d_]+([-'/][^\W\d_]+)*[\W_]*")
SENTENCE_END = re.compile(r"[.!?][)\]\"'`*]*\s+(?=[A-Z\"'`(\[:*])")
SECTION = re.compile(
    r"\s*(:\w|@\w|>>>|\.\. |[-=~*]{3,}|(args?|arguments?|keyword arguments|parameters?|params?|inputs?|"
    r"outputs?|returns?|raises|yields?|examples?|usage|notes?|attributes|see also)\s*(:|$))",
    re.IGNORECASE,
)
SIGNATURE = re.compile(r"[\w.]+\s*\(.*\)\s*(->.*)?[.:]?$")
SAYS_NOTHING = re.compile(
    r"\b(deprecated|copyright|licen[cs]ed?|constructor|overrid(e|es|den)|overwritten|inherited|todo|fixme|"
    r"not implemented)\b|^(see|(the )?same as|alias (for|of|to)|like|wrapper (for|around)|implements?|dummy|"
    r"docstring|internal|private|helper|this (method|function|class) (is|can|should|must|will))\b",
    re.IGNORECASE,
)

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Candidate:
    """One definition: ``id`` is its dotted name, ``text`` its source.

    ``query`` is the first sentence of its docstring, None where there is none, it says nothing or the source
    repeats it.
    """

    id: str
    text: str
    query: str | None

    @property
    def package(self) -> str:
        """The top-level name that ``id`` begins with."""
        return self.id.partition(".")[0]


def read_candidates(module: str, path: Path, dropped: Counter[str]) -> list[Candidate]:
    """Return the candidates of one file in source order; no text lies within another's.

    Functions and methods are candidates; a documented class of at most MAX_CLASS_LINES lines is one in place
    of its methods. ``dropped`` counts by reason what is left out, and a file that does not parse.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with tokenize.open(path) as file:
                source = file.read()
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, OSError):
        dropped["unparsable file"] += 1
        return []
    kept: dict[str, Candidate] = {}
    for candidate in _candidates(tree.body, module, source.split("\n"), dropped):
        if candidate.id in kept:
            dropped["redefinition"] += 1
        else:
            kept[candidate.id] = candidate
    return list(kept.values())


def _candidates(nodes: Iterable[ast.AST], prefix: str, lines: list[str], dropped: Counter[str]) -> Iterator[Candidate]:
    for node in nodes:
        if isinstance(node, Definition):
            name = f"{prefix}.{node.name}"
            if _is_dunder_or_test(node.name):
                dropped["test or dunder name"] += 1
            elif (candidate := _candidate(node, name, lines, dropped)) is not None:
                yield candidate
            elif isinstance(node, ast.ClassDef):
                yield from _candidates(node.body, name, lines, dropped)
        elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _candidates(ast.iter_child_nodes(node), prefix, lines, dropped)


def _candidate(node: Definition, name: str, lines: list[str], dropped: Counter[str]) -> Candidate | None:
    docstring = ast.get_docstring(node, clean=False)
    query = None if docstring is None else first_sentence(docstring)
    is_class = isinstance(node, ast.ClassDef)
    if is_class and query is None:
        return None
    text, body_lines = _without_strings(node, lines)
    if is_class and text.count("\n") >= MAX_CLASS_LINES:
        return None
    if body_lines < MIN_BODY_LINES:
        dropped["trivial"] += 1
        return None
    if query is not None and _letters(query) in _letters(text):
        query = None
    if query is None:
        dropped["no docstring" if docstring is None else "poor docstring"] += 1
    return Candidate(name, text, query)


def _is_dunder_or_test(name: str) -> bool:
    return "test" in name.lower() or (name.startswith("__") and name.endswith("__"))


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for _, value in ast.iter_fields(node):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield value


def _without_strings(node: Definition, lines: list[str]) -> tuple[str, int]:
    """Return the dedented source of ``node`` without bare strings, and its number of body lines of code.

    Bare strings are docstrings, nested ones too, and the strings below attributes; ``...`` stands where a
    block would be left empty. They are cut at the positions of the syntax tree, which count bytes.
    """
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    kept = [line.encode() for line in lines[first - 1 : node.end_lineno]]
    edits: list[tuple[ast.stmt, bytes]] = []
    for owner in ast.walk(node):
        for block in _blocks(owner):
            bare = [statement for statement in block if _is_bare_string(statement)]
            edits += [(statement, b"") for statement in bare]
            if bare and len(bare) == len(block):
                edits[-1] = (bare[-1], b"...")
    edits.sort(key=lambda edit: (edit[0].lineno, edit[0].col_offset))
    for statement, filler in reversed(edits):
        _cut(kept, statement, first, filler)
    header = max(node.body[0].lineno - first, 0)
    text = b"\n".join(kept).decode()
    indent = text[: len(text) - len(text.lstrip())]
    cleaned = [line.removeprefix(indent).rstrip() for line in text.split("\n")]
    code = sum(1 for line in cleaned[header:] if line and not line.lstrip().startswith("#"))
    return "\n".join(cleaned).strip(), code


def _is_bare_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _cut(kept: list[bytes], statement: ast.stmt, first: int, filler: bytes) -> None:
    assert statement.end_lineno is not None and statement.end_col_offset is not None
    start, end = statement.lineno - first, statement.end_lineno - first
    head = kept[start][: statement.col_offset] + filler
    tail = re.sub(rb"^\s*(;\s*|#.*)", b"", kept[end][statement.end_col_offset :])
    if head.strip() or tail.strip():
        kept[start : end + 1] = [head + tail]
        return
    while end + 1 < len(kept) and not kept[end + 1].strip():
        end += 1
    del kept[start : end + 1]


def first_sentence(docstring: str) -> str | None:
    """Return a docstring's first sentence, its whitespace collapsed, or None where it would make no query.

    The sentence ends at its full stop, at a blank line or where a section begins. Refused are fewer than
    MIN_WORDS or more than MAX_WORDS words, other alphabets, signatures, grammars, and phrases that say
    nothing about the code.
    """
    paragraph: list[str] = []
    for line in cleandoc(docstring).split("\n"):
        if not line.strip() or SECTION.match(line):
            break
        paragraph.append(line)
    sentence = _until_full_stop(" ".join(" ".join(paragraph).split()))
    tokens = sentence.split()
    words = sum(WORD.fullmatch(token) is not None for token in tokens)
    useful = (
        MIN_WORDS <= len(tokens) <= MAX_WORDS
        and 2 * words >= max(len(tokens), MIN_WORDS)
        and sentence.isprintable()
        and 10 * sum(map(str.isascii, sentence)) >= 9 * len(sentence)
        and not SIGNATURE.match(sentence)
        and not SAYS_NOTHING.search(sentence)
    )
    return sentence if useful else None


def _until_full_stop(text: str) -> str:
    for match in SENTENCE_END.finditer(text):
        sentence = text[: match.end()].rstrip()
        if not sentence.endswith(ABBREVIATIONS):
            return sentence
    return text
