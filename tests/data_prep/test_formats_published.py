"""Layouts of published datasets: conversations, Common Voice, CSV, and columns of Hugging Face datasets."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolm_lite.data.manifest import read_manifest
from data_prep.convert import main
from data_prep.formats import FormatError
from tests.data_prep.test_formats import read

ASK, ANSWER = {"role": "user", "content": "<audio>Who speaks?"}, {"role": "assistant", "content": "Ann."}


def user(text):
    return {"role": "user", "content": text}


# --- conversations ----------------------------------------------------------------------------------------------------


CONVERSATIONS = {
    "ms-swift": (
        {"messages": [{"role": "system", "content": "Be brief."}, ASK, ANSWER], "audios": ["a.wav"], "id": 7},
        {"id": "7", "audio": "a.wav", "instruction": "<audio>Who speaks?", "target": "Ann.", "system": "Be brief."},
    ),
    "several clips and turns": (
        {"messages": [user("<audio>Who?"), ANSWER, user("And <audio>?"), ANSWER], "audios": ["a.wav", "b.wav"]},
        {"audio": "a.wav", "further_audio": [{"audio": "b.wav"}], "instruction": "And <audio>?",
         "history": [{"instruction": "<audio>Who?", "target": "Ann."}]},
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "<audio>Who?"}, {"from": "gpt", "value": "Bo"}],
         "audios": ["a.wav"], "system": "S", "target_lang": "ko"},
        {"audio": "a.wav", "instruction": "<audio>Who?", "target": "Bo", "system": "S", "language": "ko"},
    ),
    "Alpaca": (
        {"instruction": "<audio>Who?", "input": "One name.", "output": "Bo", "history": [["Hi", "Hello"]],
         "audios": ["a.wav"], "system": ""},
        {"instruction": "<audio>Who?\nOne name.", "target": "Bo",
         "history": [{"instruction": "Hi", "target": "Hello"}]},
    ),
    "query and response": (
        {"query": "Who?", "response": "Bo", "audios": "a.wav"},
        {"audio": "a.wav", "instruction": "Who?", "target": "Bo"},
    ),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "Q"}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]},
        {"audio": "a.wav", "instruction": "<audio>Q", "target": "A"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize(("entry", "expected"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_conversations_are_read(entry, expected, as_list, tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([entry], indent=1) if as_list else json.dumps(entry) + "\n", encoding="utf-8-sig")
    (row,), report = read("messages", path)
    assert report.rejected == [] and expected.items() <= row.items()
    assert "history" in expected or "history" not in row


BAD_CONVERSATIONS = {
    "alternate": {"messages": [ASK, ASK, ANSWER], "audios": ["a.wav"]},
    "not an answer": {"messages": [ASK], "audios": ["a.wav"]},
    "is empty": {"messages": [ASK, {"role": "assistant", "content": " "}], "audios": ["a.wav"]},
    "role 'tool'": {"messages": [ASK, {"role": "tool", "content": "x"}], "audios": ["a.wav"]},
    '"audios": no audio': {"messages": [user("Who?"), ANSWER]},
    "1 marks <audio> for 2 clips": {"messages": [ASK, ANSWER], "audios": ["a.wav", "b.wav"]},
    "not in a question": {"messages": [user("x"), {"role": "assistant", "content": "<audio>"}], "audios": ["a.wav"]},
    "download it": {"messages": [ASK, ANSWER], "audios": ["https://example.org/a.wav"]},
    "not the path": {"messages": [ASK, ANSWER], "audios": [3]},
    "a system message must": {"messages": [ASK, {"role": "system", "content": "x"}], "audios": ["a.wav"]},
    "not a list of messages": {"messages": "x", "audios": ["a.wav"]},
    "not an object with role": {"messages": ["x"], "audios": ["a.wav"]},
    "not a text": {"messages": [user(None), ANSWER], "audios": ["a.wav"]},
    "neither text nor audio": {"messages": [user([{"type": "image"}]), ANSWER], "audios": ["a.wav"]},
    "only audio": {"messages": [ASK, ANSWER], "audios": ["a.wav"], "images": ["a.png"]},
    "check the format": {"text": "x"},
    "list of pairs": {"query": "a", "response": "b", "history": ["x"], "audios": ["a.wav"]},
}


def test_bad_conversations_are_rejected_with_file_line_and_field(tmp_path):
    path = tmp_path / "train.jsonl"
    good = json.dumps({"messages": [ASK, ANSWER], "audios": ["a.wav"]})
    lines = [good, *(json.dumps(entry) for entry in BAD_CONVERSATIONS.values()), "{", good]
    path.write_text("\n".join(lines) + "\n")
    rows, report = read("messages", path)
    assert len(rows) == 2 and [entry["line"] for entry in report.rejected] == list(range(2, len(lines)))
    for number, (part, rejected) in enumerate(zip([*BAD_CONVERSATIONS, "not JSON"], report.rejected), start=2):
        assert part in rejected["reason"] and f"{path}, line {number}: " in rejected["reason"], rejected
        assert "field" in rejected["reason"] or part == "not JSON"


def test_clips_of_a_conversation_move_with_the_manifest(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"in/{name}.wav").touch()
    entry = {"messages": [user("<audio><audio>same?"), ANSWER], "audios": ["a.wav", "b.wav"]}
    (tmp_path / "in/train.jsonl").write_text(json.dumps(entry))
    output = tmp_path / "out/train.jsonl"
    assert main(["messages", "manifest", str(tmp_path / "in/train.jsonl"), str(output), "--task", "qa"]) == 0
    (row,) = read_manifest(output)
    assert (row["audio"], row["further_audio"], row["task"]) == ("../in/a.wav", [{"audio": "../in/b.wav"}], "qa")


# --- Common Voice -----------------------------------------------------------------------------------------------------


COLUMNS = ["client_id", "path", "sentence_id", "sentence", "up_votes", "down_votes", "age", "gender", "locale"]


def common_voice(path, *rows):
    path.write_text("\n".join("\t".join(row) for row in (COLUMNS, *rows)) + "\n", encoding="utf-8")
    return path


def test_common_voice_lists_are_read(tmp_path):
    first = ["c1", "common_voice_ko_1.mp3", "s1", '"네," 그는 말했다.', "2", "0", "twenties", "female_feminine", "ko"]
    second = ["c1", "common_voice_ko_2.mp3", "s2", '"""네"" 라고', "2", "1", "", "", "ko"]
    second[3] = '"그는 ""네"" 라고"'  # as later versions quote
    rows, report = read("common_voice", common_voice(tmp_path / "validated.tsv", first, second))
    assert report.rejected == [] and not report.lost
    assert [row["id"] for row in rows] == ["common_voice_ko_1", "common_voice_ko_2"]
    assert [row["audio"] for row in rows] == ["clips/common_voice_ko_1.mp3", "clips/common_voice_ko_2.mp3"]
    assert [row["target"] for row in rows] == ['"네," 그는 말했다.', '그는 "네" 라고']
    expected = {"speaker": "c1", "language": "ko", "up_votes": 2, "down_votes": 0, "age": "twenties", "split": "train",
                "gender": "female_feminine", "sentence_id": "s1"}  # fmt: skip
    assert expected.items() <= rows[0].items() and not {"age", "gender"} & rows[1].keys()
    for name, split in (("train", "train"), ("dev", "valid"), ("test", "test")):
        rows, _ = read("common_voice", common_voice(tmp_path / f"{name}.tsv", first))
        assert rows[0]["split"] == split


def test_bad_lines_of_common_voice_are_rejected(tmp_path):
    good = ["c1", "a.mp3", "s", "네", "2", "0", "", "", "ko"]
    bad = {
        "8 cells, and the header has 9": good[:8],
        "\"up_votes\": 'x'": [*good[:4], "x", *good[5:]],
        '"sentence": empty': [*good[:3], "", *good[4:]],
        "line 2 has the same id": good,
    }
    path = common_voice(tmp_path / "train.tsv", good, *bad.values())
    rows, report = read("common_voice", path)
    assert len(rows) == 1 and [entry["line"] for entry in report.rejected] == [3, 4, 5, 6]
    for part, rejected in zip(bad, report.rejected):
        assert part in rejected["reason"] and f"{path}, line {rejected['line']}" in rejected["reason"]
    (tmp_path / "other.tsv").write_text("path\ttext\na.mp3\tx\n")
    with pytest.raises(FormatError, match=r"other.tsv: no column sentence, client_id among path, text"):
        read("common_voice", tmp_path / "other.tsv")


# --- CSV --------------------------------------------------------------------------------------------------------------


CELL = st.text(st.sampled_from("ab한\"',;|\n é"), min_size=1, max_size=8).filter(lambda text: text == text.strip())


@given(texts=st.lists(CELL, min_size=1, max_size=5), delimiter=st.sampled_from(",;|"), mark=st.booleans())
def test_what_python_writes_is_read(texts, delimiter, mark, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "list.csv"
    with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["File Name", "Text"], *([f"{i}.wav", text] for i, text in enumerate(texts))])
    rows, report = read("csv", path)
    assert report.rejected == [] and [row["target"] for row in rows] == texts
    assert [row["audio"] for row in rows] == [f"{i}.wav" for i in range(len(texts))]


def test_columns_are_found_or_named(tmp_path):
    path = tmp_path / "list.tsv"
    path.write_text(",ID,Path,Sentence,lang,start,end,snr\n0,u1,a.wav,hello,de,0.5,2,9\n1,u2,b.wav,you,,,,\n")
    rows, report = read("csv", path)
    assert report.rejected == [] and rows[0]["snr"] == "9" and "" not in rows[0]
    found = [(row["id"], row["audio"], row["target"], row["language"], row["start"], row["duration"]) for row in rows]
    assert found == [("u1", "a.wav", "hello", "de", 0.5, 1.5), ("u2", "b.wav", "you", "en", 0.0, None)]
    path.write_text('a\tb\nx.wav\t6 "quotes" and \'more"\n')
    with pytest.raises(FormatError, match=r"list.tsv: no column for the audio \(audio, path, .* among a, b; .*--field"):
        read("csv", path)
    rows, _ = read("csv", path, fields={"audio": ("a",), "target": ("b",)})
    assert rows[0]["target"] == '6 "quotes" and \'more"'
    with pytest.raises(FormatError, match="no column 'c'"):
        read("csv", path, fields={"audio": ("c",)})


def test_bad_lines_of_tables_are_rejected(tmp_path):
    path = tmp_path / "list.csv"
    lines = [b"path,text,start", b"a.wav,good,", b'b.wav,"x"y,0', b"c.wav,a,b,c", b"d.wav,caf\xe9,0", b"e.wav,t,one",
             b"f.wav,,0", b'g.wav,"two', b'lines",1.5', b"h.wav,t,-1"]  # fmt: skip
    path.write_bytes(b"\r\n".join(lines))
    rows, report = read("csv", path)
    assert [(row["audio"], row["target"]) for row in rows] == [("a.wav", "good"), ("g.wav", "two\r\nlines")]
    assert [entry["line"] for entry in report.rejected] == [3, 4, 5, 6, 7, 10]
    for part, rejected in zip(("quotes", "4 cells", '"text": not UTF-8', "\"start\": 'one'", '"text": empty', "-1"),
                              report.rejected, strict=True):  # fmt: skip
        assert part in rejected["reason"] and f"{path}, line {rejected['line']}" in rejected["reason"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,text\na.wav,x".encode("utf-16"), "the encoding is UTF-16"),
        ("path,größe\na.wav,x".encode("latin-1"), "line 1: no header in UTF-8"),
        (b"", "line 1: no header"),
        (b"path,text,text\na,b,c", "column 'text' is given twice"),
        (b'path,text\na.wav,ok\nb.wav,"open\nc.wav,ok\n', "line 3: a quote is opened and not closed"),
    ],
)
def test_files_that_are_no_tables_are_refused(content, message, tmp_path):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(FormatError, match=message) as raised:
        read("csv", tmp_path / "list.csv")
    assert "list.csv" in str(raised.value)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def write_parquet(folder, columns, features=None, readme=None):
    folder.mkdir()
    table = pa.table({"audio": [f"{i}.wav" for i in range(len(next(iter(columns.values()))))], **columns})
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    if readme:
        (folder / "README.md").write_text(readme, encoding="utf-8")
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    return folder


def test_numbers_become_ids_and_names_of_classes(tmp_path):
    feature = {"names": ["dog", "rain"], "_type": "ClassLabel"}
    columns = {"id": [4, 4, 5], "speaker_id": [1, 2, 3], "label": [1, 0, -1], "labels": [[0], [0, 1], []],
               "text": ["a", "b", "c"], "target_lang": ["de", "fr", "ko"]}  # fmt: skip
    features = {"label": feature, "labels": {"feature": feature, "_type": "Sequence"}}
    rows, report = read("huggingface", write_parquet(tmp_path / "d", columns, features))
    assert report.rejected == [] and [row["id"] for row in rows] == ["4", "4-2", "5"]  # FLEURS numbers sentences
    assert [row["speaker"] for row in rows] == ["1", "2", "3"] and [row["language"] for row in rows] == [
        "de",
        "fr",
        "ko",
    ]
    assert [row.get("label") for row in rows] == ["rain", "dog", None]
    assert [row["labels"] for row in rows] == [["dog"], ["dog", "rain"], []]


@pytest.mark.parametrize("column", ["language", "lang", "target_lang", "locale", "lang_id"])
def test_the_language_has_several_names(column, tmp_path):
    rows, _ = read("huggingface", write_parquet(tmp_path / "d", {"text": ["a"], column: ["ko"]}))
    assert rows[0]["language"] == "ko"
    feature = {"names": ["en", "ko"], "_type": "ClassLabel"}
    rows, _ = read("huggingface", write_parquet(tmp_path / "c", {"text": ["a"], column: [1]}, {column: feature}))
    assert rows[0]["language"] == "ko"


def test_a_code_is_preferred_to_the_name_of_a_language(tmp_path):
    columns = {"text": ["a"], "language": ["Korean"], "lang_id": [1]}
    features = {"lang_id": {"names": ["de_de", "ko_kr"], "_type": "ClassLabel"}}
    assert read("huggingface", write_parquet(tmp_path / "d", columns, features))[0][0]["language"] == "ko_kr"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_audio_folder_is_read_by_its_metadata(ending, tmp_path):
    entries = [{"file_name": "a.wav", "transcription": "hello", "speaker_id": "s"}, {"transcription": "no file"}]
    for split in ("train", "test"):
        (tmp_path / "d" / split).mkdir(parents=True)
        with (tmp_path / "d" / split / f"metadata.{ending}").open("w", encoding="utf-8", newline="") as file:
            if ending == "csv":
                writer = csv.DictWriter(file, ["transcription", "speaker_id", "file_name"])
                writer.writeheader()
                writer.writerow(entries[0])
            else:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
    rows, report = read("huggingface", tmp_path / "d")
    assert [(row["audio"], row["split"], row["target"]) for row in rows] == [
        ("test/a.wav", "test", "hello"),
        ("train/a.wav", "train", "hello"),
    ]
    assert rows[0]["speaker"] == "s" and len(report.rejected) == (0 if ending == "csv" else 2)
    if report.rejected:
        assert 'metadata.jsonl, line 2: field "file_name": missing' in report.rejected[0]["reason"]


README = """---
dataset_info:
- config_name: other
  features: [{name: label, dtype: {class_label: {names: {'0': x}}}}]
- config_name: d
  features:
  - {name: label, dtype: {class_label: {names: {'0': dog, '1': rain}}}}
---
# Sounds
"""


def test_names_of_classes_come_from_the_readme_where_the_files_lack_them(tmp_path):
    folder = write_parquet(tmp_path / "x", {"label": [1, 0, 2]}, readme=README)
    (folder / "d").mkdir()
    (folder / "train-00000-of-00001.parquet").rename(folder / "d/train-00000-of-00001.parquet")
    rows, report = read("huggingface", folder, fields={"target": ("label",)})
    assert [row["target"] for row in rows] == ["rain", "dog"]
    assert '"label": 2 is no class' in report.rejected[0]["reason"] and report.rejected[0]["row"] == 3


def test_the_library_and_this_format_agree_on_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"audio": datasets.Value("string"), "label": datasets.ClassLabel(names=["dog", "rain"])}
    )
    one = datasets.Dataset.from_dict({"audio": ["a.wav", "b.wav"], "label": [1, 0]}, features=features)
    one.save_to_disk(tmp_path / "disk")
    (tmp_path / "hub").mkdir()
    with io.BytesIO() as buffer:
        one.to_parquet(buffer)
        (tmp_path / "hub/train-00000-of-00001.parquet").write_bytes(buffer.getvalue())
    for name in ("disk", "hub"):
        rows, report = read("huggingface", tmp_path / name, fields={"target": ("label",)})
        assert report.rejected == [] and [row["target"] for row in rows] == ["rain", "dog"]
