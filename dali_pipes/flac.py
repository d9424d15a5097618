"""Shortening a FLAC stream without decoding it.

    data = shorten_flac(path.read_bytes(), samples=30 * 16_000)     # a decoder now stops after 30 s

A stage with few windows would otherwise decode the whole of a long recording: DALI's decoder reads a stream to the
end that its header promises.
"""

_TOTAL_SAMPLES = 21
"""Byte of the STREAMINFO field "total samples": its low 4 bits and the 4 bytes behind (RFC 9639, section 8.2)."""


def shorten_flac(data: bytes, samples: int) -> bytes:
    """The stream with at most ``samples`` promised in its header; the audio frames are untouched.

    Raises:
        ValueError: not a FLAC stream.
    """
    total = flac_samples(data)
    if samples >= total:
        return data
    head = bytearray(data[: _TOTAL_SAMPLES + 5])
    head[_TOTAL_SAMPLES] = head[_TOTAL_SAMPLES] & 0xF0 | samples >> 32
    head[_TOTAL_SAMPLES + 1 :] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(head) + data[_TOTAL_SAMPLES + 5 :]


def flac_format(data: bytes) -> tuple[int, int] | None:
    """Sampling rate and channels of a FLAC stream; None when the bytes are something else."""
    if data[:4] != b"fLaC" or len(data) < 42:
        return None
    return int.from_bytes(data[18:21], "big") >> 4, (data[20] >> 1 & 7) + 1


def flac_samples(data: bytes) -> int:
    """Samples per channel that the header promises.

    Raises:
        ValueError: not a FLAC stream.
    """
    if data[:4] != b"fLaC" or len(data) < 42 or data[4] & 0x7F != 0:
        raise ValueError(f"expected a FLAC stream that begins with STREAMINFO, got {data[:8]!r}")
    return int.from_bytes(data[_TOTAL_SAMPLES : _TOTAL_SAMPLES + 5], "big") & (1 << 36) - 1
