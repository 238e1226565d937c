"""Rules for the BERT layers of the Q-Formers of SALMONN and SLAM-LLM."""

from audiolm_lite.backbones.tensor_report import ConversionError
from audiolm_lite.convert.tensor_rules import Rule, Tensors


def block_rules(prefix: str, inner: str) -> list[Rule]:
    """Rules for the layers below `prefix` (a regular expression); `inner` is the module with query, key and value.

    Examples
    --------
    >>> import torch
    >>> from audiolm_lite.convert.tensor_rules import apply_rules
    >>> tensors = {"bert.encoder.layer.1.attention.self.query.bias": torch.zeros(8)}
    >>> list(apply_rules(tensors, block_rules("bert[.]", "self")).adapter)
    ['blocks.1.self_attention.query.bias']
    """
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
    """Entries of the YAML block that follow from the tensors.

    Parameters
    ----------
    adapter : Tensors
    heads : int or None
        Attention heads; None: heads of dimension 64, as in BERT.

    Raises
    ------
    ConversionError
        `heads` is None, and the width is not a multiple of 64.

    Examples
    --------
    >>> import torch
    >>> adapter = Tensors({"query": torch.zeros(1, 128), "blocks.0.mlp.0.weight": torch.zeros(512, 128)})
    >>> block_sizes(adapter, heads=None)
    {'queries': 1, 'dim': 128, 'heads': 2, 'hidden_dim': 512, 'blocks': 1}
    """
    queries, dim = adapter["query"].shape
    if heads is None and dim % 64:
        raise ConversionError(f"the Q-Former's width {dim} is not a multiple of BERT's head size 64; set --heads")
    return {
        "queries": queries,
        "dim": dim,
        "heads": heads or dim // 64,
        "hidden_dim": adapter["blocks.0.mlp.0.weight"].shape[0],
        "blocks": 1 + max(int(name.split(".")[1]) for name in adapter if name.startswith("blocks.")),
    }
