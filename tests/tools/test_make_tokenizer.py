"""The command that makes a tokenizer fit: it says what is new, and what the model lacks."""

from pathlib import Path

import pytest
import yaml

from megatron_af.data.rows import Question, Row, to_json
from tools.make_tokenizer import main


def test_it_makes_and_extends_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "a.jsonl"
    rows.write_text(to_json(Row(id="a", questions=(Question(prompt="what?", output="dog"),))) + "\n")
    data = {"root": str(tmp_path), "tokenizer": str(tmp_path / "t.json"), "datasets": {"a": {"manifest": "a.jsonl"}}}
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"name": "c", "data": data, "model": {"lm": {"vocab": 24}}}))
    assert main(["--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "t.json: 28 tokens, 22 new, of the rows of a\n" in out and "model.lm.vocab" not in out
    rows.write_text(to_json(Row(id="a", captions=("cat mouse bird horse cow frog",))) + "\n")
    assert main(["--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "34 tokens, 6 new" in out and "bird, cat, cow" in out
    assert "model.lm.vocab = 24: data.tokenizer has 30 words, a row each; set it to 30\n" in out
    assert main(["--config", str(config), "data.tokenizer=org/name"]) == 2
    assert "name a file that ends with .json" in capsys.readouterr().err
