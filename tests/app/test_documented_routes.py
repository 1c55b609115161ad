"""The promise that the README's table and the server have the same routes."""

import re
from pathlib import Path

from tests.app.served import Server

README = Path(__file__).parents[2] / "README.md"
ROUTE = re.compile(r"`(DELETE|GET|PATCH|POST|PUT) (/[^`]*)`")
BESIDE_THE_DOCUMENT = {("GET", "/docs")}
"""What serves the OpenAPI document is not in it."""


def test_the_readme_lists_each_route_and_no_other(server: Server) -> None:
    rows = [line.split("|")[1] for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    listed = {found for row in rows for found in ROUTE.findall(row)}
    paths = server.get("/openapi.json")["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert listed - BESIDE_THE_DOCUMENT == served
    for _, path in BESIDE_THE_DOCUMENT:
        assert server.client.get(path).status_code == 200
