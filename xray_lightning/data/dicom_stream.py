"""What a compressed frame of a DICOM file says of its own size, before a decoder believes it.

A damaged or hostile stream may name another size than the file around it does, or none: decoders
were seen to fill the memory over one.
"""

JPEG_START, JPEG_2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
# Frame headers of JPEG (ITU-T T.81, table B.1: C0 to CF but C4, C8, CC) and of JPEG-LS (T.87).
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
SCAN = 0xDA


def stated_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream states; None where it does not."""
    if frame.startswith(JPEG_2000_START):
        # SIZ (T.800, A.5.1): length, capabilities, then the right and lower edge, left and upper.
        numbers = [int.from_bytes(frame[place : place + 4], "big") for place in range(8, 24, 4)]
        right, lower, left, upper = numbers
        return lower - upper, right - left
    if not frame.startswith(JPEG_START):
        return None
    place = len(JPEG_START)
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker in FRAMES:
            rows = int.from_bytes(frame[place + 5 : place + 7], "big")
            return rows, int.from_bytes(frame[place + 7 : place + 9], "big")
        if marker == SCAN:
            return None
        place += 1 if marker == 0xFF else 2 + length  # FF may fill up before a marker
    return None
