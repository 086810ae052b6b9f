"""The CRC64 of a sequence, by which UniProt and the ESM Metagenomic Atlas look sequences up.

ISO 3309 (polynomial x^64 + x^4 + x^3 + x + 1, reflected, from 0), in 16 hexadecimal digits.
"""

from __future__ import annotations

POLYNOMIAL = 0xD800000000000000


def remainders() -> list[int]:
    """The remainder of each byte."""
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ POLYNOMIAL * (byte & 1)
        found.append(byte)
    return found


REMAINDERS = remainders()


def crc64(sequence: str) -> str:
    """The CRC64 of the letters of a sequence, in ASCII."""
    found = 0
    for letter in sequence.encode("ascii"):
        found = found >> 8 ^ REMAINDERS[(found ^ letter) & 255]
    return f"{found:016X}"
