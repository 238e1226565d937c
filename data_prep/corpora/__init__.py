"""Readers of corpora: a folder as its publisher lays it out -> clips. One file, one corpus."""
