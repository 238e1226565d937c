"""Tensor names that SALMONN's and SLAM-LLM's Q-Formers share, both being BERT layers."""

from audiolm_lite.convert.accounting import ConversionError, Rule, Tensors


def block_rules(prefix: str, inner: str) -> list[Rule]:
    """Rules for the layers below `prefix` (a regular expression); `inner` is what holds query, key and value."""
    layer = rf"{prefix}encoder\.layer\.(\d+)\."
    rules = []
    for theirs, ours in (("attention", "self"), ("crossattention", "cross")):
        rules += [
            Rule(
                rf"{layer}{theirs}\.{inner}\.(query|key|value)\.(\w+)", "adapter", rf"blocks.\1.{ours}_attention.\2.\3"
            ),
            Rule(rf"{layer}{theirs}\.output\.dense\.(\w+)", "adapter", rf"blocks.\1.{ours}_attention.out.\2"),
            Rule(rf"{layer}{theirs}\.output\.LayerNorm\.(\w+)", "adapter", rf"blocks.\1.{ours}_norm.\2"),
        ]
    return rules + [
        Rule(rf"{layer}intermediate_query\.dense\.(\w+)", "adapter", r"blocks.\1.mlp.0.\2"),
        Rule(rf"{layer}output_query\.dense\.(\w+)", "adapter", r"blocks.\1.mlp.2.\2"),
        Rule(rf"{layer}output_query\.LayerNorm\.(\w+)", "adapter", r"blocks.\1.mlp_norm.\2"),
    ]


def block_sizes(adapter: Tensors, heads: int | None) -> dict[str, int]:
    """Entries of the YAML block that the tensors tell; heads of 64 unless given, as in BERT."""
    queries, dim = adapter["query"].shape
    if heads is None and dim % 64:
        raise ConversionError(f"the Q-Former is {dim} wide, which is no multiple of BERT's 64 a head: give --heads")
    return {
        "queries": queries,
        "dim": dim,
        "heads": heads or dim // 64,
        "hidden_dim": adapter["blocks.0.mlp.0.weight"].shape[0],
        "blocks": 1 + max(int(name.split(".")[1]) for name in adapter if name.startswith("blocks.")),
    }
