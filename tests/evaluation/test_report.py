"""The HTML report: one page that loads nothing else and escapes all data."""

import json
import re

from audiolm_lite.evaluation.report import markdown_table, write_report

CAPTIONS = {
    "type": "captioning",
    "items": 3,
    "cider_d": 0.5,
    "spice": {"missing": "no parser.", "command": "install it"},
}
AGE = {"type": "regression", "items": 3, "mae": None, "mae_with_penalty": 20.0, "penalty": 20.0, "unparsed": 3}
METRICS = {
    "controls": {
        "normal": {
            "asr": {"type": "asr", "wer": 0.05, "cer": 0.02, "utterances": 3, "words": 9, "normaliser": "basic"}
            | {"interval": {"wer": [0.01, 0.1]}},
            "caption": CAPTIONS | {"interval": {"cider_d": [0.4, 0.6]}},
            "age": AGE | {"constant_mae": 7.5},
            "sounds": {"type": "multi_label", "items": 3, "f1": 0.5, "micro_f1": 0.4, "macro_f1": 0.3, "unparsed": 1},
            "class": {"type": "matched_caption", "items": 4, "accuracy": 0.5, "macro_f1": 0.4, "unparsed": 2},
        },
        "zeros": {"asr": {"type": "asr", "wer": 1.1, "cer": 0.9, "utterances": 3}, "caption": CAPTIONS},
    }
}


def test_table_has_one_column_per_control():
    lines = markdown_table(METRICS).splitlines()
    assert lines[0] == "| task | items | score | with audio | no audio |"
    assert lines[2] == "| asr | 3 | WER, % ↓ | 5.0 [1.0, 10.0] | 110.0 |"
    assert "| caption | 3 | SPICE ↑ | missing | missing |" in lines
    assert "| sounds | 3 | micro F1, % ↑ | 40.0 | – |" in lines
    assert "| age | 3 | MAE ↓ | – | – |" in lines and not any("METEOR" in line for line in lines)


def test_page_is_self_contained_and_escaped(tmp_path):
    predictions = tmp_path / "predictions.jsonl"
    record = {"id": "1", "task": "asr", "instruction": "what?", "target": "a < b", "references": ["a < b"]}
    answers = [("normal", "<script>alert(1)</script>"), ("zeros", "")]
    records = [json.dumps(record | {"control": control, "prediction": text}) for control, text in answers]
    predictions.write_text("\n".join(records) + "\n", encoding="utf-8")
    latency = {"backend": "aoti", "ttft_ms": 12.345678, "tpot_ms": 1.5, "token_match": 1.0, "peak_memory_mb": 1234.5}
    page = tmp_path / "report.html"
    write_report(page, METRICS, predictions, title="A & B", latency=[latency])
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|src=|@import|<link|<script", text)
    assert "&lt;script&gt;alert(1)" in text and "a &lt; b" in text and "<h1>A &amp; B</h1>" in text
    assert "(empty)" in text and "12.35" in text and "1,234" in text
    assert "spice is missing: no parser. Remedy: install it" in text
    assert "3 of 3 answers could not be parsed (left out, or an error of 20)" in text
    assert "1 of 3 answers could not be parsed (wrong)" in text and "2 of 4 answers could not be parsed (wrong)" in text
    for tag in ("table", "ul", "div", "tr", "td", "style", "html"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag


def test_page_without_latency(tmp_path):
    (tmp_path / "predictions.jsonl").write_text("")
    write_report(tmp_path / "report.html", METRICS, tmp_path / "predictions.jsonl", title="Results")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Results" in text and "Latency" not in text and not list(tmp_path.glob(".*"))
