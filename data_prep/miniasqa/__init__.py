"""MiniASQA: a small Open-ASQA made on the spot from synthesised speech and synthesised sounds.

Everything here is synthetic: espeak-ng speaks, NumPy makes the sounds. The corpus exists so that every path of the
toolkit runs, learns and can be measured on a machine without any download; no figure measured on it says anything
about real speech.
"""

# Raised whenever the same seed would give other bytes; written into every manifest row.
VERSION = 1
