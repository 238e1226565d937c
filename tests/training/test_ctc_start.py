"""The CTC start of an adapter: training, restart, its head in later stages, and the control "adapter alone"."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.manifest import read_manifest, write_manifest
from audiolm_lite.decoding.options import GenerationError
from audiolm_lite.evaluation.run import main as evaluate
from audiolm_lite.evaluation.runner import EvaluationError
from audiolm_lite.hub.folder import CTC_HEAD_FILE, ModelFolderError
from audiolm_lite.hub.load import load_model
from audiolm_lite.modeling.ctc import CTCHead
from audiolm_lite.training import ctc_start
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.run import train_stage
from tests.training.test_build import make_corpus

ROOT = Path(__file__).parents[2]
OPTIONS = "{passes: 3, learning_rate: 0.02, batch_tokens: 60}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The corpus of tones, in which each clip also has a transcript, twice."""
    root = tmp_path_factory.mktemp("corpus")
    make_corpus(root)
    for name in ("train", "valid"):
        rows = list(read_manifest(root / f"{name}.jsonl"))
        asr = [{**row, "id": f"{row['id']}-{n}", "task": "asr"} for row in rows for n in "ab"]
        write_manifest(root / f"{name}.jsonl", [*rows, *asr])
    return root


def train(corpus, root, *flags, options=OPTIONS):
    command = [str(corpus / "stage.yaml"), "--output_root", str(root), "--device", "cpu"]
    return train_stage([*command, *(["--ctc_start", options] if options else []), *flags])


def adapter(root):
    return load_file(root / "stage_1" / "adapter.safetensors")


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Two stages, of which the first has a CTC start."""
    root = tmp_path_factory.mktemp("trained")
    train(corpus, root)
    train(corpus, root, "--stage", "2", "--trainable", "['adapter.*', 'llm.*lora_*']", options=None)
    return root


def test_the_adapter_learns_to_spell_the_transcripts(corpus, tmp_path):
    options = "{passes: 150, learning_rate: 0.02, batch_tokens: 400}"
    answers = "{metrics: {asr: {type: asr, normaliser: none}}}"
    train(corpus, tmp_path, "--tasks", "[asr]", "--valid_answers", answers, options=options)
    result = json.loads((tmp_path / "stage_1" / "adapter_alone.json").read_text())
    assert result["clips"] == 12 and result["steps"] == 150  # every clip once
    assert result["adapter_alone"]["wer"] == 0 and result["adapter_alone"]["normaliser"] == "none"


def test_all_of_the_adapter_is_trained_and_then_only_what_the_stage_trains(corpus, tmp_path, monkeypatch):
    fit, starts = AudioLMBrain.fit_stage, []

    def watched(self, *datasets):
        starts.append({name: tensor.clone() for name, tensor in self.model.adapter.state_dict().items()})
        fit(self, *datasets)

    monkeypatch.setattr(AudioLMBrain, "fit_stage", watched)
    train(corpus, tmp_path / "none", options=None)
    brain = train(corpus, tmp_path / "ctc")
    (before, after), end = starts, brain.model.adapter.state_dict()
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert all("bias" in name for name in same) and len(same) < len(before) / 4  # a bias of keys has no effect
    changed = {name for name in after if not torch.equal(after[name], end[name])}
    assert changed == {"projection.weight", "projection.bias"}


def test_a_restart_within_the_ctc_start_gives_the_same_model(corpus, trained, tmp_path, monkeypatch, caplog):
    save, saved = ctc_start._Trainer.save, []

    def stop_after_two(self, *arguments, **options):
        save(self, *arguments, **options)
        saved.append(self.passes)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ctc_start._Trainer, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path)
    with pytest.raises(ConfigError, match="unfinished run with other settings: seed was 3, is now 4"):
        train(corpus, tmp_path, "--seed", "4")
    train(corpus, tmp_path)
    assert saved == [1, 2, 3, 3] and "continuing after pass 2" in caplog.text
    assert_equal(adapter(tmp_path), adapter(trained))
    assert not (tmp_path / "stage_1" / "ctc_start.pt").exists()


def test_a_restart_after_the_ctc_start_does_not_repeat_it(corpus, trained, tmp_path, monkeypatch, caplog):
    flags = ("--batch_tokens", "60")
    train(corpus, tmp_path / "straight", *flags)

    def killed(self, window):  # before the first checkpoint
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AudioLMBrain, "fit_batch", killed)
        train(corpus, tmp_path / "restarted", *flags)
    caplog.clear()
    train(corpus, tmp_path / "restarted", *flags)
    assert "finished before" in caplog.text and "pass 1" not in caplog.text
    assert_equal(adapter(tmp_path / "straight"), adapter(tmp_path / "restarted"))


def test_a_damaged_state_is_reported_and_not_used(corpus, trained, tmp_path, caplog):
    (tmp_path / "stage_1").mkdir()
    (tmp_path / "stage_1" / "ctc_start.pt").write_bytes(b"not a zip file")
    train(corpus, tmp_path)
    assert "ctc_start.pt is damaged" in caplog.text
    assert_equal(adapter(tmp_path), adapter(trained))


def test_live_audio_gives_the_same_start_as_stored_features(corpus, trained, tmp_path):
    train(corpus, tmp_path, "--train_encoder", "true")
    stored, live = (
        json.loads((root / "stage_1" / "adapter_alone.json").read_text())["loss"] for root in (trained, tmp_path)
    )
    assert live == pytest.approx(stored, rel=0.02)


def test_later_stages_and_the_loaded_model_keep_the_head(trained):
    first, second = (load_file(trained / f"stage_{n}" / CTC_HEAD_FILE) for n in (1, 2))
    assert_equal(first, second)
    assert_equal(first, load_model(trained / "stage_2").ctc_head)


@pytest.mark.parametrize("change", ["blank", "pieces"])
def test_a_head_that_does_not_fit_the_llm_is_refused(trained, tmp_path, change):
    folder = shutil.copytree(trained / "stage_2", tmp_path / "model")
    tensors = load_file(folder / CTC_HEAD_FILE)
    tensors[change] = torch.cat([tensors[change], tensors[change][-1:] + 1000])
    save_file(tensors, folder / CTC_HEAD_FILE)
    with pytest.raises(ModelFolderError, match=f"{CTC_HEAD_FILE}: {change} has"):
        load_model(folder)


EVALUATION = """
data_folder: {corpus}
model_folder: {model}
output_folder: {output}
manifests: [{corpus}/valid.jsonl]
controls: [normal, adapter_alone]
generation: {{max_new_tokens: 3}}
metrics:
    asr: {{type: asr, normaliser: none}}
    sound_class: {{type: asr, normaliser: none}}
    caption: {{type: captioning, scores: [bleu_1]}}
"""


def run_evaluation(corpus, model, tmp_path, controls="normal, adapter_alone", generation="{max_new_tokens: 3}"):
    text = EVALUATION.format(corpus=corpus, model=model, output=tmp_path / "evaluation")
    text = text.replace("normal, adapter_alone", controls).replace("{max_new_tokens: 3}", generation)
    (tmp_path / "evaluate.yaml").write_text(text)
    return evaluate([str(tmp_path / "evaluate.yaml"), "--device", "cpu"])


def test_the_control_is_the_transcript_of_the_models_own_adapter(corpus, trained, tmp_path, capsys):
    metrics = run_evaluation(corpus, trained / "stage_1", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    alone = {line["id"]: line["prediction"] for line in lines if line["control"] == "adapter_alone"}
    assert len(alone) == 12 and metrics["items"] == 24
    assert "adapter alone" in capsys.readouterr().out
    assert "without the LLM" in (tmp_path / "evaluation" / "report.html").read_text()
    assert metrics["controls"]["adapter_alone"]["asr"]["wer"] >= 0
    assert alone["tone-0-a"] == alone["tone-0-b"] == alone["tone-0"]


def test_a_model_without_a_head_has_no_such_control(corpus, tmp_path):
    train(corpus, tmp_path, options=None)
    with pytest.raises(EvaluationError, match=r"stage_1 has no ctc_head.safetensors, which adapter_alone needs; train"):
        run_evaluation(corpus, tmp_path / "stage_1", tmp_path)


def test_evaluation_decodes_transcripts_jointly_with_the_ctc_of_each_controls_audio(corpus, trained, tmp_path):
    answers = {}
    for weight in (0, 0.9):
        (tmp_path / str(weight)).mkdir()
        options = "normal, zeros, shuffled", f"{{max_new_tokens: 6, ctc_weight: {weight}}}"
        run_evaluation(corpus, trained / "stage_1", tmp_path / str(weight), *options)
        lines = (tmp_path / str(weight) / "evaluation" / "predictions.jsonl").read_text().splitlines()
        for line in map(json.loads, lines):
            answers[weight, line["task"] == "asr", line["control"], line["id"]] = line["prediction"]
    changed = {key[1:3] for key, text in answers.items() if text != answers[(0, *key[1:])]}
    assert changed == {(True, "normal"), (True, "zeros"), (True, "shuffled")}


def test_validation_decodes_jointly_with_the_ctc_of_an_earlier_stage(corpus, trained, tmp_path, monkeypatch):
    heads, build = [], CTCHead.from_tensors
    monkeypatch.setattr(CTCHead, "from_tensors", lambda *given: heads.append(given[0]) or build(*given))
    shutil.copytree(trained / "stage_1", tmp_path / "stage_1")
    answers = "{metrics: {asr: {type: asr, normaliser: none}}, generation: {ctc_weight: 0.5}}"
    flags = ("--tasks", "[asr]", "--valid_answers", answers, "--epochs", "2")
    train(corpus, tmp_path, "--stage", "2", *flags, options=None)
    assert len(heads) == 2  # one per validation, because the word embeddings may be trained
    assert_equal(heads[0], load_file(trained / "stage_1" / CTC_HEAD_FILE))
    with pytest.raises(GenerationError, match="ctc_weight is 0.5 and the model has no CTC head; train a stage with"):
        train(corpus, tmp_path / "none", *flags, options=None)
    assert not (tmp_path / "none" / "stage_1" / "losses.jsonl").exists()  # before the first step


def test_transcripts_count_that_the_tasks_of_the_stage_exclude(corpus, trained, tmp_path):
    train(corpus, tmp_path, "--tasks", "[sound_class]")
    starts = [json.loads((root / "stage_1" / "adapter_alone.json").read_text()) for root in (trained, tmp_path)]
    assert starts[0] == starts[1] and starts[0]["clips"] == 12


def test_data_and_options_that_cannot_work_are_refused(corpus, tmp_path):
    sounds = [row for row in read_manifest(corpus / "train.jsonl") if row["task"] == "sound_class"]
    write_manifest(corpus / "sounds.jsonl", sounds)
    flags = ("--manifests", f"{{train: [{corpus}/sounds.jsonl], valid: [{corpus}/valid.jsonl]}}")
    with pytest.raises(ConfigError, match='ctc_start: no row of the training set has task "asr"'):
        train(corpus, tmp_path, *flags)
    with pytest.raises(ConfigError, match="ctc_start: unknown option 'epochs'"):
        train(corpus, tmp_path, options="{epochs: 3}")
    with pytest.raises(ConfigError, match="ctc_start: passes is 0; write a number above 0"):
        train(corpus, tmp_path, options="{passes: 0}")
    rows = list(read_manifest(corpus / "train.jsonl"))
    long = [{**row, "target": "a low tone " * (9 if number % 3 else 1)} for number, row in enumerate(rows)]
    write_manifest(corpus / "long.jsonl", long)
    flags = ("--manifests", f"{{train: [{corpus}/long.jsonl], valid: [{corpus}/valid.jsonl]}}")
    with pytest.raises(ConfigError, match=r"ctc_start: \d+ of 12 transcripts have more pieces than audio tokens, such"):
        train(corpus, tmp_path, *flags)


def test_a_few_transcripts_that_do_not_fit_are_left_out(corpus, tmp_path, caplog):
    rows = list(read_manifest(corpus / "train.jsonl"))
    some = [{**row, "target": "a low tone " * (9 if row["audio"] == "3.wav" else 1)} for row in rows]
    write_manifest(corpus / "some.jsonl", some)
    flags = ("--manifests", f"{{train: [{corpus}/some.jsonl], valid: [{corpus}/valid.jsonl]}}")
    train(corpus, tmp_path, *flags)
    assert "1 of 12 transcripts have more pieces than audio tokens, such as that of tone-3-a" in caplog.text
    assert json.loads((tmp_path / "stage_1" / "adapter_alone.json").read_text())["clips"] == 11


def test_two_processes_start_from_the_adapter_of_one(corpus, trained, tmp_path):
    code = (
        "import sys; from audiolm_lite.training import run; from audiolm_lite.distributed import processes\n"
        "import torch; torch.set_num_threads(1); from audiolm_lite.training.brain import AudioLMBrain\n"
        "fit = AudioLMBrain.fit_stage\n"
        "def look(self, *data):\n"
        "    torch.save(self.model.adapter.state_dict(), f'{sys.argv[1]}/rank{processes.rank()}.pt')\n"
        "    fit(self, *data)\n"
        "AudioLMBrain.fit_stage = look\n"
        "run.train_stage(sys.argv[2:])\n"
    )
    (tmp_path / "job.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "job.py"), str(tmp_path), str(corpus / "stage.yaml"), "--output_root", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = [*command, "--device", "cpu", "--ctc_start", OPTIONS]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal(first, second)
    alone = (json.loads((root / "stage_1" / "adapter_alone.json").read_text()) for root in (tmp_path, trained))
    assert next(alone) == next(alone)
