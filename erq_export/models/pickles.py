"""Whether reading a pickle ends: tuples within tuples may take longer to hash than anybody can wait.

A tuple that holds one tuple twice, which holds another twice, and so on n times, takes n lines in a file and 2ⁿ steps when it
becomes the key of a dict. torch's weights_only forbids code, not this. So the opcodes are walked first, without building
anything, and the number of leaves of every tuple is counted.
"""

import pickletools
from typing import IO

MOST_LEAVES = 10**6  # of a tuple; a second of hashing. A tensor's own, its shape and strides, has some dozens
HASHED = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD", "FROZENSET"}
MARK, ANY = -1, 1  # leaves of what is no tuple


def check_ends(file: IO[bytes]) -> None:
    """Walk one pickle, up to its STOP. ValueError for a tuple of too many leaves; ValueError, IndexError or KeyError where
    the bytes are no pickle."""
    stack: list[int] = []  # leaves of what the pickle machine would hold here
    memo: dict[object, int] = {}
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "DUP":
                stack.append(stack[-1])
            case name:
                taken = _pop(stack, opcode.stack_before)
                leaves = ANY + sum(taken) if name in HASHED else ANY
                if leaves > MOST_LEAVES:
                    raise ValueError(f"tuples within tuples, of more than {MOST_LEAVES} parts")
                stack += [MARK if kind is pickletools.markobject else leaves for kind in opcode.stack_after]


def _pop(stack: list[int], before: list[pickletools.StackObject]) -> list[int]:
    """Take from the stack what an opcode takes: some objects, or all above the last mark and some below it."""
    if pickletools.markobject not in before:
        return [stack.pop() for _ in before]
    taken = []
    while (leaves := stack.pop()) != MARK:
        taken.append(leaves)
    return taken + [stack.pop() for _ in before[: before.index(pickletools.markobject)]]
