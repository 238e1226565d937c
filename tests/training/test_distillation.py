"""Tests of distillation: the teacher is the LLM that reads text, the student the same LLM that receives audio."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import Item, collate
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.training.distillation import Distillation, require_frozen_llm, without_lora
from audiolm_lite.training.trainable import select_trainable
from tests.training.toy import VOCABULARY, make_brain, make_model

TEMPLATE = PromptTemplate("{bos}{audio}{instruction}{answer}{eos}")


class Letters:
    """A tokenizer with one token per letter."""

    bos_token_id, eos_token_id, unk_token_id = 1, 2, None
    all_special_ids = [1, 2]
    added_tokens_decoder: dict = {}

    def encode(self, text, add_special_tokens=True, split_special_tokens=False):
        return [3 + ord(letter) - ord("a") for letter in text]


class PerfectAdapter(nn.Module):
    """An adapter without errors: its features are token ids, its audio tokens their embeddings."""

    def __init__(self, embedding):
        super().__init__()
        self.table = nn.Parameter(embedding.weight.detach().clone())

    def forward(self, features, frames):
        return self.table[features[:, 0, :, 0].long()], frames


def make_batch(*spoken, audio=None):
    items = []
    for number, text in enumerate(spoken):
        row = {"id": f"row-{number}", "transcript": text, "instruction": "ab", "target": "cd" * (number + 1)}
        features = torch.tensor(Letters().encode(audio or text), dtype=torch.float32).view(1, -1, 1)
        items.append(Item(row, *TEMPLATE.encode(row, Letters(), features.shape[1]), features=features))
    return collate(items)


def make_student(**options):
    model = make_model(dropout=0.0, **options)
    model.adapter = PerfectAdapter(model.embedding)
    select_trainable(model, ["adapter.*", "llm.*lora_*"])
    return model


def test_a_perfect_adapter_has_no_loss():
    model, batch = make_student(), make_batch("hello", "dog")
    loss = model(batch, Distillation(TEMPLATE, Letters(), "transcript"))
    assert loss.total.item() == pytest.approx(0, abs=1e-5)
    assert loss.tokens == 2 + 1 + 4 + 1 and loss.correct == model(batch).correct


@pytest.mark.parametrize("chunk", [0, 2])
def test_the_objective_is_that_of_hinton(chunk):
    model, batch = make_student(), make_batch("hello", "dog", audio="xxxx")
    model.loss_chunk = chunk
    distillation = Distillation(TEMPLATE, Letters(), "transcript", weight=0.25, temperature=3.0)
    loss = model(batch, distillation)
    loss.total.backward()
    student, targets = model.supervised(batch)
    teacher, _ = model.supervised(distillation.text_batch(batch))
    student, teacher = model.head(student), model.head(teacher).detach()
    divergence = F.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="sum")
    expected = 0.75 * F.cross_entropy(student, targets, reduction="sum") + 0.25 * 9 * divergence
    torch.testing.assert_close(loss.total, expected)
    (expected_gradient,) = torch.autograd.grad(expected, [model.adapter.table])
    torch.testing.assert_close(model.adapter.table.grad, expected_gradient, rtol=1e-4, atol=1e-5)


def test_the_teacher_has_no_lora_and_trainable_parameters_stay_the_same():
    model, batch = make_student(), make_batch("hello")
    text = Distillation(TEMPLATE, Letters(), "transcript").text_batch(batch)
    before = model.supervised(text)[0]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.ones_(parameter)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    assert not torch.allclose(model.supervised(text)[0], before)
    with without_lora(model.llm):
        torch.testing.assert_close(model.supervised(text)[0], before)
    assert not torch.allclose(model.supervised(text)[0], before)
    assert trainable == [parameter.requires_grad for parameter in model.parameters()]


def test_a_run_learns_from_the_teacher(tmp_path):
    class Data(list):
        prompt = SimpleNamespace(template=TEMPLATE, tokenizer=Letters())
        mixture = None

        @property
        def lengths(self):
            return [len(item.input_ids) for item in self]

        def set_epoch(self, epoch):
            pass

    def data(*words):
        rows = [{"id": w, "transcript": w, "instruction": "ab", "target": w[::-1]} for w in words]
        features = [torch.tensor(Letters().encode(w[::-1]), dtype=torch.float32).view(1, -1, 1) for w in words]
        encoded = [TEMPLATE.encode(row, Letters(), len(row["id"])) for row in rows]
        return Data(Item(row, *pair, features=part) for row, pair, part in zip(rows, encoded, features))

    changes = {"distillation": {"text": "transcript"}, "epochs": 12, "grad_accumulation_factor": 1}
    brain = make_brain(tmp_path, make_student(), **changes)
    train = data("hello", "dog", "rain", "cat")
    first = brain.model(collate(list(train)), Distillation(TEMPLATE, Letters(), "transcript")).total.item()
    brain.fit_stage(train, data("hello", "rain"))
    assert brain.model(collate(list(train)), brain.objective).total.item() < 0.8 * first


def test_errors_name_what_cannot_teach():
    with pytest.raises(ConfigError, match='row "row-0" has no text in its field "caption"'):
        make_student()(make_batch("hello"), Distillation(TEMPLATE, Letters(), "caption"))
    with pytest.raises(ConfigError, match="weight is 2"):
        Distillation(TEMPLATE, Letters(), "caption", weight=2)
    model = make_model(lora=False)
    require_frozen_llm(model.requires_grad_(False))
    model.embedding.weight.requires_grad_(True)
    with pytest.raises(
        ConfigError, match="llm.model.embed_tokens.weight is trainable, and the teacher must not change; use LoRA"
    ):
        require_frozen_llm(model)
    assert VOCABULARY >= 3 + 26
