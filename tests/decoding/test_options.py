"""Options of generation: what they switch on, which names are known, and the limit of an answer."""

import pytest

from audiolm_lite.decoding.options import GenerationError, Options, read_options, replace_options


def test_guards_are_on_by_default_and_can_be_turned_off():
    options = read_options({"max_new_tokens": 500})
    assert options.stop_loops and options.limit(4.0) == 64 + 100 and options.limit(1000) == 500
    off = read_options({"max_new_tokens": 500, "tokens_per_second": None, "stop_loops": False})
    assert off.limit(4.0) == 500 and not off.search(["a"])["stop_loops"]


def test_an_answer_to_the_shortest_clip_has_a_token():
    assert Options(tokens_per_second=0, token_allowance=0).limit(0.01) == 1


def test_penalty_and_ngrams_alone_stay_greedy():
    assert read_options({"repetition_penalty": 1.2}).search(["a"])["sampling"].temperature == 0
    sampling = read_options({"no_repeat_ngram_size": 4}).search(["a"])["sampling"]
    assert sampling.temperature == 0 and sampling.no_repeat_ngram_size == 4
    assert read_options({"repetition_penalty": 1.2, "temperature": 0.7}).search(["a"])["sampling"].temperature == 0.7
    beams = read_options({"beams": 3, "no_repeat_ngram_size": 4, "repetition_penalty": 1.2}).search(["a"])
    assert beams["no_repeat_ngram_size"] == 4 and beams["repetition_penalty"] == 1.2 and "sampling" not in beams


@pytest.mark.parametrize("name, value", [("top_p", 0.9), ("top_k", 5), ("seed", 7), ("temperature", 0)])
@pytest.mark.parametrize("search", [{}, {"beams": 3}, {"repetition_penalty": 1.2}, {"ctc_weight": 0.3}], ids=str)
def test_fields_of_sampling_alone_change_no_search(name, value, search):
    assert read_options({**search, name: value}) == read_options(search)
    assert read_options({**search, name: value, "do_sample": False}) == read_options(search)
    if not search:
        expected = {"temperature": 1.0, name: value} if name != "temperature" else {}
        assert read_options({name: value, "do_sample": True}).drawing == expected


def test_given_options_replace_those_of_the_model_under_both_names():
    def read(model, given):
        return read_options(replace_options(model, given))

    assert read({"num_beams": 4}, {"beams": 2}).beams == read({"beams": 4}, {"num_beams": 2}).beams == 2
    assert read({"do_sample": False}, {"temperature": 0.5}).drawing == {"temperature": 0.5}
    assert read({"do_sample": True, "top_p": 0.5}, {"temperature": 0}).drawing == {}
    assert read({"temperature": 0.5}, {"do_sample": False}).drawing == {}
    assert read({"top_p": 0.5}, {"do_sample": True}).drawing == {"top_p": 0.5, "temperature": 1.0}
    assert read({"temperature": 0.5}, {"temperature": None}).drawing == {}


def test_names_of_transformers():
    assert read_options({"num_beams": 3}) == read_options({"beams": 3})
    assert read_options({"do_sample": False, "temperature": 0.3, "seed": 1}) == read_options({})
    assert read_options({"do_sample": True}) == read_options({"temperature": 1.0})
    assert read_options({"do_sample": True, "top_k": 5}) == read_options({"temperature": 1.0, "top_k": 5})


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"max_length": 5}, "unknown option 'max_length'.*known are max_new_tokens.*temperature"),
        ({"repetition_penality": 1.1}, "did you mean 'repetition_penalty'"),
        ({"beams": 2, "temperature": 0.5, "top_p": 0.5}, "beams 2 and temperature, top_p cannot be combined"),
        ({"beams": 0}, "beams is 0; write a whole number of at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; write a whole number"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1; write a whole number of at least 0"),
        ({"tokens_per_second": -1}, "tokens_per_second is -1; write a number of at least 0, or null"),
        ({"silence_level": 3}, "silence_level is 3; write decibels of at most 0, or null"),
        ({"silence_level": True}, "silence_level is True"),
        ({"silence_answer": None, "silence_level": "no"}, "silence_level is 'no'"),
        ({"silence_answer": 3}, "silence_answer is 3; write a text"),
        ({"stop_loops": "no"}, "stop_loops is 'no'; write true or false"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; write a number above 0"),
        ({"ctc_weight": 1}, "ctc_weight is 1; write a number of at least 0 .* and below 1"),
        ({"ctc_weight": True}, "ctc_weight is True; write a number"),
        (
            {"ctc_weight": 0.5, "beams": 4},
            "ctc_weight 0.5 and beams cannot be combined; remove one of them, or set ctc_w",
        ),
        (
            {"ctc_weight": 0.5, "do_sample": True, "repetition_penalty": 1.1},
            "0.5 and repetition_penalty, temperature cannot be",
        ),
        ({"beams": 2, "do_sample": True}, "beams 2 and temperature cannot be combined"),
        ({"do_sample": "no"}, "do_sample is 'no'; write true or false"),
        ({"top_p": 5}, "top_p must be above 0 and at most 1"),
        ({"seed": "x"}, "seed is 'x'; write a whole number"),
        ({"temperature": -1}, "temperature must be at least 0"),
    ],
)
def test_unusable_options_are_refused(generation, message):
    with pytest.raises(GenerationError, match=message):
        read_options(generation)
