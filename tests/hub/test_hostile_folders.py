"""Model folders of a stranger: no code runs, nobody is asked, and only safetensors and JSON in the folder are read."""

import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.config.errors import UserError
from audiolm_lite.config.registry import build
from audiolm_lite.convert.export import export_lora
from audiolm_lite.hub.contents import TENSOR_FILES
from audiolm_lite.hub.folder import CONFIG_FILE, read_config
from audiolm_lite.hub.load import load_model, load_trained
from audiolm_lite.hub.save import save_model
from audiolm_lite.language.llm import load_llm
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from tests.tiny import Code, save_recognizer, tiny_llm, word_tokenizer

DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000
_opened: list[str] = []
_recording = False


def _record(event: str, arguments: tuple) -> None:
    if _recording and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_record)  # cannot be removed again, so it does nothing outside of `opened`


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Names of the files that are opened during a test."""
    global _recording
    _opened.clear()
    _recording = True
    yield _opened
    _recording = False


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with copies of its Whisper, with decoder, and of its Llama."""
    root = tmp_path_factory.mktemp("original")
    torch.manual_seed(0)
    save_recognizer(root / "whisper")
    words = "<unk> <s> </s> user answer : dog rain".split()
    word_tokenizer(words, bos_token="<s>", eos_token="</s>").save_pretrained(root / "llama")
    tiny_llm(len(words), tie_word_embeddings=True, max_position_embeddings=64).save_pretrained(root / "llama")
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]}
    experiment = {
        "encoder": {
            "type": "whisper",
            "source": str(root / "whisper"),
            "padding": "trimmed",
            "decoder_language": "en",
            "layers": [-1],
        },
        "adapter": {"type": "linear", "stride": 4, "hidden_dim": 8},
        "llm": {"source": str(root / "llama"), "lora": lora},
        "template": "{bos}user : {audio} answer : {answer}{eos}",
    }
    encoder, (llm, _) = build("encoders", experiment["encoder"]), load_llm(experiment["llm"])
    sizes = {"feature_dim": encoder.feature_dim, "num_layers": encoder.num_layers, "llm_dim": 16}
    model = AudioLanguageModel(build_adapter({"type": "linear", "stride": 4, "hidden_dim": 8}, **sizes), llm, encoder)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 1
    save_model(model, experiment, root / "model", bundle=True)
    for name in ("whisper", "llama"):
        shutil.rmtree(root / name)
    return root / "model"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


def module(marker: Path) -> str:
    return f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Config: pass\nModel = Config\n"


def edit(path: Path, **entries: object) -> None:
    """Replace entries of a JSON file; `block__name` is an entry of a block."""
    content = json.loads(path.read_text())
    for name, value in entries.items():
        block = content
        *blocks, last = name.split("__")
        for inner in blocks:
            block = block[inner]
        block[last] = value
    path.write_text(json.dumps(content))


def with_code(name: str, file: bool = False, **entries: object) -> Callable:
    """A configuration that names code, which is in the folder if `file`."""

    def change(folder: Path, marker: Path) -> None:
        if file:
            (folder / name).with_name("evil.py").write_text(module(marker))
        auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
        edit(folder / name, auto_map={**auto, "AutoTokenizer": ["evil.Model", None]}, **entries)

    return change


def with_pickle(name: str, instead: str | None = None) -> Callable:
    def change(folder: Path, marker: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Code(marker)))
        if instead:
            (folder / instead).unlink()

    return change


def with_link(name: str, target: str) -> Callable:
    def change(folder: Path, marker: Path) -> None:
        path = folder / name
        other = Path(target)
        if not other.is_absolute():
            other = folder.parent / "elsewhere"
            shutil.move(path, other)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        path.symlink_to(other)

    return change


def with_json(name: str, **entries: object) -> Callable:
    return lambda folder, marker: edit(folder / name, **entries)


def with_text(name: str, text: str) -> Callable:
    return lambda folder, marker: (folder / name).write_text(text)


def with_header(name: str, header: bytes, length: int | None = None) -> Callable:
    data = struct.pack("<Q", len(header) if length is None else length) + header
    return lambda folder, marker: (folder / name).write_bytes(data)


def header(**entry: object) -> bytes:
    return json.dumps({"projection.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}).encode()


HOSTILE = {
    "llm_auto_map": (with_code("llm/config.json"), "auto_map names code"),
    "llm_own_type": (with_code("llm/config.json", file=True, model_type="evil"), "auto_map names code"),
    "encoder_auto_map": (with_code("encoder/config.json"), "auto_map names code"),
    "tokenizer_auto_map": (with_code("llm/tokenizer_config.json"), "auto_map names code"),
    "processor_auto_map": (with_code("encoder/preprocessor_config.json"), "auto_map names code"),
    "nested_auto_map": (with_json("llm/config.json", text_config={"auto_map": {"AutoModel": "a/b--c.D"}}), "auto_map"),
    "kernel": (with_json("llm/config.json", attn_implementation="evil/kernel"), "names code or files elsewhere"),
    "kernel_private": (with_json("encoder/config.json", _attn_implementation="evil/kernel"), "names code or files"),
    "kernel_of_a_block": (
        with_json(CONFIG_FILE, encoder__source={"d_model": 8, "attn_implementation": "evil/kernel"}),
        "names code or files elsewhere",
    ),
    "own_weights": (with_json("llm/config.json", transformers_weights="../x.safetensors"), "names a file of weights"),
    "tokenizer_elsewhere": (with_json("llm/tokenizer_config.json", vocab_file="/etc/passwd"), "names a file"),
    "bin_of_the_llm": (with_pickle("llm/pytorch_model.bin", "llm/model.safetensors"), "safetensors and JSON only"),
    "bin_of_the_encoder": (with_pickle("encoder/pytorch_model.bin", "encoder/model.safetensors"), "and JSON only"),
    "bin_beside_safetensors": (with_pickle("llm/pytorch_model.bin"), "safetensors and JSON only"),
    "pt": (with_pickle("encoder/model.pt"), "safetensors and JSON only"),
    "pkl": (with_pickle("lora/adapter_model.pkl"), "safetensors and JSON only"),
    "bin_of_the_lora": (with_pickle("lora/adapter_model.bin", "lora/adapter_model.safetensors"), "and JSON only"),
    "pickle_called_safetensors": (with_pickle("adapter.safetensors"), "damaged"),
    "pickle_called_licence": (with_pickle("llm/LICENSE.bin"), "safetensors and JSON only"),
    "native_code": (with_pickle("llm/decode_step.pt2"), "safetensors and JSON only"),
    "python": (with_text("llm/modeling_llama.py", "raise SystemExit"), "safetensors and JSON only"),
    "yaml": (with_text("encoder/hyperparams.yaml", "model: !new:os.system [id]"), "safetensors and JSON only"),
    "template_file": (with_text("llm/chat_template.jinja", "{{ 1 }}"), "safetensors and JSON only"),
    "lora_in_the_llm": (with_text("llm/adapter_config.json", "{}"), "safetensors and JSON only"),
    "yaml_configuration": (with_text(CONFIG_FILE, "encoder: !new:os.system [id]"), "not valid JSON"),
    "link_of_the_adapter": (with_link("adapter.safetensors", "elsewhere"), "symbolic link out of the model folder"),
    "link_of_the_configuration": (with_link(CONFIG_FILE, "elsewhere"), "symbolic link out of the model folder"),
    "link_of_weights": (with_link("llm/model.safetensors", "elsewhere"), "symbolic link out of the model folder"),
    "link_of_a_folder": (with_link("llm", "elsewhere"), "symbolic link out of the model folder"),
    "link_of_the_lora": (with_link("lora/adapter_model.safetensors", "elsewhere"), "symbolic link out of the model"),
    "link_to_a_device": (with_link("adapter.safetensors", "/dev/zero"), "symbolic link out of the model folder"),
    "link_to_secrets": (with_link("encoder", "/etc"), "symbolic link out of the model folder"),
    "deep_configuration": (with_text(CONFIG_FILE, DEEP), "nested more than"),
    "deep_llm": (with_text("llm/config.json", DEEP), "nested more than"),
    "deep_tokenizer": (with_text("llm/tokenizer_config.json", DEEP), "nested more than"),
    "deep_lora": (with_text("lora/adapter_config.json", DEEP), "nested more than"),
    "deep_vocabulary": (with_text("llm/tokenizer.json", DEEP), "tokenizer of .* cannot be loaded"),
    "deep_template": (with_json(CONFIG_FILE, template=json.loads("[" * 60 + "]" * 60)), "nested more than"),
    "list": (with_text(CONFIG_FILE, "[]"), "not a JSON object"),
    "unknown_entry": (with_json(CONFIG_FILE, brain="!name:os.system"), "'brain' is unknown"),
    "unknown_instruction": (with_json(CONFIG_FILE, instructions={"../x": "y"}), "is not one of transcribe"),
    "digest_of_a_path": (with_json(CONFIG_FILE, backbones={"../x": "0" * 64}), "is not a pretrained model with"),
    "licence_of_a_path": (with_json(CONFIG_FILE, licences={"../x": {}}), "is not a copied model"),
    "huge_adapter": (with_json(CONFIG_FILE, adapter__hidden_dim=10**12), "hidden_dim is 1000000000000"),
    "large_adapter": (with_json(CONFIG_FILE, adapter__hidden_dim=2**24), "describes .* numbers"),
    "adapter_divided_by_zero": (with_json(CONFIG_FILE, adapter__stride=0), "stride is 0"),
    "endless_clip": (
        with_json(CONFIG_FILE, encoder={"type": "logmel", "mels": 8, "window_seconds": 1e12}),
        "window_seconds is",
    ),
    "negative_adapter": (with_json(CONFIG_FILE, adapter__stride=-4), "stride is -4"),
    "infinite_adapter": (with_json(CONFIG_FILE, adapter__hidden_dim=float("inf")), "hidden_dim is inf"),
    "huge_rank": (with_json(CONFIG_FILE, llm__lora__r=10**9), "the rank of its LoRA is"),
    "lora_without_alpha": (with_json(CONFIG_FILE, llm__lora={"r": 2}), "without numbers r and alpha"),
    "tokenizer_list": (with_json(CONFIG_FILE, llm__tokenizer=["x"]), "tokenizer must be a name or a folder"),
    "many_beams": (with_json(CONFIG_FILE, generation={"beams": 10**6}), "beams is 1000000"),
    "huge_answer": (with_json(CONFIG_FILE, generation={"max_new_tokens": 10**12}), "tokens for an answer"),
    "huge_llm": (with_json("llm/config.json", hidden_size=10**15), "hidden_size is"),
    "large_llm": (with_json("llm/config.json", vocab_size=2**25), "llm: its configuration describes"),
    "many_layers": (with_json("llm/config.json", num_hidden_layers=10**9), "num_hidden_layers is"),
    "negative_llm": (with_json("llm/config.json", num_attention_heads=-2), "num_attention_heads is -2"),
    "large_encoder": (with_json("encoder/config.json", max_source_positions=2**24), "encoder: its configuration"),
    "huge_spectrogram": (with_json("encoder/preprocessor_config.json", n_fft=10**12), "n_fft is"),
    "random_encoder": (
        with_json(CONFIG_FILE, encoder={"type": "whisper", "source": {"d_model": 2**20, "encoder_attention_heads": 8}}),
        "encoder: its configuration describes",
    ),
    "index_elsewhere": (
        with_text("llm/model.safetensors.index.json", '{"weight_map": {"a": "../../adapter.safetensors"}}'),
        "is not a file next to it",
    ),
    "header_length": (with_header("adapter.safetensors", b"{}", 2**62), "damaged"),
    "header_shape": (with_header("adapter.safetensors", header(shape=[2**62, 2**62])), "damaged"),
    "header_negative": (with_header("adapter.safetensors", header(data_offsets=[-4, 0])), "damaged"),
    "header_beyond": (with_header("adapter.safetensors", header(data_offsets=[0, 2**60])), "damaged"),
    "header_deep": (with_header("adapter.safetensors", DEEP.encode()), "damaged"),
    "llm_header": (with_header("llm/model.safetensors", header(shape=[2**62])), "damaged"),
    "other_code": (with_json(CONFIG_FILE, encoder__type="os.system"), "unknown type"),
    "other_folder_of_a_fused": (
        with_json(CONFIG_FILE, encoder={"type": "fused", "encoders": {"../x": {"type": "logmel"}, "b": {}}}),
        "is not a name of letters",
    ),
    "special_file": (with_json(CONFIG_FILE, llm__source="/dev/zero"), "is neither a folder"),
    "tokenizer_outside": (with_json(CONFIG_FILE, llm__tokenizer="../elsewhere"), "llm/tokenizer source"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_model_folders_are_refused(name, folder, marker, opened):
    change, message = HOSTILE[name]
    change(folder, marker)
    opened.clear()
    with pytest.raises(UserError, match=message):
        load_model(folder)
    read = [Path(path) for path in opened if Path(path).is_relative_to(folder)]
    assert all(path.suffix in (".json", ".safetensors") for path in read), read


NAMES = ("/dev/zero", "../x", "lora/../../x", "*", "**/*", "llm/model.safetensors", ".", "", "state.pt", "lora/*")


@pytest.mark.parametrize("name", NAMES)
def test_names_under_tensors_are_those_of_the_format(name, folder, opened):
    content = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**content, "tensors": {**content["tensors"], name: 1}}))
    opened.clear()
    for use in (read_config, load_model, lambda path: export_lora(path, path.parent / "lora")):
        with pytest.raises(UserError, match='"tensors": .* is not a file of a model folder'):
            use(folder)
    assert {Path(path).suffix for path in opened if Path(path).is_relative_to(folder)} == {".json"}
    assert not (folder.parent / "lora").exists()


@pytest.mark.parametrize("count", [-1, True, 2**70, "4", None, [1]])
def test_counts_under_tensors_are_numbers(count, folder):
    edit(folder / CONFIG_FILE, tensors={"adapter.safetensors": count})
    with pytest.raises(UserError, match="adapter.safetensors has"):
        read_config(folder)


SOURCES = (
    "../llama",
    "llm/../../llama",
    "lora",
    "llm/model.safetensors",
    "other",
    "~/x",
    "a/b/c",
    "a\0b",
    "",
    ".",
    "x y",
)


@pytest.mark.parametrize("source", SOURCES)
def test_sources_are_copies_names_or_absolute_paths(source, folder):
    shutil.copytree(folder / "llm", folder / "other")
    shutil.copytree(folder / "llm", folder.parent / "llama")
    edit(folder / CONFIG_FILE, llm__source=source)
    with pytest.raises(UserError, match="is neither a folder of a pretrained model in the model folder"):
        load_model(folder)


def test_an_absolute_path_or_the_current_folder_is_no_way_around_the_list_of_files(folder, monkeypatch):
    shutil.copytree(folder / "llm", folder / "other")
    monkeypatch.chdir(folder.parent)
    for source in (str(folder / "other"), "model/other"):
        edit(folder / CONFIG_FILE, llm__source=source)
        with pytest.raises(UserError, match="is neither a folder of a pretrained model in the model folder"):
            load_model(folder)


def test_loading_reads_safetensors_and_json_of_the_folder_only(folder, marker, opened):
    (folder / "state.pt").write_bytes(pickle.dumps(Code(marker)))  # of a stage's checkpoint
    (folder / "evil.py").write_text(module(marker))
    opened.clear()
    bundle = load_model(folder, merge=True)
    load_trained(load_model(folder).model, folder)
    bundle.model.encoder.decoder.model  # noqa: B018 (the decoder is read when it is needed)
    read = {Path(path).relative_to(folder) for path in opened if Path(path).is_relative_to(folder)}
    assert {path.suffix for path in read} == {".json", ".safetensors"}
    assert Path("llm/config.json") in read and Path("encoder/tokenizer.json") in read


def test_a_folder_in_the_cache_of_the_hub_has_links_to_blobs(folder, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, blobs / str(number))
        link.symlink_to(blobs / str(number))
    assert load_model(snapshot).model.llm is not None
    (snapshot / "README.md").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="README.md: a symbolic link out of the model folder"):
        load_model(snapshot)


def test_every_file_of_the_format_may_be_missing_but_not_another_one(folder):
    assert set(read_config(folder)["tensors"]) <= {*TENSOR_FILES, "lora"}
    save_file({"a": torch.ones(1)}, folder / "llm" / "extra.safetensors")  # a shard that no index names is not read
    load_model(folder)
