"""Command lines that cannot work: each job answers with one line that names the entry, and never with a traceback."""

from pathlib import Path

import pytest

from audiolm_lite import cli
from tests.training.test_build import make_corpus

EVALUATION = """
model_folder: {root}/model/stage_1
output_folder: {root}/evaluation
data_folder: {root}
manifests: [{root}/valid.jsonl]
metrics: {{sound_class: {{type: classification}}}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Folder with a corpus, the YAML file of a stage, a trained model, and broken YAML files."""
    root = make_corpus(tmp_path_factory.mktemp("corpus"))
    (root / "evaluate.yaml").write_text(EVALUATION.format(root=root))
    (root / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (root / "list.yaml").write_text("- a\n")
    (root / "tab.yaml").write_text("seed: 1\nllm:\n\tsource: x\n")
    (root / "include.yaml").write_text("encoder: !include:nowhere.yaml\n")
    (root / "class.yaml").write_text("brain: !name:audiolm_lite.nothing\n")
    (root / "reference.yaml").write_text("encoder: {source: !ref <nowhere>}\n")
    (root / "empty.jsonl").touch()
    with pytest.raises(SystemExit) as done:
        cli.main(["train", str(root / "stage.yaml"), "--output_root", str(root / "model"), "--device", "cpu"])
    assert done.value.code == 0
    return root


@pytest.fixture
def message(root, tmp_path, monkeypatch, capsys):
    """Run a command line with {root} and {tmp} filled in, and return the error message."""
    monkeypatch.chdir(tmp_path)  # an output folder without a name would be the working directory
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as done:
            cli.main([word.format(root=root, tmp=tmp_path) for word in words])
        if done.value.code == 2:  # argparse prints its usage first
            return capsys.readouterr().err.strip().splitlines()[-1]
        assert isinstance(done.value.code, str), done.value.code
        return done.value.code

    return run


TRAIN = [
    ("--encoder:={{}}", "computed with encoder type 'whisper', the YAML file has None"),
    ("--encoder.tpye=ssl", "encoders, type 'whisper': unknown argument 'tpye'; did you mean"),
    ("--encoder.layers=7", "encoder: layers is 7; write a list of numbers"),
    ("--adapter:={{}}", 'adapters: expected a mapping with an entry "type"'),
    ("--adapter.layer_heads=0", "adapters, type 'tltr', layer_heads 0: integer modulo by zero"),
    ("--adapter.layer_heads=x", "adapters, type 'tltr', layer_heads 'x'"),
    ("--llm:={{}}", "llm: entry 'source' is missing"),
    ("--llm.source={root}/nowhere", "nowhere' is not a model's folder, and cannot be loaded by this name"),
    ("--llm.source=nobody/nothing", "llm: source 'nobody/nothing' is not a model's folder"),
    ("--llm.lora.r=0", "llm, lora {'r': 0"),
    ("--llm.lora.target_modules=[nope]", "Target modules {'nope'} not found"),
    ("--llm.lora=3", "llm: lora is 3; write {r, alpha"),
    ("--manifests:={{train: 3, valid: 3}}", "manifests: 3 is not a list"),
    ("--manifests.train=[{root}/empty.jsonl]", "empty.jsonl: has no row"),
    ("--manifests.train=[{root}/nowhere.jsonl]", "nowhere.jsonl: no such manifest"),
    ("--question_files={{train: 3}}", "question_files: 3 is not a list"),
    ("--feature_folder={root}/nowhere", "nowhere: no feature store"),
    ("--tasks=[nope]", "has tasks ['nope']"),
    ("--tasks=[{{a: 1}}]", "tasks has the entry {'a': 1}"),
    ("--batch_tokens=0", "batch_tokens is 0; it must be at least 1"),
    ("--batch_tokens=3", "more than batch_tokens 3: raise batch_tokens"),
    ("--epochs=0", "epochs is 0; it must be at least 1"),
    ("--grad_accumulation_factor=0", "it must be at least 1"),
    ("--num_workers=-1", "num_workers is -1; it must be at least 0"),
    ("--warmup_steps=999", "warmup_steps is 999, and the run has only"),
    ("--betas=[1]", "betas is [1]; write two numbers"),
    ("--betas=[a, b]", "betas has the entry 'a'"),
    ("--seed=-1", "seed is -1; it must be at least 0"),
    ("--seed=99999999999999999999", "at most 64 bits"),
    ("--trainable=[3]", "trainable has the entry 3"),
    ("--learning_rates={{'*': x}}", "learning_rates, '*'"),
    ("--learning_rates={{'*': ", "is not valid YAML"),
    ("--augmentation={{time_masks: x}}", "augmentation: time_masks is 'x'; write a value such as 2"),
    ("--distillation={{}}", "distillation {}: "),
    ("--generation={{foo: 1}}", "generation: unknown option 'foo'"),
    ("--instructions={{transcribe: 3}}", "instructions: 'transcribe' is not an entry with text"),
    ("--template=<|eot_id|>{{audio}}{{answer}}{{eos}}", "<|eot_id|> would become"),
    ("--brain=foo", "brain is 'foo'; it must be of type Callable"),
    ("--device=gpu", "--device gpu: not a device of torch"),
    ("--output_folder=", "output_folder is empty"),
    ("--output_folder={root}/stage.yaml/x", "stage.yaml/x: Not a directory"),
]


@pytest.mark.parametrize(("option", "expected"), TRAIN, ids=[option for option, _ in TRAIN])
def test_train(message, option, expected):
    said = message("train", "{root}/stage.yaml", "--output_root={tmp}", "--device=cpu", option)
    assert said.startswith("error: ") and expected in said and "\n" not in said


EVALUATE = [
    ("--model_folder={root}/nowhere", "neither a folder nor a repository that can be downloaded"),
    ("--model_folder={root}", "no audiolm_lite.json; this is not a model folder"),
    ("--manifests=[]", "the list of manifests is empty"),
    ("--manifests=[3]", "manifests has the entry 3"),
    ("--metrics:={{sound_class: 3}}", "task 'sound_class': 3 is not a mapping"),
    ("--metrics:={{sound_class: {{type: regression}}}}", "target 'a high tone' does not name one number"),
    ("--metrics:={{sound_class: {{type: classification, labels: 3}}}}", "type classification: 'int' object"),
    ("--generation={{beams: 2, temperature: 1}}", "beams 2 and temperature cannot be combined"),
    ("--notes=[3]", "notes has the entry 3"),
]


@pytest.mark.parametrize(("option", "expected"), EVALUATE, ids=[option for option, _ in EVALUATE])
def test_evaluate(message, option, expected):
    said = message("evaluate", "{root}/evaluate.yaml", "--output_folder={tmp}", "--device=cpu", option)
    assert said.startswith("error: ") and expected in said and "\n" not in said


COMMANDS = [
    ("train", "no YAML file given"),
    ("train {root}", "no such file"),
    ("train {root}/binary.yaml", "binary.yaml: not UTF-8 text"),
    ("train {root}/list.yaml", "has keys and values"),
    ("train {root}/tab.yaml", "tab.yaml, line 3, column 1: not valid YAML"),
    ("train {root}/include.yaml", "nowhere.yaml: No such file"),
    ("train {root}/class.yaml", "no such entity as audiolm_lite.nothing"),
    ("train {root}/reference.yaml", "nowhere"),
    ("train {root}/stage.yaml --stages 1-3", "does not end in a stage number"),
    ("latency {root}/evaluate.yaml --latency_clips 0", "latency_clips is 0; it must be at least 1"),
    ("latency {root}/evaluate.yaml --backend onnx", "choose one of eager, inductor, aoti, cpu, "),
    ("plan {root}/stage.yaml --llm.source nobody/nothing", "nobody/nothing"),
    ("plan {root}/stage.yaml --vram x", "invalid float value"),
    ("plan {root}/stage.yaml --vram 0", "--vram is 0; it must be above 0"),
    ("prepare {root}/stage.yaml", 'no key "corpus"'),
    ("convert slam_llm {root}/nowhere {tmp}/out", "nowhere"),
    ("unshard {root}/nowhere {tmp}/out", "nowhere"),
    ("fetch nothing", "nothing"),
    ("manifest nemo manifest {root}/nowhere {tmp}/out", "nowhere"),
    ("manifest nemo manifest {root}/stage.yaml {tmp}/out", "error:"),
    ("manifest nemo manifest {root}/empty.jsonl {tmp}/out", "contains no rows"),
    ("transcripts {root}/nowhere {root}/out", "no such manifest"),
    ("text nope --file {root}/train.jsonl", "nope"),
    ("text lower --file {root}/nowhere", "No such file"),
    ("stats {root}/nowhere", "no such manifest"),
    ("tar {root}/train.jsonl {tmp}/tars --shards 0", "0 shards for the 12 clips"),
    ("verify {root}/nowhere", "nowhere"),
]


@pytest.mark.parametrize(("line", "expected"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_other_commands(message, line, expected):
    said = message(*line.split())
    assert expected in said and "error: " in said and "\n" not in said
