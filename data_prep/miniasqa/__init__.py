"""MiniASQA: a small Open-ASQA of synthetic speech (espeak-ng) and synthetic sounds (NumPy).

With it, all parts of the toolkit can be run, trained and measured without any download. Results on it are not
predictive of results on real speech.
"""

# Increased whenever the same seed gives other bytes; stored in every manifest row.
VERSION = 1
