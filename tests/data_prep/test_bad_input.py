"""A corpus with many kinds of damaged files: each clip gets correct features or is rejected with a reason.

One run of preparation reads all of it; a `Case` is a clip and its expected result.
"""

import json
import os
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.config.registry import build
from audiolm_lite.data.manifest import iterate_manifest, read_manifest
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store import FeatureStore
from data_prep.clips import Clip, CorpusError
from data_prep.prepare import PREPARE_KEYS, SPLITS, prepare

RATE = 16000


@dataclass
class Case:
    """One clip with its samples [S] at 16 kHz, from which features are expected, or with a phrase of the reason."""

    clip: Clip
    samples: np.ndarray | None
    phrase: str


class Corpus:
    """A folder to which cases are added."""

    def __init__(self, folder: Path):
        self.folder, self.cases = folder, []
        folder.mkdir()

    def good(self, name: str, samples: np.ndarray, **clip) -> None:
        self._add(name, samples, "", clip)

    def bad(self, name: str, phrase: str, **clip) -> None:
        self._add(name, None, phrase, clip)

    def _add(self, name: str, samples: np.ndarray | None, phrase: str, fields: dict) -> None:
        id = f"{len(self.cases)} {name}"
        clip = Clip("Bad", id, self.folder / name, SPLITS[len(self.cases) % 3], id, text="text")
        self.cases.append(Case(replace(clip, **fields), samples, phrase))

    def write(self, name: str, samples: np.ndarray, rate: int = RATE, **settings) -> Path:
        soundfile.write(self.folder / name, samples, rate, **settings)
        return self.folder / name

    def edit(self, name: str, change: Callable[[bytearray], bytes]) -> None:
        file = self.folder / name
        file.write_bytes(change(bytearray(file.read_bytes())))


def tone(rate: int = RATE, seconds: float = 0.5, level: float = 0.5) -> np.ndarray:
    """440 Hz with a weak sweep that is the same at every rate and that codecs cannot store exactly."""
    time = np.arange(round(rate * seconds)) / rate
    return (level * np.sin(2 * np.pi * 440 * time) + 0.05 * np.sin(2 * np.pi * 3000 * time**2)).astype(np.float32)


def flip(at: float) -> Callable[[bytearray], bytes]:
    def change(data: bytearray) -> bytes:
        start = int(at * len(data))
        for position in range(start, min(start + 40, len(data))):
            data[position] ^= 0x5A
        return bytes(data)

    return change


def header(size: int, rate: int = RATE) -> bytes:
    format = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate & 0xFFFFFFFF, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", min(size + 36, 0xFFFFFFFF))
        + b"WAVEfmt "
        + format
        + b"data"
        + struct.pack("<I", size)
    )


def damaged_files(corpus: Corpus) -> None:
    """Empty, cut and bit-flipped files of each format."""
    formats = {"wav": {}, "flac": {}, "ogg": {}, "mp3": {}, "aiff": {}, "sph": {"format": "NIST"}, "au": {}}
    for kind, settings in formats.items():
        samples = np.concatenate([tone(seconds=0.7), np.random.default_rng(0).normal(0, 0.1, 8000)])
        for damage in ("empty", "cut", "stub", "flipped"):
            corpus.write(f"{damage}.{kind}", samples, **settings)
        corpus.edit(f"empty.{kind}", lambda data: b"")
        corpus.bad(f"empty.{kind}", "it is empty (0 bytes)")
        corpus.edit(f"cut.{kind}", lambda data: data[: len(data) * 2 // 3])
        corpus.bad(f"cut.{kind}", "download the file again")
        corpus.edit(f"stub.{kind}", lambda data: data[:20])
        corpus.bad(f"stub.{kind}", "download the file again")
        corpus.edit(f"flipped.{kind}", flip(0.5))
        if kind in ("flac", "ogg"):
            corpus.bad(f"flipped.{kind}", "download the file again")
        else:  # the format has no checksum
            corpus.good(f"flipped.{kind}", soundfile.read(corpus.folder / f"flipped.{kind}", dtype="float32")[0])
        corpus.write(f"header.{kind}", samples, **settings)
        corpus.edit(f"header.{kind}", flip(0))
        if kind != "mp3":  # its first frame is only the tag with its length, without which it is read
            corpus.bad(f"header.{kind}", "not readable as audio")
    (corpus.folder / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(20000))
    corpus.bad("noise.mp3", "not readable as audio")
    corpus.write("vbr.mp3", np.concatenate([tone(), np.random.default_rng(0).normal(0, 0.2, 40000)]).clip(-1, 1),
                 bitrate_mode="VARIABLE", compression_level=0.5)  # fmt: skip
    corpus.edit("vbr.mp3", lambda data: data[data.index(data[:2], 100) :])
    corpus.bad("vbr.mp3", "clip of 3.10 s is longer than")
    corpus.write("stream.flac", tone())
    corpus.edit("stream.flac", lambda data: data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:])
    corpus.good("stream.flac", tone())


def odd_samples(corpus: Corpus) -> None:
    """Rare and wrong samples and headers."""
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        samples = tone()
        samples[4000] = value
        corpus.write(f"{name}.wav", samples, subtype="FLOAT")
        corpus.bad(f"{name}.wav", "NaN or infinite sample at 0.25 s")
    corpus.write("integers.wav", tone() * 32768, subtype="FLOAT")
    corpus.bad("integers.wav", "full scale is 1")
    for name, count in (("0 samples", 0), ("1 sample", 1)):
        corpus.write(f"{name}.wav", tone()[:count])
    corpus.bad("0 samples.wav", "contains no audio")
    corpus.bad("1 sample.wav", "clip of 1 samples is shorter than")
    corpus.write("10 ms.wav", tone()[:160], subtype="FLOAT")
    corpus.bad("10 ms.wav", "clip of 160 samples is shorter than")
    silence, clipped = np.zeros(8000, np.float32), tone(level=4.0).clip(-1, 1)
    for name, samples in (("silence", silence), ("clipped", clipped), ("float64", tone().astype(np.float64))):
        corpus.write(f"{name}.wav", samples, subtype="DOUBLE" if name == "float64" else "FLOAT")
        corpus.good(f"{name}.wav", samples.astype(np.float32))
    for rate in (8000, 44100, 96000, 192000):
        corpus.write(f"{rate}.wav", tone(rate), rate, subtype="FLOAT")
        corpus.good(f"{rate}.wav", tone())
    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "ULAW"):
        corpus.write(f"{subtype}.wav", tone(), subtype=subtype)
        corpus.good(f"{subtype}.wav", tone())
    corpus.write("8 channels.wav", np.stack([tone() * gain / 4.5 for gain in range(1, 9)], axis=1), subtype="FLOAT")
    corpus.good("8 channels.wav", tone())
    samples = (tone() * 32767).astype("<i2").tobytes()
    for name, size, rate in (("longer", 32000, RATE), ("unknown", 0xFFFFFFFF, RATE), ("rate 1", 16000, 1)):
        (corpus.folder / f"{name}.wav").write_bytes(header(size, rate) + samples)
    corpus.bad("longer.wav", "16000 of the 32000 bytes that its header announces")
    corpus.good("unknown.wav", tone())
    corpus.bad("rate 1.wav", "sample rate 1 Hz")
    (corpus.folder / "kspon.pcm").write_bytes(samples)
    corpus.good("kspon.pcm", tone())
    (corpus.folder / "odd.pcm").write_bytes(samples + b"\x00")
    corpus.good("odd.pcm", tone())
    (corpus.folder / "bare.raw").write_bytes(samples)
    corpus.bad("bare.raw", "not readable as audio")
    (corpus.folder / "song.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99))
    corpus.bad("song.m4a", "is MPEG-4 audio (m4a, mp4) that cannot be decoded")
    with (corpus.folder / "2 hours.wav").open("wb") as file:
        file.write(header(7200 * 32000))
        file.seek(44 + 7000 * 32000)
        file.write(samples)
        file.truncate(44 + 7200 * 32000)
    corpus.good("2 hours.wav", tone(), start=7000.0, duration=0.5)
    corpus.bad("2 hours.wav", "clip of 7200.00 s is longer than")


def odd_names(corpus: Corpus) -> None:
    """Unusual names, and paths that are not files."""
    corpus.write("flac.flac", tone()).rename(corpus.folder / "flac.wav")
    corpus.good("flac.wav", tone())
    (corpus.folder / "text.wav").write_text("<html>404 Not Found</html>")
    corpus.bad("text.wav", "not readable as audio")
    for name in ("a b.wav", "new\nline.wav", "-i.wav", "file:%s.wav", "#1+2.wav", *nfc_and_nfd("é한.wav")):
        corpus.write(name, tone(), subtype="FLOAT")
        corpus.good(name, tone())
    corpus.write(nfc_and_nfd("ö글.wav")[1], tone())
    corpus.bad(nfc_and_nfd("ö글.wav")[0], "written in Unicode form NFD")
    corpus.write("latin.wav", tone()).rename(corpus.folder / os.fsdecode(b"\xff.wav"))
    corpus.bad(os.fsdecode(b"\xff.wav"), "its name is not valid Unicode")
    (corpus.folder / "folder.wav").mkdir()
    corpus.bad("folder.wav", "is a directory")
    (corpus.folder / "broken.wav").symlink_to("gone.wav")
    corpus.bad("broken.wav", "broken link: no such file gone.wav")
    (corpus.folder / "loop.wav").symlink_to("loop.wav")
    corpus.bad("loop.wav", "cannot be found")
    os.mkfifo(corpus.folder / "pipe.wav")
    corpus.bad("pipe.wav", "is a pipe")
    corpus.bad("text.wav/a.wav", "Not a directory")
    corpus.bad("missing.wav", "no such file; check the path")
    corpus.bad("x" * 300, "name too long")
    corpus.bad("nu\0ll.wav", "null")
    corpus.write("secret.wav", tone(), subtype="FLOAT").chmod(0)
    if os.geteuid() == 0:  # root can read every file
        corpus.good("secret.wav", tone())
    else:
        corpus.bad("secret.wav", "cannot be opened (Permission denied)")


def nfc_and_nfd(name: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)


def odd_rows(corpus: Corpus) -> None:
    """Intact files with impossible annotations."""
    corpus.write("sound.wav", tone(seconds=1.5), subtype="FLOAT")
    corpus.good("sound.wav", tone(seconds=1.5)[8000:16000], start=0.5, duration=0.5)
    corpus.bad("sound.wav", "start must be >= 0", start=-0.5)
    corpus.bad("sound.wav", "duration > 0", duration=0.0)
    corpus.bad("sound.wav", "is not inside the 1.5 s", start=1.0, duration=0.6)
    corpus.bad("sound.wav", "is not inside the 1.5 s", start=2.0)
    corpus.bad("sound.wav", "no transcript", text="")
    corpus.bad("sound.wav", "no annotation to ask about", text=None)
    corpus.bad("sound.wav", "not valid Unicode", text="\ud800")
    corpus.bad("sound.wav", "split is 'dev'", split="dev")
    corpus.bad("sound.wav", "has the same id", id=corpus.cases[-9].clip.id, start=0.1)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    corpus = Corpus(tmp_path / "corpus")
    for add in (damaged_files, odd_samples, odd_names, odd_rows):
        add(corpus)
    assert len(corpus.cases) >= 80
    return corpus


def test_every_clip_gets_features_or_a_reason(corpus, sources, tmp_path, capfd):
    output, encoder = tmp_path / "out", {"type": "whisper", "source": str(sources / "whisper")}
    hparams = {name: key.default for name, key in PREPARE_KEYS.items()} | {
        "output_folder": output, "feature_folder": output / "features", "encoder": encoder, "seed": 1,
        "wordings": "varied", "max_rejects": 1.0, "batch_seconds": 10.0, "num_workers": 0,
    }  # fmt: skip
    prepare((case.clip for case in corpus.cases), hparams, {"device": "cpu"})
    rows = {row["id"]: row for split in SPLITS for row in read_manifest(output / f"{split}.jsonl")}
    rejected: dict[str, list[str]] = {}
    for line in (output / "rejected.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        rejected.setdefault(entry["id"], []).append(entry["reason"])
    store, whisper = FeatureStore(output / "features"), build("encoders", encoder).eval()

    wrong = []
    for case in corpus.cases:
        row = rows.pop(f"Bad-{case.clip.id}-asr", None) if case.samples is not None else None
        reasons = rejected.get(case.clip.id, [])
        if case.samples is None:
            if not any(case.phrase in reason for reason in reasons):
                wrong.append(f"{case.clip.id!r}: {case.phrase!r} not in {reasons}")
            continue
        if row is None:
            wrong.append(f"{case.clip.id!r}: no row, but {reasons}")
            continue
        samples = torch.from_numpy(case.samples)
        with torch.inference_mode():
            expected, frames = whisper(samples[None], torch.tensor([len(samples)]))
        stored = store[feature_key(row)].float()
        # 8 bit and mu-law are coarse, and a tiny random encoder is sensitive to small changes.
        if stored.shape != expected[0].shape or (stored - expected[0]).abs().mean() > 0.1 * expected.abs().mean():
            wrong.append(f"{case.clip.id!r}: {tuple(stored.shape)}, off by {(stored - expected[0]).abs().mean()}")
    assert not wrong, "\n".join(wrong)
    assert not rows  # no other rows
    bad = sum(case.samples is None for case in corpus.cases)
    assert sum(map(len, rejected.values())) == bad and len(corpus.cases) == bad + len(store)
    assert f"rejected: {bad} of {len(corpus.cases)} clips, {bad} for faults" in capfd.readouterr().out
    with pytest.raises(CorpusError, match=rf"{bad} of {len(corpus.cases)} clips were rejected"):
        prepare((case.clip for case in corpus.cases), hparams | {"max_rejects": 0.01}, {"device": "cpu"})


def test_manifest_lines(tmp_path):
    """Byte order mark and CR LF are read; every bad line is named, and the good lines between them are kept."""
    row = {
        "id": "a",
        "audio": "a.wav",
        "task": "asr",
        "instruction": "?",
        "target": "t",
        "dataset": "d",
        "split": "train",
    }
    bad = {
        "not JSON": b"{",
        "not UTF-8": json.dumps(row | {"id": "x"}).encode()[:-1] + b', "text": "\xff"}',
        "object": b"[1]",
        '"target"': json.dumps({key: row[key] for key in row if key != "target"} | {"id": "b"}).encode(),
        '"start"': json.dumps(row | {"id": "c", "start": -1}).encode(),
        '"duration"': json.dumps(row | {"id": "d", "duration": "3"}).encode(),
        '"references"': json.dumps(row | {"id": "e", "references": "t"}).encode(),
        '"id"': json.dumps(row).encode(),
        "bytes": json.dumps(row | {"id": "f", "text": "x" * 50_000_000}).encode(),
    }
    file = tmp_path / "m.jsonl"
    lines = [json.dumps(row).encode(), *bad.values(), json.dumps(row | {"id": "z"}).encode()]
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n")
    rejects: list[dict] = []
    assert [row["id"] for row in iterate_manifest(file, rejects)] == ["a", "z"]
    assert [reject["line"] for reject in rejects] == list(range(2, 2 + len(bad)))
    for phrase, reject in zip(bad, rejects):
        assert phrase in reject["reason"] and f"{file}, line {reject['line']}" in reject["reason"]
