"""Clean a JPEG's header of everything that libjpeg warns about, so that remaining warnings mean damaged image data.

Cameras, phones and editors write harmless oddities: other JFIF versions, unknown Adobe transforms, scan parameters of
zero, stray bytes between segments, half an ICC profile. The pixels are right, yet TurboJPEG refuses some of these files
and can't tell whether a warning was about the header or about the image data.
"""

_SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # frames whose scans have all coefficients: SOF0, SOF1, SOF9 (ITU-T T.81, table B.1)
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)  # DHT, DAC, DQT, DRI: these and frames are all that decoding needs
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOI, _EOI, _SOS, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE


def without_oddities(jpeg: bytes) -> bytes:
    """The same image without metadata, its markers as libjpeg reads them (T.81, annex B) but as they should be written.

    The entropy-coded data stay as they are, and so does everything from where a marker makes no sense.
    """
    written = [jpeg[:2]]
    at, frame = 2, 0
    while True:
        start = at
        at = jpeg.find(b"\xff", at)
        while 0 <= at < len(jpeg) - 1 and jpeg[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker = jpeg[at + 1] if 0 <= at < len(jpeg) - 1 else _EOI
        if marker in (_SOI, _EOI):
            return b"".join((*written, jpeg[max(at, start) :]))
        if marker <= 0x01 or 0xD0 <= marker <= 0xD7:  # stuffing, TEM, RSTn: no segment
            at += 2
            continue
        end = at + 2 + max(2, int.from_bytes(jpeg[at + 2 : at + 4]))
        if end > len(jpeg):
            return b"".join((*written, jpeg[at:]))
        segment = jpeg[at:end]
        frame = marker if marker in _FRAMES else frame
        at = end
        if marker in _TABLES or marker in _FRAMES:
            written.append(segment)
        elif marker == _APP0 and segment[4:9] == b"JFIF\0":
            written.append(segment[:9] + b"\1\1" + segment[11:])  # the version
        elif marker == _APP14 and segment[4:9] == b"Adobe" and len(segment) >= 16:
            # 0: RGB. 1: YCbCr, which libjpeg takes all others for in images of three components.
            written.append(segment[:15] + bytes([min(segment[15], 1)]) + segment[16:])
        elif marker == _SOS:
            if frame in _SEQUENTIAL:
                segment = segment[:-3] + b"\0\x3f\0"  # first and last coefficient, successive approximation
            end = _end_of_data(jpeg, at)
            written += [segment, jpeg[at:end]]
            at = end


def _end_of_data(jpeg: bytes, at: int) -> int:
    """Where the entropy-coded data that begin at ``at`` end: at a marker that isn't a restart marker's."""
    while True:
        at = jpeg.find(b"\xff", at)
        if not 0 <= at < len(jpeg) - 1:
            return len(jpeg)
        if jpeg[at + 1] and not 0xD0 <= jpeg[at + 1] <= 0xD7:
            return at
        at += 2
