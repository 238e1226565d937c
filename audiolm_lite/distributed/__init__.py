"""Runs of several processes: communication between them, and which part of a job each of them does."""
