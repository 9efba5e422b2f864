"""Looks through a pickle's opcodes before anything reads it: how deep it nests, what memory it asks for, what it calls.

A reader that follows nesting by recursion in C ends the process (a dictionary's key of 300,000 nested tuples), and nine
bytes can ask for a memo of gigabytes. The opcodes tell all of it without building a single object.
"""

import pickletools
from typing import BinaryIO

__all__ = ["ScanError", "scan_pickle"]

_DEEPEST = 200  # levels; checkpoints have about ten
_LONGEST = 2_000_000  # opcodes; about 50 for a tensor

_Node = list["_Node"]  # what an object contains; None stands for what contains nothing
_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_CHANGE = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_CALL = {"REDUCE", "NEWOBJ", "NEWOBJ_EX"}


class ScanError(ValueError):
    """A pickle is damaged, or asks for more than any that holds data."""


class _Name(_Node):
    """What a pickle names, such as "collections OrderedDict"; it contains nothing."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def scan_pickle(program: bytes | BinaryIO) -> set[str]:
    """Read the opcodes of one pickle; of a file from where it stands, up to the pickle's end.

    Args:
        program: Of files a `mlcore.base.reading.Bounded` one: lengths in a pickle are taken at their word.

    Returns:
        What it calls of the things that it names by GLOBAL, each as "module name".

    Raises:
        ScanError: It is damaged, nests deeper than 200 levels, contains itself, has more than 2 million opcodes, or
            numbers its memo far beyond them.
    """
    try:
        return _Scan().run(program)
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise ScanError(f"not a complete pickle ({error})") from None
    except ValueError as error:
        raise error if isinstance(error, ScanError) else ScanError(str(error)) from None


class _Scan:
    """The machine that runs pickles, on objects that know only what they contain."""

    def __init__(self) -> None:
        self._stack: list[_Node | None] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Node | None] = {}
        self._containers: list[_Node] = []

        self._called: set[str] = set()

    def run(self, program: bytes | BinaryIO) -> set[str]:
        end = 0
        at: int | None = None
        for count, (opcode, argument, at) in enumerate(pickletools.genops(program)):
            if count > _LONGEST:
                raise ScanError(f"more than {_LONGEST:,} operations")
            name = opcode.name
            if name == "FRAME":  # which a reader takes memory for before it looks
                end = max(end, (at or 0) + 9 + int(str(argument)))
            if name == "MARK":
                self._marks.append(len(self._stack))
            elif name in _PUT:
                place = len(self._memo) if argument is None else int(str(argument))
                if place > count:
                    raise ScanError(f"its memo is numbered up to {place:,}")
                self._memo[place] = self._stack[-1]
            elif name in _GET:
                self._stack.append(self._memo[int(str(argument))])
            elif name == "DUP":
                self._stack.append(self._stack[-1])
            elif name == "GLOBAL":
                self._stack.append(_Name(str(argument)))
            elif name in ("POP", "POP_MARK"):
                self._pop(opcode, of_mark=name == "POP_MARK" or self._marks[-1:] == [len(self._stack)])
            else:
                self._build(opcode)
        if end > (at or 0) + 1:
            raise ScanError("a frame that is longer than the pickle")
        self._check_depth()
        return self._called

    def _build(self, opcode: pickletools.OpcodeInfo) -> None:
        """Anything that takes objects from the stack and puts one there."""
        content = self._pop(opcode, of_mark=pickletools.markobject in opcode.stack_before)
        if opcode.name in _CALL and isinstance(content[0], _Name):
            self._called.add(content[0].name)
        if opcode.name in _CHANGE:
            target = content.pop(0) if pickletools.markobject not in opcode.stack_before else self._stack.pop()
            if target is None:
                target = self._new()
            target.extend(part for part in content if part is not None)
            self._stack.append(target)
        elif opcode.stack_after:
            inside = [part for part in content if part is not None]
            is_container = bool(content) or opcode.name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET")
            self._stack.append(self._new(inside) if is_container else None)

    def _new(self, content: _Node | None = None) -> _Node:
        node = [] if content is None else content
        self._containers.append(node)
        return node

    def _pop(self, opcode: pickletools.OpcodeInfo, *, of_mark: bool) -> list[_Node | None]:
        """What `opcode` takes from the stack, lowest first."""
        if of_mark:
            start = self._marks.pop()
        else:
            start = len(self._stack) - max(1, len(opcode.stack_before)) if opcode.stack_before else len(self._stack)
            if start < 0:
                raise ScanError("not a complete pickle (its stack is empty)")
        content, self._stack[start:] = self._stack[start:], []
        return content

    def _check_depth(self) -> None:
        depth: dict[int, int] = {}  # by identity, of containers that are looked through
        for container in self._containers:
            path = [] if id(container) in depth else [(container, iter(container))]
            above = {id(container)}
            while path:
                node, rest = path[-1]
                inner = next((part for part in rest if id(part) not in depth), None)
                if inner is None:
                    path.pop()
                    above.discard(id(node))
                    depth[id(node)] = level = 1 + max((depth[id(part)] for part in node), default=0)
                    if level > _DEEPEST:
                        raise ScanError(f"nested deeper than {_DEEPEST} levels")
                elif id(inner) in above:
                    raise ScanError("it contains itself")
                else:
                    path.append((inner, iter(inner)))
                    above.add(id(inner))
