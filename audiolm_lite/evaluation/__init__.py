"""Metrics of spoken and heard answers, the runner that produces them with their controls, and the HTML report."""
