"""Joint CTC and LLM decoding: prefix scores, choices of tokens, and answers of a saved model."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolm_lite.api import AudioLM
from audiolm_lite.data.batching import Item
from audiolm_lite.decoding import Sampling, generate
from audiolm_lite.decoding.joint_ctc import CANNOT_EMIT, FLOOR, JointChooser, PrefixScores, token_entries
from audiolm_lite.decoding.options import GenerationError
from audiolm_lite.hub.load import load_model
from audiolm_lite.hub.save import save_model
from audiolm_lite.modeling.ctc import CTCHead
from tests.tiny import byte_tokenizer, tiny_llm

VOCABULARY = 12
EOS = 0


def random_scores(*shape, seed=0, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(*shape, generator=generator)).log_softmax(-1)


def one(scores):
    """Scores [N, 1 + P] of one clip."""
    return PrefixScores(scores[None], torch.tensor([len(scores)]))


def transcripts(scores):
    """Transcript -> its probability: the sum over all sequences of entries that collapse to it."""
    total = {}
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        entries = tuple(entry for entry, _ in itertools.groupby(path) if entry)
        probability = math.exp(sum(float(scores[frame, entry]) for frame, entry in enumerate(path)))
        total[entries] = total.get(entries, 0.0) + probability
    return total


@pytest.mark.parametrize(("frames", "pieces"), [(1, 2), (3, 1), (4, 3), (6, 2)])
def test_prefixes_have_the_probability_of_all_their_alignments(frames, pieces):
    scores = random_scores(frames, 1 + pieces)
    expected = transcripts(scores)
    for prefix in itertools.chain.from_iterable(itertools.product(range(1, 1 + pieces), repeat=n) for n in range(4)):
        state = one(scores)
        for entry in prefix:
            state.advance(torch.tensor([entry]))
        extended = state.extended(torch.arange(1, 1 + pieces)[None])[0].exp()
        for entry in range(1, 1 + pieces):
            begins = (*prefix, entry)
            probability = sum(p for entries, p in expected.items() if entries[: len(begins)] == begins)
            assert float(extended[entry - 1]) == pytest.approx(probability, abs=1e-6)
        assert float(state.complete().exp()) == pytest.approx(expected.get(prefix, 0.0), abs=1e-6)


def test_a_long_clip_equals_the_loop_over_its_frames():
    scores = random_scores(400, 9, sharpness=4.0).clamp(min=FLOOR)
    state, in_piece, in_blank, last = one(scores), [-math.inf] * 400, scores[:, 0].double().cumsum(0).tolist(), None
    for step, entry in enumerate([3, 3, 7, 1, 8, 8, 8, 2] * 6):
        piece, blank, new_piece, new_blank = scores[:, entry].tolist(), scores[:, 0].tolist(), [], []
        total = before = -math.inf
        for frame in range(400):
            if frame == 0:
                start = 0.0 if step == 0 else -math.inf
            else:
                start = in_blank[frame - 1] if entry == last else add(in_piece[frame - 1], in_blank[frame - 1])
            total = add(total, start + piece[frame])
            new_blank.append(add(before, new_blank[-1] if frame else -math.inf) + blank[frame])
            before = add(before, start) + piece[frame]
            new_piece.append(before)
        assert float(state.extended(torch.tensor([[entry]]))) == pytest.approx(total, rel=1e-9)
        state.advance(torch.tensor([entry]))
        in_piece, in_blank, last = new_piece, new_blank, entry
        assert float(state.complete()) == pytest.approx(add(in_piece[-1], in_blank[-1]), rel=1e-9)


def add(first, second):
    return float(np.logaddexp(first, second))


def test_a_clip_does_not_depend_on_longer_ones_beside_it():
    counts = [3, 11, 1, 7]
    clips = [random_scores(count, 5, seed=number) for number, count in enumerate(counts)]
    padded = torch.full((4, 11, 5), torch.nan)
    for row, clip in zip(padded, clips):
        row[: len(clip)] = clip
    together, alone = PrefixScores(padded, torch.tensor(counts)), [one(clip) for clip in clips]
    candidates = torch.arange(5)[None]
    for entry in (2, 2, 4, CANNOT_EMIT, 1):
        expected = torch.cat([state.extended(candidates) for state in alone])
        torch.testing.assert_close(together.extended(candidates.expand(4, -1)), expected, rtol=0, atol=1e-9)
        together.advance(torch.tensor([entry] * 4))
        for state in alone:
            state.advance(torch.tensor([entry]))
        complete = torch.cat([state.complete() for state in alone])
        torch.testing.assert_close(together.complete(), complete, rtol=0, atol=1e-9)


LLM = tiny_llm(VOCABULARY, seed=0, max_position_embeddings=128).eval()
ENTRIES = torch.tensor([[CANNOT_EMIT, CANNOT_EMIT, *range(1, VOCABULARY - 1)]] * 2)  # token 1 has no piece


def prompts(count):
    return torch.randn(count, 5, LLM.config.hidden_size, generator=torch.Generator().manual_seed(1))


def answers(embeds, clips, rows, weight):
    """Answers to prompts [B, S, H], of which these rows have the clips [R, N, 1 + P]."""
    longest = max(len(clip) for clip in clips)
    padded = torch.stack([torch.nn.functional.pad(clip, (0, 0, 0, longest - len(clip))) for clip in clips])
    scores = PrefixScores(padded, torch.tensor([len(clip) for clip in clips]))
    choose = JointChooser(scores, rows, ENTRIES, [EOS], weight)
    options = {"max_new_tokens": 12, "eos_ids": [EOS], "choose": choose}
    return generate(LLM, embeds, torch.ones(embeds.shape[:2]), **options)


def test_weight_zero_is_greedy():
    embeds = prompts(3)
    clips = [random_scores(8, VOCABULARY - 1, seed=n) for n in range(3)]
    expected = generate(LLM, embeds, torch.ones(3, 5), max_new_tokens=12, eos_ids=[EOS])
    assert answers(embeds, clips, [0, 1, 2], 0.0) == expected


def spelled(tokens, confidence=0.98):
    """A clip in whose frames the CTC emits these tokens, each followed by a blank."""
    frames = [entry for token in tokens for entry in (token - 1, 0)]
    scores = torch.full((len(frames), VOCABULARY - 1), (1 - confidence) / (VOCABULARY - 2))
    scores[torch.arange(len(frames)), frames] = confidence
    return scores.log()


def test_a_weight_near_one_follows_the_ctc_and_ends_with_it():
    said = [[2, 5, 5, 9], [11], [7, 3, 7]]
    assert answers(prompts(3), [spelled(tokens) for tokens in said], [0, 1, 2], 0.999) == said


def test_rows_without_the_ctc_stay_greedy_and_rows_do_not_depend_on_each_other():
    embeds = prompts(4)
    clips = [random_scores(frames, VOCABULARY - 1, seed=frames) for frames in (4, 16)]
    together = answers(embeds, clips, [1, 3], 0.6)
    greedy = generate(LLM, embeds, torch.ones(4, 5), max_new_tokens=12, eos_ids=[EOS])
    assert together[::2] == greedy[::2] and together[1] != greedy[1]
    for row, clip in zip((1, 3), clips):
        assert answers(embeds[row : row + 1], [clip], [0], 0.6) == [together[row]]


def test_the_llm_may_add_what_the_ctc_cannot_emit():
    """Token 1 has no piece, and the LLM is certain of it: it costs the floor, and the next piece costs no more."""
    choose = JointChooser(one(spelled([3, 4])), [0], ENTRIES, [EOS], 0.5)
    certain = torch.full((3, 1, VOCABULARY), -40.0)
    for step, token in enumerate([3, 1, 4]):
        certain[step, 0, token] = 0.0
    assert [int(choose(logits, torch.empty(1, step))) for step, logits in enumerate(certain)] == [3, 1, 4]


def test_an_answer_that_is_no_transcript_is_left_to_the_llm():
    """It begins with a token without a piece, such as a bracket; the CTC hears words that the LLM does not."""
    choose = JointChooser(one(spelled([4, 5], confidence=0.999)), [0], ENTRIES, [EOS], 0.9)
    logits = torch.zeros(3, 1, VOCABULARY)
    for step, token in enumerate([1, 7, EOS]):
        logits[step, 0, token] = 1.0
    assert [int(choose(step, torch.empty(1, number))) for number, step in enumerate(logits)] == [1, 7, EOS]


def test_more_tokens_than_frames_leave_the_choice_to_the_llm():
    choose = JointChooser(one(random_scores(2, VOCABULARY - 1)), [0], ENTRIES, [], 0.5)
    logits = torch.randn(9, 1, VOCABULARY, generator=torch.Generator().manual_seed(2))
    chosen = [int(choose(step, torch.empty(1, number))) for number, step in enumerate(logits)]
    assert chosen[3:] == logits[3:, 0].argmax(-1).tolist()


@pytest.mark.parametrize("mark", ["Ġ", "▁"])
def test_the_first_token_counts_with_the_space_before_it(mark):
    words = {"the": 0, f"{mark}the": 1, "s": 2, f"{mark}": 3, "</s>": 4}
    tokenizer = type("Tokenizer", (), {"get_vocab": lambda self: words})()
    assert token_entries(torch.tensor([1, 2]), tokenizer, 6).tolist() == [[1, 1, 2, 0, 0, 0], [0, 1, 2, 0, 0, 0]]


def test_letters_without_spaced_pieces_are_the_same_everywhere():
    first, later = token_entries(torch.arange(10, 90), byte_tokenizer(), 260)
    assert torch.equal(first, later) and later[89] == 80


def test_sampling_and_a_chooser_are_refused():
    with pytest.raises(ValueError, match="sampling and choose exclude each other"):
        generate(
            LLM, prompts(1), torch.ones(1, 5), max_new_tokens=1, eos_ids=[], sampling=Sampling(), choose=lambda *_: None
        )


@pytest.fixture
def folder(sources, make_experiment, make_model):
    """A saved model with a CTC head, whose default is to use it."""
    experiment = make_experiment(lora=False)
    experiment |= {"instructions": {"transcribe": "transcribe", "caption": "describe audio"}}
    experiment |= {"generation": {"ctc_weight": 0.9, "max_new_tokens": 8}}
    model = make_model(experiment)
    head = CTCHead(torch.arange(model.embedding.num_embeddings), model.embedding)
    torch.nn.init.normal_(head.blank)
    save_model(model, experiment, sources / "model", ctc_head=head.tensors())
    return sources / "model"


def waveforms():
    generator = torch.Generator().manual_seed(4)
    return [0.1 * torch.randn(samples, generator=generator) for samples in (9600, 17600, 5600)]


def test_transcripts_of_a_saved_model_use_its_ctc_head(folder):
    model, clips = AudioLM.from_pretrained(folder, device="cpu", dtype="float32"), waveforms()
    joint, plain = model.transcribe(clips), model.transcribe(clips, ctc_weight=0)
    assert joint != plain and model.ask(clips, "transcribe") == joint
    assert [model.transcribe(clip) for clip in clips] == joint
    # other questions, and transcripts of several clips, are those of the LLM
    assert model.caption(clips) == model.caption(clips, ctc_weight=0)
    assert model.ask([(clips[0], clips[1])], "transcribe") == model.ask(
        [(clips[0], clips[1])], "transcribe", ctc_weight=0
    )
    questions = ["describe audio", "transcribe", "what"]
    mixed = model.ask([(clips[2], clips[0]), clips[1], clips[2]], questions)
    assert mixed[1] == joint[1] and mixed[2] == model.ask(clips[2], "what", ctc_weight=0)


def test_the_encoder_computes_each_clip_once(folder, monkeypatch):
    model, passes = AudioLM.from_pretrained(folder, device="cpu"), []
    encoder = model.bundle.model.encoder
    monkeypatch.setattr(
        encoder, "forward", lambda *given, run=encoder.forward: passes.append(len(given[1])) or run(*given)
    )
    model.transcribe(waveforms())
    assert passes == [3]


def test_items_of_other_tasks_and_other_audio(folder):
    """The CTC receives the audio of the item, whatever its row names; without a transcription nothing is computed."""
    bundle, (clip, other, _) = load_model(folder), waveforms()
    bundle.ctc_head["blank"].fill_(3.0)
    model = AudioLM(bundle, dtype="float32")
    items = [model._items([audio], [{"instruction": "transcribe", "task": "asr"}])[0] for audio in (clip, other)]
    exchanged = Item(**{**vars(items[1]), "row": items[0].row})
    assert bundle.answer([exchanged]) == bundle.answer([items[1]])
    caption = replace(items[0], row={**items[0].row, "task": "caption"})
    told = replace(items[0], row={**items[0].row, "transcript": "yes"})
    for other in (caption, told):
        assert bundle.answer([other]) == bundle.answer([items[0]], {"ctc_weight": 0})


def test_another_search_replaces_the_models_own_weight(folder):
    bundle = load_model(folder)
    for given in ({"beams": 2}, {"temperature": 0.5}, {"repetition_penalty": 1.2}):
        assert bundle.options(given).ctc_weight == 0
    assert bundle.options({"max_new_tokens": 3}).ctc_weight == bundle.options({"do_sample": False}).ctc_weight == 0.9
    with pytest.raises(GenerationError, match="ctc_weight 0.5 and beams cannot be combined"):
        bundle.options({"beams": 2, "ctc_weight": 0.5})


def test_a_model_without_a_head_is_refused(folder):
    bundle = load_model(folder)
    bundle.ctc_head = None
    model = AudioLM(bundle)
    with pytest.raises(
        GenerationError, match=r"ctc_weight is 0.9 and the model has no CTC head; train a stage with ctc_s"
    ):
        model.transcribe(waveforms()[0])
    assert isinstance(model.transcribe(waveforms()[0], ctc_weight=0), str)
