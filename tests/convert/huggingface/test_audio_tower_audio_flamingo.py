"""Recordings of any lengths go through the tower together, and each gets the tokens that it gets alone."""

import torch

from megatron_af.convert.huggingface.audio_tower_audio_flamingo import AudioTower
from megatron_af.convert.huggingface.configuration_audio_flamingo import AudioFlamingoConfig

SIZES = {"embed_dim": 16, "depths": [1, 2], "heads": [2, 2], "patch_size": 16}


def test_a_recording_does_not_hear_its_neighbours() -> None:
    torch.manual_seed(0)
    tower = AudioTower(AudioFlamingoConfig(audio_encoder=SIZES, audio_transform={"layers": 2, "heads": 2, "ffn": 32}))
    tower.eval()
    mel = torch.randn(6, 1001, 64) * 10 - 40
    with torch.no_grad():
        together = tower(mel, [[1, 3], [2]])
        alone = [tower(part, [[len(part)]])[0] for part in mel.split([1, 3, 2])]
        other = tower(torch.cat([mel[:1], mel[1:] + 5]), [[1, 3], [2]])
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other[0], alone[0], atol=1e-5, rtol=1e-5)
    assert (other[1] - alone[1]).abs().max() > 1e-3
    assert tower(mel[:0], []) == []
