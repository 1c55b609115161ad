"""HTTP routes, one group a file: each reads a request and one snapshot, and answers with its generation."""
