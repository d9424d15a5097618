"""Strong labels are joined where they overlap, and refused where they are longer than their recording."""

from megatron_af.data.rows import Row
from megatron_af.prepare.strong_labels import Sound, heard
from tests.prepare.labelled import labelled


def test_labels_of_one_sound_that_overlap_are_one() -> None:
    row = labelled(("Dog", 4.0, 6.0), ("dog", 1.0, 2.5), ("dog ", 2.0, 3.0), ("dog", 3.0, 3.5), ("rain", 0.0, 10.04))
    assert heard(row) == [
        Sound(label="rain", start=0.0, end=10.04),
        Sound(label="dog", start=1.0, end=3.5),
        Sound(label="dog", start=4.0, end=6.0),
    ]
    assert heard(row)[0].overlaps(heard(row)[1]) and not heard(row)[1].overlaps(heard(row)[2])  # type: ignore[union-attr, arg-type]


def test_what_cannot_be_is_said() -> None:
    assert heard(labelled(("dog", 8.0, 12.0))) == "'dog' is labelled until 12 s, and the recording ends at 10 s"
    assert heard(labelled()) == "the row has no spans: nothing says what is heard when"
    assert heard(Row(id="x")) == "the row has 0 clips, strong labels are about one"
