"""Core ML programs as text, as `model.mil` in a compiled folder holds them.

```
tensor<fp16, [64, 3, 7, 7]> w = const()[name = string("w"), val = tensor<fp16, [64, 3, 7, 7]>(BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64(64)))];
```
"""  # noqa: E501

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.coreml.coreml_blobs import Unreadable, WeightFiles
from hf_fingerprint.checkpoints.formats.coreml.coreml_programs import Operation, Value, immediate
from hf_fingerprint.checkpoints.formats.mapped_files import TRUNCATED
from hf_fingerprint.checkpoints.formats.torch_tensors import as_sizes
from hf_fingerprint.checkpoints.limits import MAX_NAME, MB


MAX_TEXT = 32 * MB  # bytes of a program; the largest of image generators have 5
MAX_TOKENS = 2_000_000  # 40 a line, of which the largest image generators have 20,000; they take 3 s
MAX_NUMBERS = 2_000_000  # in the text itself, where converters put constants of less than 10 elements
TEXT_HEAD = re.compile(rb"\s{0,64}program\s?\(\d+(\.\d+)?\)\s*[\[{]")
_TOKEN = re.compile(
    r"""
    (?P<text>"[^"\\]*(?:\\.[^"\\]*){0,999}")|
    (?P<list>\[[-+.,\s\da-fA-FxXpPin]*\])|
    (?P<name>[A-Za-z_][\w@./]*)|
    (?P<number>[-+]?(?:0x[\da-fA-F.]+(?:p[-+]?\d+)?|[\d.]+(?:[eE][-+]?\d+)?|inf|nan))|
    (?P<mark>->|\S)
    """,
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[^\s,\[\]]+")
_TRUTH = {"true": 1, "false": 0}
_END = ("end", "")


@dataclass
class _Literal:
    """What stands in the parentheses of a value."""

    texts: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    blob: bool = False


class ProgramText:
    """The operations of a program as text.

    Args:
        text (`str`): the text, of at most [`MAX_TEXT`] characters.
        files ([`WeightFiles`]): the weight files next to it.

    Attributes:
        producer (`str`): the programs that wrote it, as far as it was read.

    Raises:
        [`InvalidFileError`]: if it is not a program, is cut off, or is too long.
    """

    def __init__(self, text: str, files: WeightFiles):
        self.producer, self._left = "", MAX_NUMBERS
        self._files, self._tokens = files, _tokenize(text)
        self._next = next(self._tokens, _END)
        self._header()

    def functions(self) -> Iterator[Iterator[Operation]]:
        """For each function its operations, which must be used up before the next one."""
        while self._next != _END:
            if self._advance() == ("name", "func"):
                while (mark := self._advance()) != ("mark", "{"):
                    if mark in (("mark", "("), ("mark", "[")):  # inputs, and notes on their shapes
                        self._literal()
                yield self._operations()

    def _advance(self) -> tuple[str, str]:
        """The next token, which is used up."""
        token, self._next = self._next, next(self._tokens, _END)
        if token == _END:
            raise InvalidFileError(TRUNCATED)
        return token

    def _header(self) -> None:
        """Everything before the functions, of which the versions of programs are kept."""
        texts: list[str] = []
        while self._next != ("mark", "{"):
            kind, token = self._advance()
            if kind == "mark" and token == "(":
                texts += self._literal().texts
        versions = dict(zip(texts[::2], texts[1::2], strict=False))
        for key in ("coremltools", "coremlc"):
            if f"{key}-version" in versions:
                self.producer = f"{key} {versions[f'{key}-version']}"
                break

    def _operations(self) -> Iterator[Operation]:
        """The operations of a function, and of the blocks inside."""
        depth = 1
        while depth:
            token = self._next
            if token[1] in ("{", "}") and token[0] == "mark":
                self._advance()
                depth += 1 if token[1] == "{" else -1
            elif token in (("mark", "->"), ("mark", ";"), ("mark", ",")):
                self._advance()
                if token[1] == "->" and self._next == ("mark", "("):
                    self._advance()
                    self._literal()
            elif (operation := self._operation()) is not None:
                yield operation

    def _operation(self) -> Operation | None:
        """An operation, or `None` for the head of a block."""
        outputs = self._outputs()
        if outputs is None:
            return None
        kind = self._advance()
        if kind[0] != "name":
            raise InvalidFileError("an operation without a name")
        inputs = self._inputs(")") if self._open("(") else {}
        settings = self._inputs("]") if self._open("[") else {}
        if self._next[0] == "list":  # empty
            self._advance()
        if kind[1] == "const" or kind[1].startswith("constexpr_"):
            inputs |= {key: each for key, each in settings.items() if key != "name"}
        return Operation(kind[1], tuple(outputs), inputs)

    def _open(self, mark: str) -> bool:
        """Whether a bracket follows, which is used up."""
        if self._next != ("mark", mark):
            return False
        self._advance()
        return True

    def _outputs(self) -> list[str] | None:
        """The names before `=`, each after its type, or `None` if a block begins instead."""
        names: list[str] = []
        angles, last = 0, ""
        while True:
            if self._next == ("mark", "{"):
                return None
            kind, token = self._advance()
            if kind == "mark":
                angles += {"<": 1, ">": -1}.get(token, 0)
                if not angles and token in ",)=" and last:
                    names.append(last[:MAX_NAME])
                if token == "=" and not angles:
                    return names
            last = token if kind == "name" and not angles else ""

    def _inputs(self, end: str) -> dict[str, str | Value]:
        """The parameters up to a closing bracket, each with the name of an output or a value."""
        found: dict[str, str | Value] = {}
        while True:
            kind, key = self._advance()
            if (kind, key) == ("mark", end):
                return found
            if kind == "mark" and key == ",":
                continue
            if kind != "name" or self._advance() != ("mark", "="):
                raise InvalidFileError("a parameter without a name")
            value = self._value()
            if isinstance(value, list):
                found |= {f"{key}.{number}": each for number, each in enumerate(value)}
            else:
                found[key] = value

    def _value(self) -> str | Value | list[str | Value]:
        """A name, a value, or several of them in parentheses."""
        if self._open("("):
            several: list[str | Value] = []
            while not self._open(")"):
                if not self._open(","):
                    several.append(self._single())
            return several
        return self._single()

    def _single(self) -> str | Value:
        """A name or a value."""
        kind, token = self._advance()
        if kind != "name":
            if (kind, token) in (("mark", "["), ("mark", "{")):
                self._literal()
            elif kind == "mark":
                raise InvalidFileError("a parameter without a value")
            return Unreadable("no tensor", "string")
        dtype, shape = self._type(token) if self._next == ("mark", "<") else (token, ())
        if not self._open("("):
            return token
        literal = self._literal()
        if dtype in ("string", "dict", "list", "tuple"):
            return Unreadable("text", "string")
        if shape is None:
            return Unreadable("an invalid shape", dtype)
        try:
            if literal.blob:
                place = int(literal.numbers[-1]) if literal.numbers else -1
                return self._files.constant(literal.texts[0] if literal.texts else "", place, dtype, shape)
            return immediate(dtype, shape, _numbers(literal.numbers, dtype))
        except InvalidFileError as error:
            return Unreadable(str(error), dtype, shape)
        except (ValueError, OverflowError):
            return Unreadable("an invalid number", dtype, shape)

    def _type(self, name: str) -> tuple[str, tuple[int, ...] | None]:
        """The element type of a tensor type, whose name was used up, and its shape, or `None` if that is not known."""
        depth, names, sizes = 0, [name], None
        while True:
            kind, token = self._advance()
            if kind == "mark" and token in "<>":
                depth += 1 if token == "<" else -1
                if not depth:
                    break
            elif kind == "name":
                names.append(token)
            elif kind == "list" and sizes is None:
                try:
                    sizes = as_sizes([int(each) for each in _NUMBER.findall(token)])
                except ValueError:
                    sizes = None
        if name != "tensor" or len(names) != 2:
            return name, ()
        return names[1], sizes

    def _literal(self) -> _Literal:
        """What stands up to the closing bracket of one that was used up."""
        found, depth = _Literal(), 1
        while depth:
            kind, token = self._advance()
            if kind == "mark":
                depth += 1 if token in "([{" else -1 if token in ")]}" else 0
            elif kind == "text":
                found.texts.append(token[1:-1])
            elif kind == "number":
                found.numbers.append(token)
            elif kind == "list":
                self._left -= len(token) // 2
                if self._left < 0:
                    raise InvalidFileError(f"more than {MAX_NUMBERS:,} numbers")
                found.numbers += _NUMBER.findall(token)
            elif token == "BLOBFILE":
                found.blob = True
            elif token in ("true", "false", "inf", "nan"):
                found.numbers.append(token)
        return found


def _tokenize(text: str) -> Iterator[tuple[str, str]]:
    """The kinds and texts of the tokens."""
    left = MAX_TOKENS
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        token = match.group(kind)
        left -= 1
        if left < 0:
            raise InvalidFileError(f"more than {MAX_TOKENS:,} words")
        if kind == "mark" and token == '"':
            raise InvalidFileError(TRUNCATED)
        yield kind, token


def _numbers(texts: list[str], dtype: str) -> np.ndarray:
    """Numbers as the compiler prints them: integers in decimal, floating-point ones in hexadecimal, truth in words."""
    if dtype.startswith("fp") or dtype == "bf16":
        return np.array([float.fromhex(each) if "x" in each else float(each) for each in texts], np.float64)
    if dtype == "bool":
        return np.array([_TRUTH.get(each, 0) for each in texts], np.uint8)
    return np.array([int(each) for each in texts], np.uint64 if dtype == "uint64" else np.int64)
