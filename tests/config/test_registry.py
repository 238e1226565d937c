"""Parts are chosen by name among the files of a room, and a wrong configuration is refused with its remedy."""

import pytest

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build, component_types


def test_types_are_the_files_that_define_a_part():
    assert "whisper" in component_types("encoders")
    assert "pooling" not in component_types("encoders")


def test_program_arguments_reach_only_the_parts_that_take_them():
    adapter = build("adapters", {"type": "linear", "stride": 2}, feature_dim=4, llm_dim=6, num_layers=1, unheard_of=3)
    assert adapter.projection.out_features == 6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "whispr"}, "encoders: unknown type 'whispr'; did you mean 'whisper'?"),
        ({"type": "pooling"}, "unknown type 'pooling'"),
        ({"type": "../data/manifest"}, "unknown type"),
        ({"type": "os.path"}, "unknown type"),
        ({"type": 3}, 'expected a mapping with an entry "type"'),
        ({"source": "x"}, 'expected a mapping with an entry "type"'),
        (["whisper"], "expected a mapping"),
        ({"type": "whisper"}, "argument 'source' is missing"),
        ({"type": "whisper", "source": "x", "paddin": "full"}, "unknown argument 'paddin'; did you mean 'padding'?"),
    ],
)
def test_wrong_configurations_are_refused(config, message):
    with pytest.raises(ConfigError) as error:
        build("encoders", config)
    assert message in str(error.value)


def test_arguments_of_the_program_cannot_be_overridden():
    with pytest.raises(ConfigError, match="'llm_dim' is set by the program"):
        build("adapters", {"type": "linear", "llm_dim": 8}, feature_dim=4, llm_dim=6)
