"""Row groups that were written apart, as one Parquet file: what others wrote is copied, not encoded again.

A Parquet file is `PAR1`, the pages of its row groups, a footer, the footer's length (4 bytes), and `PAR1`. The footer
is a `FileMetaData` in Thrift's compact protocol. Of what it says of a row group, only the places in the file and the
group's number change when the group comes to stand elsewhere. So whoever writes a group cuts its part of the footer
at these numbers, and whoever joins the file puts them in.

Sources: the format's parquet.thrift (field numbers below), and Thrift's thrift-compact-protocol.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeAlias

MAGIC = b"PAR1"
_LENGTH = 4

#: Numbers of nested fields, from the outermost.
Path: TypeAlias = tuple[int, ...]
_ROWS: Path = (3,)
_GROUPS: Path = (4,)
_NUMBER: Path = (4, 7)
_PLACES: frozenset[Path] = frozenset(
    {
        (4, 5),  # RowGroup.file_offset
        (4, 1, 2),  # ColumnChunk.file_offset
        (4, 1, 4),  # ColumnChunk.offset_index_offset
        (4, 1, 6),  # ColumnChunk.column_index_offset
        (4, 1, 3, 9),  # ColumnMetaData.data_page_offset
        (4, 1, 3, 10),  # ColumnMetaData.index_page_offset
        (4, 1, 3, 11),  # ColumnMetaData.dictionary_page_offset
        (4, 1, 3, 14),  # ColumnMetaData.bloom_filter_offset
    }
)
_BOOLEANS = (1, 2)
_BYTE = 3
_INTEGERS = (4, 5, 6)
_DOUBLE = 7
_BINARY = 8
_LISTS = (9, 10)
_STRUCT = 12
#: In `RowGroup.places`: not a place, but the group's number.
_ITS_NUMBER = -1


class RowGroup(NamedTuple):
    """A row group without a place in a file.

    pages: its bytes. texts: its part of the footer, cut where `places` come in between: places in the file, counted
    from the first byte of `pages`, or −1 for the number of the group.
    """

    rows: int
    pages: bytes
    texts: tuple[bytes, ...]
    places: tuple[int, ...]


class Span(NamedTuple):
    """The bytes of a field's value."""

    path: Path
    begin: int
    end: int


def row_group(file: bytes, rows: int) -> RowGroup:
    """The only row group, of so many rows, of a file given by its bytes."""
    pages, footer = _parts(file)
    spans = _spans(footer, {*_PLACES, _NUMBER, _GROUPS})
    [group] = [span for span in spans if span.path == _GROUPS]
    numbers = [(span, _integer(footer, span)) for span in spans if span.path != _GROUPS]
    kept = [(span, number) for span, number in numbers if span.path == _NUMBER or number > 0]  # 0: it says nothing
    edges = [group.begin + 1, *(edge for span, _ in kept for edge in (span.begin, span.end)), group.end]
    return RowGroup(
        rows=rows,
        pages=pages,
        texts=tuple(footer[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True)),
        places=tuple(_ITS_NUMBER if span.path == _NUMBER else number - len(MAGIC) for span, number in kept),
    )


class Footer:
    """The footer of a file that is being joined. `empty`: the bytes of such a file without rows."""

    def __init__(self, empty: bytes) -> None:
        self._empty = _parts(empty)[1]
        self._rows = 0
        self._groups: list[bytes] = []

    def add(self, group: RowGroup, place: int) -> None:
        """This row group is the next, and its pages begin at this place of the file."""
        number = len(self._groups)
        text = [group.texts[0]]
        for where, then in zip(group.places, group.texts[1:], strict=True):
            text += [_varint(2 * (number if where == _ITS_NUMBER else place + where)), then]
        self._groups.append(b"".join(text))
        self._rows += group.rows

    def end(self) -> bytes:
        """What follows the pages of the last row group."""
        rows, groups = sorted(_spans(self._empty, {_ROWS, _GROUPS}))
        count = len(self._groups)
        footer = b"".join(
            [
                self._empty[: rows.begin],
                _varint(2 * self._rows),
                self._empty[rows.end : groups.begin],
                bytes([count << 4 | _STRUCT]) if count < 15 else bytes([15 << 4 | _STRUCT]) + _varint(count),
                *self._groups,
                self._empty[groups.end :],
            ]
        )
        return footer + len(footer).to_bytes(_LENGTH, "little") + MAGIC


def _parts(file: bytes) -> tuple[bytes, bytes]:
    """The pages of a file, and its footer."""
    end = len(file) - len(MAGIC) - _LENGTH
    begin = end - int.from_bytes(file[end : end + _LENGTH], "little")
    return file[len(MAGIC) : begin], file[begin:end]


def _spans(footer: bytes, wanted: Collection[Path]) -> Sequence[Span]:
    """Where these fields are; in the order of the bytes, but what is in a list before the list."""
    scan = _Scan(footer, wanted)
    scan.struct(())
    return scan.found


class _Scan:
    """Thrift's compact protocol, read from front to end."""

    def __init__(self, data: bytes, wanted: Collection[Path]) -> None:
        self._data = data
        self._wanted = wanted
        self._at = 0
        self.found: list[Span] = []

    def struct(self, path: Path) -> None:
        number = 0
        while header := self._byte():
            step, kind = header >> 4, header & 15
            number = number + step if step else self._varint() >> 1
            inner = (*path, number)
            begin = self._at
            if kind not in _BOOLEANS:  # these are in the header
                self._value(kind, inner)
            if inner in self._wanted:
                self.found.append(Span(inner, begin, self._at))

    def _value(self, kind: int, path: Path) -> None:
        if kind in _INTEGERS:
            self._varint()
        elif kind == _BINARY:
            length = self._varint()
            self._at += length
        elif kind == _STRUCT:
            self.struct(path)
        elif kind in _LISTS:
            self._list(path)
        elif kind == _DOUBLE:
            self._at += 8
        elif kind == _BYTE or kind in _BOOLEANS:
            self._at += 1
        else:
            raise ValueError(f"no type of Parquet's footers: {kind}")

    def _list(self, path: Path) -> None:
        header = self._byte()
        count = header >> 4
        for _ in range(count if count < 15 else self._varint()):
            self._value(header & 15, path)

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) > 127:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _integer(data: bytes, span: Span) -> int:
    """The value of a field that is no negative number."""
    value = 0
    for byte in reversed(data[span.begin : span.end]):
        value = value << 7 | byte & 127
    return value >> 1
