"""The promise that the table of metrics in docs/operations.md and the server have the same metrics."""

import re
from pathlib import Path

from tests.app.served import Server

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_table_lists_each_metric_and_no_other(server: Server) -> None:
    _, _, section = OPERATIONS.read_text(encoding="utf-8").partition("\n### Metrics\n")
    rows = [line.split("|")[1] for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)(?:\{[^`]*\})?`", row)}
    text = server.client.get("/metrics").text
    served = set(re.findall(r"^# TYPE (hone_\w+) \w+$", text, re.MULTILINE))
    created = {name for name in served if name.endswith("_created")}
    assert listed == served - created, "docs/operations.md, ### Metrics"
