"""Members of tar files are read as files: the bytes of the unpacked file, for any tar format, order and process."""

import io
import multiprocessing
import os
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.audio import tar_members
from audiolm_lite.audio.reading import AudioError, audio_duration, read_audio
from audiolm_lite.audio.tar_members import open_member
from tests.audio.encoding import encode

NAMES = ["a.wav", "clips/b c.flac", f"{'long' * 40}/{'name' * 30}.wav", "клип é.flac", "b.more.dots.flac"]


def write(path, names, prefix="", format=tarfile.PAX_FORMAT):
    """Write a tar file with a clip per name; returns the content of each."""
    contents = {}
    with tarfile.open(path, "w", format=format) as tar:
        folder = tarfile.TarInfo(prefix + "clips")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            buffer = io.BytesIO()
            samples = np.random.default_rng(number).uniform(-0.5, 0.5, 800 + 37 * number)
            soundfile.write(buffer, samples, 16000, format=name.rpartition(".")[2].upper())
            contents[name] = buffer.getvalue()
            info = tarfile.TarInfo(prefix + name)
            info.size = len(contents[name])
            tar.addfile(info, io.BytesIO(contents[name]))
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "a.wav"
        tar.addfile(link)
    return contents


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_members_have_their_bytes_in_every_tar_format(tmp_path, format, prefix):
    contents = write(tmp_path / "s.tar", NAMES, prefix, format)
    for name in reversed(NAMES):
        member = open_member(tmp_path / "s.tar" / name)
        assert member.read() == contents[name] and member.name == str(tmp_path / "s.tar" / name)


@pytest.mark.parametrize("name", NAMES)
def test_audio_equals_that_of_the_unpacked_file(tmp_path, name):
    file = tmp_path / name.rpartition("/")[2][-20:]
    file.write_bytes(write(tmp_path / "s.tar", NAMES)[name])
    member = f"{tmp_path}/s.tar/{name}"
    assert torch.equal(read_audio(member), read_audio(file))
    assert torch.equal(read_audio(member, 0.01, 0.02), read_audio(file, 0.01, 0.02))
    assert audio_duration(member) == audio_duration(file)


def test_paths_outside_of_tar_files_are_not_changed(tmp_path):
    folder = tmp_path / "unpacked.tar"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(900), 16000)
    assert open_member(folder / "a.wav") is None and len(read_audio(folder / "a.wav")) == 900
    assert open_member(tmp_path / "none.tar/a.wav") is None
    with pytest.raises(AudioError, match="no such file"):
        read_audio(tmp_path / "none.tar/a.wav")


def test_the_table_is_made_once_and_again_when_the_tar_changes(tmp_path, monkeypatch):
    made, make = [], tar_members._write_table
    monkeypatch.setattr(tar_members, "_write_table", lambda *arguments: made.append(1) or make(*arguments))
    write(tmp_path / "s.tar", NAMES[:2])
    for _ in range(2):
        tar_members._members.cache_clear()  # as in another process
        assert open_member(tmp_path / "s.tar/a.wav") and len(made) == 1
    contents = write(tmp_path / "s.tar", NAMES[::-1])
    assert open_member(tmp_path / "s.tar/a.wav").read() == contents["a.wav"] and len(made) == 2
    tar_members._members.cache_clear()
    (tmp_path / ".s.tar.members").write_bytes(b"damaged")
    assert open_member(tmp_path / "s.tar/a.wav").read() == contents["a.wav"] and len(made) == 3


@pytest.mark.parametrize("member", ["no such.wav", "link.wav", "clips"])
def test_missing_members_are_named(tmp_path, member):
    write(tmp_path / "s.tar", NAMES)
    with pytest.raises(AudioError, match=rf"s.tar/{member}: s.tar has no such member"):
        read_audio(tmp_path / "s.tar" / member)


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_members_before_a_damage_can_be_read(tmp_path, damage):
    contents = write(tmp_path / "s.tar", NAMES)
    data = (tmp_path / "s.tar").read_bytes()
    half = data.index(contents[NAMES[2]]) - 1024
    tail = os.urandom(len(data) - half) if damage == "noise" else b""
    (tmp_path / "s.tar").write_bytes(b"" if damage == "empty" else data[:half] + tail)
    if damage != "empty":
        assert open_member(tmp_path / "s.tar" / NAMES[1]).read() == contents[NAMES[1]]
    with pytest.raises(AudioError, match="cannot be read up to this member|has no such member"):
        read_audio(tmp_path / "s.tar" / NAMES[3])


def test_members_of_foreign_formats_are_decoded(tmp_path):
    samples = 0.2 * np.sin(np.arange(2 * 16000) / 9)
    encode(tmp_path / "a.m4a", "aac", "ipod", samples, 16000)
    with tarfile.open(tmp_path / "m.tar", "w") as tar:
        tar.add(tmp_path / "a.m4a", "a.m4a")
    assert torch.equal(read_audio(tmp_path / "m.tar/a.m4a"), read_audio(tmp_path / "a.m4a"))
    whole = read_audio(tmp_path / "a.m4a")
    assert torch.equal(read_audio(tmp_path / "m.tar/a.m4a", 0.5, 1.0), whole[8000:24000])


def read_all(path, start, results):
    start.wait()
    results.put([len(read_audio(path / name)) for name in NAMES])


def test_processes_that_start_at_once_use_one_table(tmp_path):
    write(tmp_path / "s.tar", NAMES)
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    workers = [context.Process(target=read_all, args=(tmp_path / "s.tar", start, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    assert all(results.get(timeout=60) == [800 + 37 * n for n in range(len(NAMES))] for _ in workers)
    for worker in workers:
        worker.join()
