"""Evaluation: a model answers a test set with and without audio; metrics score the answers, a report shows them."""
