"""Ask a server for vectors, hits and hard negatives: `hone serve` in one terminal, then this file in another.

    python examples/http_client.py "how do I close a socket" [http://127.0.0.1:8000]

Where the server asks for a key, HONE_KEY has one with the scopes search, encode and mine.
Does not know what the server answers from.
"""

import os
import sys

from app.client import ApiError, Client


def main(question: str, url: str = "http://127.0.0.1:8000") -> None:
    """Print what the server says to ``question``."""
    with Client(url, api_key=os.environ.get("HONE_KEY")) as client:
        encoded = client.encode([question])
        print(f"generation {encoded.generation}: vectors of {encoded.vectors.shape[1]} numbers")

        for mode in ("dense", "lexical", "hybrid"):
            (hits,) = client.search(question, top_k=3, mode=mode, with_text=True).results
            print(f"\n{mode}")
            for hit in hits:
                print(f"{hit.rank:3} {hit.score:.4f} {hit.id}  {(hit.text or '')[:80]}")

        try:
            (hits,) = client.search(question, top_k=3, rerank=True).results
        except ApiError as error:
            if error.status != 409:  # no ranker is loaded: `hone index --ranker FOLDER` puts one into the index
                raise
        else:
            print("\nreranked: " + ", ".join(f"{hit.id} {hit.score:.4f}" for hit in hits))

        # The same vector finds the same passages: a client may keep its vectors, as long as the space is the same.
        (hits,) = client.search_vectors(encoded.vectors, encoded.space, top_k=1).results
        best = hits[0].id

        print(f"\nhard negatives, if {best} were the one that is relevant")
        for mined in client.mine_lines(
            [{"id": "q1", "text": question, "positives": [best]}], num_negatives=3, relative_margin=0.05
        ):
            for negative in mined.negatives:
                print(f"{negative.rank:3} {negative.score:.4f} {negative.id}")

        # Which generations there are, and what became of the newest jobs; job_events follows one until it has ended.
        for known in client.generations(limit=3).generations:
            print(f"\ngeneration {known.number} of step {known.facts['step']}: {', '.join(known.names)}")
        for job in client.jobs(limit=3).jobs:
            print(f"job {job.id}: {job.kind}, {job.state}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
