"""Commands of `hone`, one a file: each reads arguments and a configuration, wires the packages, reports."""
