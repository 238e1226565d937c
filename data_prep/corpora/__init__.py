"""Readers of corpora: each turns a folder in its publisher's layout into clips. One file per corpus or collection.

A file has a function `read_<corpus>` and `KEYS`, the documented YAML keys of its arguments. An argument that is a key
of every preparation (`data_prep.prepare.PREPARE_KEYS`), such as the seed, needs no entry.
"""
