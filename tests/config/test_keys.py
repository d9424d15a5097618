"""What --help tells of a configuration's keys."""

from typing import Literal

from megatron_af.config.keys import describe, schema_keys


def test_help_names_every_key_with_type_default_and_docstring() -> None:
    text = describe()
    assert "data.datasets.<name>.origin.path: str (required)" in text, "a section that may be left out is told as well"
    assert "curriculum.<name>.lora.rank: int = 16" in text
    assert "  name: str (required)" in text
    assert "  precision: bf16 | fp32 = 'bf16'" in text
    assert "  curriculum.<name>.trainable: list of str = []" in text
    assert "Model chunks per pipeline stage (interleaved schedule when above 1)." in text


def test_keys_have_their_types() -> None:
    kinds = dict(schema_keys())
    assert kinds["parallel.recompute"] == Literal["none", "selective", "full"] and kinds["name"] is str
    assert {kinds["curriculum.<name>.lora.rank"], kinds["data.datasets.<name>.manifest"]} == {int, str}
