"""Published checkpoints into this project's folders, and its LLMs outwards: `audiolm-lite convert`.

One file, one format: `slam_llm`, `salmonn`, `nemo_salm`, `ltu_as`, `voxtral`. Each names every published tensor in a
list of rules, so that none is lost or misread in silence; `export` is the way outwards.
"""
