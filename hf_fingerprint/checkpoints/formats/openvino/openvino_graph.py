"""The graphs in an OpenVINO IR: its layers and edges, read from `model.xml` as a stream.

The parser refuses document types and entities, so nothing in the file can grow beyond its size, and keeps only what
leads from a stored constant to the layer that uses it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.limits import MAX_NAME, MB


MAX_XML = 64 * MB  # bytes: a language model of 7 billion weights has 5 MB
MAX_ELEMENTS = 1_000_000  # of one file, and attributes: a large model has 100,000
MAX_DEPTH = 64  # a loop's body is 6 deep
_MAX_ATTRIBUTES = 4_000_000
_PIECE = 1 << 19  # bytes parsed at once; a tag that is longer is refused


@dataclass
class Layer:
    """An operation.

    Attributes:
        kind (`str`): its type, such as `"Const"` or `"Convolution"`.
        name (`str`): its name, cut at [`MAX_NAME`] characters; may be hostile.
        data (`dict[str, str]`): its attributes, if it is a constant or a conversion.
        inputs (`dict[str, str]`): identifiers of the layers before it, by the number of its port.
        users (`list[tuple[str, str]]`): identifiers of the layers after it, each with the number of that one's port.
    """

    kind: str
    name: str
    data: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    users: list[tuple[str, str]] = field(default_factory=list)


Graph = dict[str, Layer]  # by identifier


def read_graphs(path: Path) -> tuple[list[Graph], str]:
    """The graphs in a file: the model's own, and the bodies of its loops and branches.

    Args:
        path (`Path`): the `.xml` file.

    Returns:
        `(graphs, version)`: the graphs, and the version of OpenVINO that wrote them, or an empty text.

    Raises:
        [`InvalidFileError`]: if it is damaged, too large, or no IR.
        [`OSError`]: if it can't be read.
    """
    if path.stat().st_size > MAX_XML:
        raise InvalidFileError(f"more than {MAX_XML // MB} MB of XML")
    reader = _Reader()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                reader.feed(piece)
        reader.feed(b"", last=True)
    except expat.ExpatError as error:
        raise InvalidFileError(expat.ErrorString(error.code)) from None
    return reader.graphs, reader.version


class _Reader:
    """Receives the elements of a file. An element is its tag, and the graph whose layers it holds, if any."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.version = ""
        self._open: list[tuple[str, Graph | None]] = []
        self._layer: list[Layer] = []
        self._elements, self._attributes, self._fed = MAX_ELEMENTS, _MAX_ATTRIBUTES, 0
        self._parser = expat.ParserCreate("UTF-8")
        self._parser.ordered_attributes = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = _refuse
        self._parser.EntityDeclHandler = _refuse

    def feed(self, piece: bytes, last: bool = False) -> None:
        self._parser.Parse(piece, last)
        self._fed += len(piece)
        if not last and self._fed - self._parser.CurrentByteIndex > 2 * _PIECE:  # it is scanned anew for each piece
            raise InvalidFileError("an XML tag that is too long")

    def _start(self, tag: str, listed: list[str]) -> None:
        self._elements -= 1
        self._attributes -= len(listed)
        if self._elements < 0 or self._attributes < 0 or len(self._open) >= MAX_DEPTH:
            raise InvalidFileError("too many XML elements")
        if tag in ("port", "dim"):  # most elements
            self._open.append((tag, None))
            return
        graph = self._open[-1][1] if self._open else None
        if tag == "layers":
            graph = {}
            self.graphs.append(graph)
            if self._open:  # its edges follow it
                self._open[-1] = (self._open[-1][0], graph)
        elif tag not in ("layer", "edges", "edge") or graph is None:
            graph = None
        values = dict(zip(listed[::2], listed[1::2], strict=True))
        self._take(tag, values, graph)
        self._open.append((tag, graph))

    def _take(self, tag: str, values: dict[str, str], graph: Graph | None) -> None:
        if not self._open and (tag != "net" or not values.get("version", "").isdecimal()):
            raise InvalidFileError("no OpenVINO IR")
        if not self._open and len(values["version"]) < 3 and int(values["version"]) < 10:
            raise InvalidFileError(f"version {int(values['version'])} of the IR, before 10")
        if tag == "layer":
            layer = Layer(values.get("type", ""), values.get("name", "")[:MAX_NAME])
            self._layer.append(layer)
            if graph is not None:
                graph[values.get("id", "")] = layer
        elif tag == "data" and self._open[-1][0] == "layer" and self._layer[-1].kind in ("Const", "Convert"):
            self._layer[-1].data = values
        elif tag == "edge" and graph is not None:
            before, after = graph.get(values.get("from-layer", "")), graph.get(values.get("to-layer", ""))
            if before is not None and after is not None:
                before.users.append((values["to-layer"], values.get("to-port", "")))
                after.inputs[values.get("to-port", "")] = values["from-layer"]
        elif tag == "Runtime_version" and self._open[-1][0] == "rt_info" and len(self._open) == 2:
            self.version = values.get("value", "")[:MAX_NAME]

    def _end(self, tag: str) -> None:
        self._open.pop()
        if tag == "layer":
            self._layer.pop()


def _refuse(*_: object) -> None:
    raise InvalidFileError("an XML document type or entity, which no OpenVINO IR has")
