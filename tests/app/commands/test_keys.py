from pathlib import Path

from app.keys import Keys
from app.settings import database_url
from tests.app.command_line import Hone


def test_keys_are_made_listed_and_revoked(hone: Hone, indexed: Path) -> None:
    store = ("--store", indexed)
    tokens = ("--tokens-per-minute", 5000)
    made = hone(
        "keys", "create", "ann", "--scope", "search", "--scope", "mine", "--per-minute", 60, *tokens, *store, "--json"
    ).json
    secret = hone("keys", "create", "bob", "--scope", "admin", *store).out.strip()
    keys = Keys(database_url(indexed))
    assert all(keys.find(offered) is not None for offered in (made["key"], secret))
    keys.close()
    listed = hone("keys", "list", *store, "--json").json["keys"]
    assert [(key["name"], key["scopes"], key["per_minute"], key["tokens_per_minute"]) for key in listed] == [
        ("ann", ["mine", "search"], 60, 5000),
        ("bob", ["admin"], None, None),
    ]
    assert hone("keys", "revoke", made["id"], *store).code == 0
    shown = hone("keys", "list", *store).out
    assert f"{made['id']}  revoked  ann: mine, search, 60 a minute, 5000 tokens a minute" in shown
    assert secret not in shown and made["key"].split("_", 2)[2] not in shown
    assert "no valid key" in hone("keys", "revoke", made["id"], *store).complaint
    assert "one or more of search, encode" in hone("keys", "create", "eve", "--scope", "all", *store).complaint
