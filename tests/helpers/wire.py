"""Protobuf messages as bytes, to make files that no library would write."""


def varint(value: int) -> bytes:
    """A number of up to 64 bits."""
    value &= (1 << 64) - 1
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def field(number: int, content: bytes | str | int) -> bytes:
    """A field that holds a message, a text, bytes or a number."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content
