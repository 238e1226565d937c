"""All steps of the recipe in one process, on the real speech and sounds in corpus/ (see corpus/LICENSES.md).

python quickstart.py [RECORDING ...] [--fresh] [--from_scratch] [--key value ...]

quickstart.sh runs it. The stages start from the released model. Without one, or with --from_scratch, they begin with a
CTC start. Evaluation compares the model's answers from the audio alone, its answers with Whisper's transcript in the
prompt, that transcript itself, and the adapter without the LLM. At the end it transcribes and describes test clips
and the recordings. Finished steps are not repeated. The last line of standard output is a JSON object with the results.
"""

import hashlib
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.answering.files import answer_files
from audiolm_lite.api import AudioLM
from audiolm_lite.audio.reading import audio_duration
from audiolm_lite.config.errors import run_command
from audiolm_lite.data.manifest import audio_path, read_manifest, write_manifest
from audiolm_lite.decoding.recordings import Recording
from audiolm_lite.deploy import run as latency
from audiolm_lite.deploy.summary import heading, latency_once, print_summary, results, score_of
from audiolm_lite.evaluation import run as evaluation
from audiolm_lite.evaluation.report import write_report
from audiolm_lite.evaluation.runner import PREDICTIONS
from audiolm_lite.hub.released import released_or_path
from audiolm_lite.storage.atomic import write_text
from audiolm_lite.storage.hashes import sha256_of
from audiolm_lite.training import run as training
from data_prep import run as preparation
from data_prep import transcripts

CORPUS, DATA, RESULTS = Path("corpus"), Path("data"), Path("results")
RELEASED = "tiny"  # name of the model that the stages start from
ENCODER = "../../../hparams/encoders/whisper_tiny_en.yaml"
# Rows of each task and dataset: what two cores train on and answer in a few minutes.
TRAIN_ROWS, TEST_ROWS = 30, 30
SHARE = 0.3  # of the training clips are also asked about with Whisper's transcript in the prompt

PREPARE = {
    "an4_folder": CORPUS / "an4",
    "esc50_folder": CORPUS / "esc10",
    "speechocean762_folder": CORPUS / "speechocean762",
    # fewer derived clips than in the complete recipe
    "perturbed_share": 0,
    "label_copies": 0,
    "mixtures": 30,
    "silent_clips": 40,
}
# A trained model needs small steps; the learning rates of the stages are those of a new one.
FROM_RELEASED = {
    1: {"previous_stage": RELEASED, "ctc_start": "null", "learning_rates": '{"adapter.*": 2.0e-5}'},
    2: {"learning_rates": '{"adapter.*": 2.0e-5, "llm.*lora_*": 5.0e-5}'},
    3: {"learning_rates": '{"adapter.*": 2.0e-5, "llm.*lora_*": 5.0e-5}'},
}
FROM_SCRATCH: dict[int, dict[str, Any]] = {1: {"ctc_start": "{passes: 12, batch_tokens: 768}"}, 2: {}, 3: {}}
# Name in the results -> transcript in the prompt, control, task and score; all word error rates are of the same clips.
FURTHER_SCORES = {
    "wer_with_transcript": (True, "normal", "asr", "wer"),
    "wer_adapter_alone": (False, "adapter_alone", "asr", "wer"),
    "wer_whisper": (True, "transcript", "asr", "wer"),
    "qa_accuracy": (False, "normal", "word_said", "accuracy"),
    "qa_accuracy_no_audio": (False, "zeros", "word_said", "accuracy"),
}
SYSTEMS = {
    "wer": "from the audio alone",
    "wer_adapter_alone": "of the adapter without the LLM",
    "wer_with_transcript": "with Whisper's transcript in the prompt",
    "wer_whisper": "of Whisper tiny.en itself",
}


def main(argv: list[str]) -> None:
    """Run all steps."""
    started = time.monotonic()
    fresh = "--fresh" in argv
    from_scratch = "--from_scratch" in argv or not released_or_path(RELEASED).is_dir()
    argv = [argument for argument in argv if argument not in ("--fresh", "--from_scratch")]
    count = next((place for place, word in enumerate(argv) if word.startswith("--")), len(argv))
    recordings, argv = argv[:count], argv[count:]
    for name in recordings:
        audio_duration(name)  # an unreadable one is an error now, and not after minutes
    device = argv[argv.index("--device") :][:2] if "--device" in argv else []
    if fresh:
        for folder in (DATA, RESULTS):
            shutil.rmtree(folder, ignore_errors=True)
    root = RESULTS / "from_scratch" if from_scratch else RESULTS

    heading("1/6  real speech and sounds: audio, questions, features of Whisper tiny.en")
    preparation.main(["hparams/prepare.yaml", *_options(PREPARE), *argv])
    train, test = _choose("train", TRAIN_ROWS), _choose("test", TEST_ROWS)
    speech = DATA / "test_speech.jsonl"
    write_manifest(speech, [row for row in read_manifest(test) if row["task"] == "asr"])
    heading("2/6  Whisper's own transcripts")
    train_transcript, speech_transcript = _transcribe(train, SHARE, device), _transcribe(speech, 1.0, device)

    for stage, settings in (FROM_SCRATCH if from_scratch else FROM_RELEASED).items():
        heading(f"3/6  training, stage {stage} of 3")
        # The CTC start is fast and needs many words; the LLM sees few rows.
        first = DATA / "train.jsonl" if from_scratch else train
        files = [first] if stage == 1 else [train, train_transcript]
        own = {"output_root": root, "manifests.train": _listed(files), "warmup_steps": 5, "valid_answers": "null"}
        if stage == 1:
            own["tasks"] = "[sound_class, caption]"
        training.main([f"hparams/stage_{stage}.yaml", *_options({**own, **settings}), *argv])

    heading("4/6  evaluation: with and without audio, and the adapter alone")
    own = {"output_root": root, "controls": "[normal, zeros, adapter_alone]", "manifests": _listed([test])}
    own["metrics.caption.scores"] = "[bleu, rouge_l, cider_d]"  # without METEOR, which needs Java
    audio_alone = evaluation.main(["hparams/evaluate.yaml", *_options(own), *argv])
    heading("4/6  evaluation with Whisper's transcript in the prompt, and of that transcript itself")
    asr = {"output_root": root, "controls": "[normal, transcript]", "manifests": _listed([speech_transcript])}
    with_transcript = evaluation.main(["hparams/evaluate_transcript.yaml", *_options(asr), *argv])
    heading("5/6  latency")
    timed = ["hparams/evaluate.yaml", *_options({**own, "tasks": "[asr]", "latency_runs": 10, "latency_clips": 5})]
    timing = latency_once(audio_alone, root / "evaluation", lambda: latency.main([*timed, *argv]))

    heading("6/6  clips, report, results")
    model = AudioLM.from_pretrained(root / "stage_3", *device[1:])
    for line in _answers(model, _test_clips(test) | {name: name for name in recordings}):
        print(line)
    result = results(audio_alone, timing)
    for name, (transcript, *score) in FURTHER_SCORES.items():
        result[name] = score_of(with_transcript if transcript else audio_alone, *score)
    rates = "Word error rates of the same clips: " + ", ".join(
        f"{_percent(result[name])} {system}" for name, system in SYSTEMS.items()
    )
    write_report(
        root / "report.html",
        audio_alone,
        root / "evaluation" / PREDICTIONS,
        title="TinyReal quick start",
        notes=[rates, f"At most {TEST_ROWS} questions of each task and corpus, of the test part of corpus/."],
        latency=[timing],
    )
    print_summary(audio_alone, timing, root / "report.html")
    print(rates)
    print("next: the complete recipe (README.md here), your own data (README.md of the project), or")
    print('      python -c "from audiolm_lite import AudioLM; ', end="")
    print(f"print(AudioLM.from_pretrained('{root / 'stage_3'}').caption('clip.wav', transcript=False))\"")
    print(json.dumps(result | {"real": True, "seconds": round(time.monotonic() - started, 1)}))


def _options(values: Mapping[str, Any]) -> list[str]:
    """Write settings as options of a command line."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _listed(files: list[Path]) -> str:
    """Write files as a list in YAML."""
    return f"[{', '.join(map(str, files))}]"


def _percent(share: float | None) -> str:
    """Write a word error rate for reading."""
    return "–" if share is None else f"{100 * share:.1f} %"


def _choose(split: str, count: int) -> Path:
    """Write a manifest with at most `count` rows of each task and dataset of a split, the same ones every time."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in read_manifest(DATA / f"{split}.jsonl"):
        groups[row["task"], row["dataset"]].append(row)
    chosen = []
    for rows in groups.values():
        chosen += sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest())[:count]
    write_manifest(DATA / f"{split}_few.jsonl", chosen)
    return DATA / f"{split}_few.jsonl"


def _transcribe(manifest: Path, share: float, device: list[str]) -> Path:
    """Add Whisper's transcripts to a share of the clips of a manifest, unless that was done for the same manifest."""
    target = manifest.with_name(f"{manifest.stem}_transcript.jsonl")
    mark, source = target.with_suffix(".source"), f"{sha256_of(manifest)} {share}"
    if not target.exists() or not mark.exists() or mark.read_text(encoding="utf-8") != source:
        transcripts.main([str(manifest), str(target), "--encoder", ENCODER, "--share", str(share), *device])
        write_text(mark, source)
    return target


def _test_clips(manifest: Path) -> dict[str, str]:
    """Two test clips of speech and one of a sound: what is known about each, and its file."""
    clips = {}
    for task, number in {"asr": 2, "caption": 1}.items():
        rows = {row["dataset"]: row for row in read_manifest(manifest) if row["task"] == task}
        for dataset, row in list(rows.items())[:number]:
            clips[f'{dataset}, "{row["target"]}"'] = str(audio_path(manifest, row))
    return clips


def _answers(model: AudioLM, clips: Mapping[str, str]) -> Iterator[str]:
    """Transcribe and describe files: from the audio alone, and with Whisper's transcript in the prompt."""

    def ask(question: str, transcript: bool) -> list[Recording]:
        return list(answer_files(model, clips.values(), model.bundle.instructions[question], transcript=transcript))

    heard = ask("transcribe", False), ask("transcribe", True), ask("caption", False)
    for name, alone, together, described in zip(clips, *heard):
        yield name
        yield f"  from the audio alone:      {alone.error or alone.text}"
        yield f"  Whisper tiny.en itself:    {' '.join(part.transcript or '' for part in together.parts)}"
        yield f"  with Whisper's transcript: {together.error or together.text}"
        yield f"  description:               {described.error or '; '.join(part.text for part in described.parts)}"


if __name__ == "__main__":
    run_command(main)
