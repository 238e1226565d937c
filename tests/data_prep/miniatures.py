"""Miniatures of corpora in their publishers' layouts: a few clips of 0.2 s for each kind of line."""

import json
import runpy
from pathlib import Path

import numpy as np
import soundfile

from audiolm_lite.audio.reading import read_audio
from data_prep.clips import Clip

RECIPES = Path(__file__).parents[2] / "recipes"
SECONDS = 0.2


def write_audio(path: Path, seconds: float = SECONDS, rate: int = 16000) -> None:
    """Write noise in the format of the extension; .pcm has no header, and libsndfile cannot read .m4a."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(len(path.name)).uniform(-0.1, 0.1, round(seconds * rate))
    if path.suffix == ".pcm":
        path.write_bytes((samples * 32767).astype("<i2").tobytes())
    elif path.suffix == ".m4a":
        path.write_bytes(b"\x00\x00\x00\x20ftypM4A " + b"\x00" * 64)
    else:
        soundfile.write(path, samples, rate)


def write_lines(path: Path, *lines: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))


def run_recipe(name: str, *options: str | Path) -> None:
    """Run what `python prepare.py hparams/prepare.yaml ...` runs in a recipe's folder."""
    folder = RECIPES / name
    runpy.run_path(str(folder / "prepare.py"))["main"]([str(folder / "hparams/prepare.yaml"), *map(str, options)])


def by_split(clips: list[Clip]) -> dict[str, list[Clip]]:
    """Return the clips of each split, after checks: unique ids, readable audio, no group in two splits."""
    splits = {split: [clip for clip in clips if clip.split == split] for split in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == len(clips) == len({(clip.dataset, clip.id) for clip in clips})
    groups = [{clip.group for clip in members} for members in splits.values()]
    assert all(groups) and len(set().union(*groups)) == sum(map(len, groups))
    for clip in clips:
        assert len(read_audio(clip.audio, clip.start, clip.duration)) > 1000
    return splits


def librispeech(folder: Path) -> Path:
    lines = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for number, subset in enumerate(("train-clean-100", "dev-clean", "test-clean", "test-other")):
        reader = f"{19 + number}"
        lines.append(f"{reader:<5}| {'FM'[number % 2]} | {subset:<17}| 25.19 | Jane | Joe")
        chapter = folder / subset / reader / "198"
        names = [f"{reader}-198-{n:04d}" for n in range(2)]
        write_lines(chapter / f"{reader}-198.trans.txt", *(f"{name} IT'S NORTHANGER ABBEY" for name in names))
        for name in names:
            write_audio(chapter / f"{name}.flac")
    write_lines(folder / "SPEAKERS.TXT", *lines)
    return folder


def nemo(folder: Path) -> Path:
    """Manifests as NeMo writes them, of full files and of a segment."""
    for split in ("train", "valid", "test"):
        places = [{"offset": 0.1, "duration": 0.3}, {"offset": 0, "duration": None}, {"duration": None}]
        items = [{"audio_filepath": f"{split}/{n}.wav", "answer": "hello", **place} for n, place in enumerate(places)]
        for item in items:
            write_audio(folder / item["audio_filepath"], 0.5)
        write_lines(folder / f"{split}.json", *map(json.dumps, items))
    return folder


def esc50(folder: Path) -> Path:
    rows = [(f"{fold}-{n}-A-{n}.wav", fold, n, name) for fold in (1, 4, 5) for n, name in enumerate(("dog", "rain"))]
    for name, *_ in rows:
        write_audio(folder / "audio" / name, rate=44100)
    table = [f"{name},{fold},{target},{category},True,{fold}{target},A" for name, fold, target, category in rows]
    write_lines(folder / "meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take", *table)
    return folder


def libritts(folder: Path) -> Path:
    """The dev chapter has one text file per utterance instead of a list, as in some copies."""
    lines = ["READER\tGENDER\tSUBSET\tNAME"]
    for number, subset in enumerate(("train-clean-100", "dev-clean", "test-clean")):
        reader = f"{84 + number}"
        lines.append(f"{reader}\t{'FM'[number % 2]}\t{subset}\tChristie Nowak")
        chapter = folder / subset / reader / "121123"
        names = [f"{reader}_121123_{n:06d}_000000" for n in range(2)]
        for name in names:
            write_audio(chapter / f"{name}.wav", rate=24000)
            write_lines(chapter / f"{name}.normalized.txt", "Go, do you hear?")
            write_lines(chapter / f"{name}.original.txt", "Go. do you hear?")
        if subset != "dev-clean":
            table = [f"{name}\tGo. do you hear?\tGo, do you hear?" for name in names]
            write_lines(chapter / f"{reader}_121123.trans.tsv", *table)
            write_lines(chapter / f"{reader}_121123.book.tsv", *(f"{name}\tGo.\t10.0" for name in names))
    write_lines(folder / "speakers.tsv", *lines)
    return folder


def korean_tedx(folder: Path) -> Path:
    for speaker in ("67CV7Jqp7Iic", "64Ko6riw7JeF", "64uk7LWc6rCc", "67CV7J6E7Iic"):
        names = [f"{speaker}-zn8f-{n:04d}" for n in range(2)]
        write_lines(folder / speaker / "zn8f" / f"{speaker}-zn8f.trans.txt", *(f"{n} 반갑습니다  " for n in names))
        for name in names:
            write_audio(folder / speaker / "zn8f" / f"{name}.flac")
    return folder


def ksponspeech(folder: Path) -> Path:
    """Lists in both encodings that copies have, and evaluation files with half a sample at the end."""
    parts = {
        "train": "KsponSpeech_01/KsponSpeech_0001/KsponSpeech_00000",
        "dev": "KsponSpeech_05/KsponSpeech_0623/KsponSpeech_62000",
        "eval_clean": "KsponSpeech_eval/eval_clean/KsponSpeech_E0000",
        "eval_other": "KsponSpeech_eval/eval_other/KsponSpeech_E0300",
    }
    for part, stem in parts.items():
        lines = [f"{stem}{n}.pcm :: 아/ 몬 소리야, (70%)/(칠십 퍼센트) 확률이라니 b/" for n in (1, 2)]
        encoding = "cp949" if part == "dev" else "utf-8"
        write_lines(folder / f"KsponSpeech_scripts/{part}.trn", *lines, encoding=encoding)
        for n in (1, 2):
            write_audio(folder / f"{stem}{n}.pcm")
            if part.startswith("eval"):
                with (folder / f"{stem}{n}.pcm").open("ab") as file:
                    file.write(b"\x00")
    return folder


def kaldi(folder: Path) -> Path:
    """Korean data folders: long recordings with segments for training, full files for the others."""
    for number, part in enumerate(("train", "dev", "test")):
        recording = f"S{number}-rec"
        write_audio(folder / f"wav/{recording}.wav", 1.0)
        write_lines(folder / part / "wav.scp", f"{recording} wav/{recording}.wav")
        utterances = [f"{recording}-{n}" for n in range(2)] if part == "train" else [recording]
        if part == "train":
            write_lines(
                folder / part / "segments", *(f"{u} {recording} 0.{n} 0.{n + 5}" for n, u in enumerate(utterances))
            )
        write_lines(folder / part / "text", *(f"{utterance} 어디가 아프세요" for utterance in utterances))
        write_lines(folder / part / "utt2spk", *(f"{utterance} S{number}" for utterance in utterances))
        write_lines(folder / part / "spk2gender", f"S{number} f")
    return folder


def iemocap(folder: Path) -> Path:
    for n in range(1, 6):
        session, dialogue = folder / f"Session{n}", f"Ses{n:02d}F_impro01"
        ratings = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        spoken = []
        for turn, emotion in (("F000", "neu"), ("M000", "exc"), ("F001", "fru"), ("M001", "xxx"), ("F002", "ang")):
            name = f"{dialogue}_{turn}"
            ratings += [f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]", "C-E2:\tNeutral;\t()", ""]
            spoken.append(f"{name} [006.2901-008.2357]: Excuse me. [LAUGHTER]")
            write_audio(session / f"sentences/wav/{dialogue}/{name}.wav")
        write_lines(session / f"dialog/EmoEvaluation/{dialogue}.txt", *ratings)
        write_lines(session / f"dialog/EmoEvaluation/._{dialogue}.txt", "\x00\x05\x16\x07")
        write_lines(session / f"dialog/transcriptions/{dialogue}.txt", *spoken, "M: [BREATHING]")
    return folder


def voxceleb2(folder: Path, ending: str = ".wav") -> Path:
    lines = ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set "]
    ages = ["Name,gender_wiki,video_id,title,description,VoxCeleb_ID,gender,speaker_age"]
    for number in range(12):
        speaker, part = f"id{12 + number:05d}", "test" if number > 9 else "dev"
        lines.append(f"{speaker} ,n{12 + number:06d} ,{'mf'[number % 2]} ,{part} ")
        ages.append(f'Aaron,male,21Uxsk56VDQ,"An, interview","Two\nlines",{speaker},male,{39.0 + number}')
        ages.append(f"Aaron,male,2xUxsk56VDQ,,,{speaker},male,")
        for video in ("21Uxsk56VDQ", "2xUxsk56VDQ"):
            write_audio(folder / part / ("aac" if ending == ".m4a" else "wav") / speaker / video / f"00001{ending}")
    write_lines(folder / "vox2_meta.csv", *lines)
    write_lines(folder / "final_dataframe_extended.csv", *ages)
    return folder


def cmu_mosei(folder: Path) -> Path:
    """Two segments per video, stored out of order; one video is in no fold and one has no transcript."""
    import h5py

    values = {
        "a-video1": (1.0, 2, 0, 0, 0, 0, 0),
        "20345": (-0.3, 0, 1, 1, 0, 0, 0),
        "b_video_3": (0.0, 0, 0, 0, 0, 0, 1),
    }
    (folder / "Raw/Transcript/Segmented/Combined").mkdir(parents=True)
    with h5py.File(folder / "CMU_MOSEI_Labels.csd", "w") as file:
        for video, features in {**values, "unused": (0.0,) * 7}.items():
            group = file.create_group(f"All Labels/data/{video}")
            group["intervals"] = np.array([[0.5, 0.9], [-0.01, 0.4]], dtype="f4")
            group["features"] = np.array([features, (3.0, 0, 0, 2, 0, 1, 0)], dtype="f4")
            write_audio(folder / f"Raw/Audio/Full/WAV_16000/{video}.wav", 1.0)
            if video != "20345":
                lines = [f"{video}___0___0.1___0.4___I LOVE it", f"{video}___1___0.5___0.9___so much___yes"]
                write_lines(folder / f"Raw/Transcript/Segmented/Combined/{video}.txt", *lines)
        file.create_group("All Labels/metadata")
    names = ("standard_train_fold", "standard_valid_fold", "standard_test_fold")
    folds = [f"{name}=['{video}']" for name, video in zip(names, values)]
    write_lines(folder / "cmu_mosei_std_folds.py", *folds)
    return folder


def audiocaps(folder: Path) -> Path:
    """Three naming schemes of audio files; one training clip is missing."""
    for number, (part, count) in enumerate({"train": 1, "val": 5, "test": 5}.items()):
        lines = ["audiocap_id,youtube_id,start_time,caption"]
        for clip in range(2):
            video = f"{part[:2]}{clip}-ytid_ab"
            lines += [f'{number}{clip}{n},{video},30,"A dog barks, {n} times"' for n in range(count)]
            name = (f"Y{video}", f"{video}_30", f"{number}{clip}0")[number]
            if (part, clip) != ("train", 1):
                write_audio(folder / "audio" / part / f"{name}.{'flac' if clip else 'wav'}")
        write_lines(folder / f"{part}.csv", *lines)
    return folder


def clotho(folder: Path) -> Path:
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    for number, part in enumerate(("development", "validation", "evaluation")):
        names = [f"Waterfall, {part} {n}.wav" for n in range(2)]
        captions = ",".join(f'"Water falls, {n}."' for n in range(5))
        write_lines(folder / f"clotho_captions_{part}.csv", header, *(f'"{name}",{captions}' for name in names))
        table = [f'"{name}",café,{100 * number + n},link' for n, name in enumerate(names)]
        metadata = folder / f"clotho_metadata_{part}.csv"
        write_lines(metadata, "file_name,keywords,sound_id,sound_link", *table, encoding="latin-1")
        for name in names:
            write_audio(folder / part / name, rate=44100)
    return folder


def clotho_aqa(folder: Path) -> Path:
    """The first test clip is in Clotho's training part."""
    clips = {"train": ["Waterfall, development 1.wav"], "val": ["val.wav"], "test": ["Waterfall, development 0.wav"]}
    for part, names in clips.items():
        lines = ["file_name,QuestionText,answer,confidence"]
        for name in names:
            lines += [f'"{name}",Is there water?,{answer},yes' for answer in ("yes", "no", "Yes")]
            lines += [f'"{name}","What falls, and where?",{answer},yes' for answer in ("water", "rain", "rain")]
            write_audio(folder / "audio_files" / name, rate=44100)
        write_lines(folder / f"clotho_aqa_{part}.csv", *lines)
    return folder


def fsd50k(folder: Path) -> Path:
    labels = '"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf"'
    dev = [f"{64760 + n},{labels},{split}" for n, split in enumerate(("train", "train", "val"))]
    write_lines(folder / "FSD50K.ground_truth/dev.csv", "fname,labels,mids,split", *dev)
    write_lines(folder / "FSD50K.ground_truth/eval.csv", "fname,labels,mids", f"37199,{labels}")
    for n in range(3):
        write_audio(folder / f"FSD50K.dev_audio/{64760 + n}.wav", rate=44100)
    write_audio(folder / "FSD50K.eval_audio/37199.wav", rate=44100)
    return folder


def audioset(folder: Path, clips: int = 8) -> Path:
    """All lists; audio in sub-folders, as in some copies."""
    head = "# Segments csv created Sun Mar  5 10:54:31 2017"
    counts = "# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882"
    columns = "# YTID, start_seconds, end_seconds, positive_labels"
    files = {"balanced_train": "b", "unbalanced_train": "u", "eval": "e"}
    for part, letter in files.items():
        videos = [f"--{letter}{n:03d}xphWE" for n in range(clips)]
        rows = [f'{video}, 30.000, 40.000, "/m/09x0r,/t/dd00088"' for video in videos]
        write_lines(folder / f"{part}_segments.csv", head, counts, columns, *rows)
        for n, video in enumerate(videos):
            write_audio(folder / f"audio/{part}/part{n % 2:02d}/Y{video}.wav")
    names = ['0,/m/09x0r,"Speech"', '1,/t/dd00088,"Gush"', '2,/m/05zppz,"Male speech, man speaking"']
    write_lines(folder / "class_labels_indices.csv", "index,mid,display_name", *names)
    write_lines(folder / "mid_to_display_name.tsv", "/m/09x0r\tSpeech", "/m/0bt9lr\tDog", "/t/dd00088\tGush")
    for part, letter in {"train": "u", "eval": "e"}.items():
        rows = ["segment_id\tstart_time_seconds\tend_time_seconds\tlabel"]
        for n in range(clips):
            segment = f"--{letter}{n:03d}xphWE_30000"
            rows += [f"{segment}\t2.627\t7.237\t/m/0bt9lr", f"{segment}\t0.0\t0.5\t/m/09x0r"]
        rows.append(f"--{letter}000xphWE_30000\t8.0\t10.0\t/m/0bt9lr")
        write_lines(folder / f"audioset_{part}_strong.tsv", *rows)
    return folder


def vggsound(folder: Path, clips: int = 8) -> Path:
    """The first clip of the training part is a test clip of the miniature of AudioSet."""
    videos = ["--e000xphWE", *(f"---g{n:03d}_I2y" for n in range(1, clips))]
    rows = [f'{video},{n},"{label}",train' for n, video in enumerate(videos) for label in ["raining, hard"]]
    write_lines(folder / "vggsound.csv", *rows, "zzzzzzz_I2y,10,people marching,test")
    for n, video in enumerate(videos):
        write_audio(folder / f"audio/{video}_{n:06d}.flac")
    write_audio(folder / "audio/zzzzzzz_I2y_000010.flac")
    return folder


def fma(folder: Path) -> Path:
    tops = ("", "album", "set", "set", "track")
    names = ("", "title", "split", "subset", "genre_top")
    rows = [
        '2,"Two\nlines",training,small,Hip-Hop',
        "3,,training,medium,Rock",
        "135,,validation,small,Rock",
        "140,,test,small,Folk",
        "155,,training,large,",
    ]
    header = [",".join(tops), ",".join(names), "track_id,,,,"]
    write_lines(folder / "fma_metadata/tracks.csv", *header, *rows)
    for subset in ("small", "medium", "large"):
        for track in (2, 3, 135, 140, 155):
            write_audio(folder / f"fma_{subset}/000/{track:06d}.mp3", 0.4, 44100)
    return folder


def tiny_real(folder: Path) -> Path:
    """The corpora of TinyReal: two sounds, eight speakers, four orders and ten read sentences."""
    esc50(folder / "esc50")
    librispeech(folder / "librispeech")
    for part, speakers in {"train": ("fash", "fbbh", "mblw", "mrcb"), "test": ("marh",)}.items():
        names = [f"an4_{part}/{speaker}/an{number}-{speaker}-b" for number, speaker in enumerate(speakers)]
        write_lines(folder / f"an4/etc/an4_{part}.fileids", *names)
        texts = [f"<s> ERASE C Q </s> ({name.split('/')[-1]})" for name in names]
        write_lines(folder / f"an4/etc/an4_{part}.transcription", *texts)
        for name in names:
            write_audio(folder / f"an4/wav/{name}.wav")
    ocean = folder / "speechocean762"
    for part, speakers in {"train": range(6), "test": range(6, 8)}.items():
        names = [f"{speaker:04d}{number}" for speaker in speakers for number in range(3)]
        write_lines(ocean / part / "wav.scp", *(f"{name} WAVE/{name}.wav" for name in names))
        write_lines(ocean / part / "text", *(f"{name} I'M TWO EIGHT" for name in names))
        write_lines(ocean / part / "utt2spk", *(f"{name} {name[:4]}" for name in names))
        write_lines(ocean / part / "spk2age", *(f"{speaker:04d} {8 + 4 * speaker}" for speaker in speakers))
        write_lines(ocean / part / "spk2gender", *(f"{speaker:04d} {'mf'[speaker % 2]}" for speaker in speakers))
        for name in names:
            write_audio(ocean / f"WAVE/{name}.wav", 1.0)
    orders = [{"audio": f"audio/{number}.ogg", "slots": {"coffeeDrink": "latte"}} for number in range(8)]
    write_lines(folder / "barista/train.jsonl", *map(json.dumps, orders))
    for order in orders:
        write_audio(folder / "barista" / order["audio"])
    sentences = [f"clips/{number}.ogg\temma\tIt is number {number}, is it not?" for number in range(10)]
    write_lines(folder / "read_text/speech.tsv", *sentences)
    for sentence in sentences:
        write_audio(folder / "read_text" / sentence.split("\t")[0], 1.5)
    return folder
