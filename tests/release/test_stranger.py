"""A stranger's process finds nothing of this project, and all that it needs."""

import pytest

from megatron_af.release.stranger import HIDDEN, Hidden


@pytest.mark.parametrize("name", [*HIDDEN, "megatron_af.release", "megatron.core"])
def test_what_a_user_does_not_have_cannot_be_imported(name: str) -> None:
    with pytest.raises(ImportError, match=f"{name} is not there"):
        Hidden().find_spec(name)


@pytest.mark.parametrize("name", ["torch", "transformers", "megatronic", "soundfile"])
def test_everything_else_is_left_to_be_found(name: str) -> None:
    Hidden().find_spec(name)
