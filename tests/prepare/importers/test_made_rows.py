"""Rows of captions and labels."""

from megatron_af.prepare.importers.made_rows import label_words, options_prompt


def test_options_and_labels_are_written_as_af1_writes_them() -> None:
    assert options_prompt("which?", ["b", "a"]) == "which?\nOPTIONS:\n - a.\n - b."
    assert options_prompt("is it?", ["no", "yes"]) == "is it?\nOPTIONS:\nyes.\nno."
    assert label_words(" Dog_Bark ", "event classification") == "dog bark"
    assert label_words("anger", "emotion classification") == "angry" and label_words("anger", "") == "anger"
