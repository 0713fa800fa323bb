"""Makes hipified kernels compilable for the CPU: rewrite.py FROM TO FILE...

Files are relative to the folders FROM and TO. Two things of the language have no form in C++: launches, and arrays of
dynamic shared memory.

    kernel<A><<<grid, block, bytes, stream>>>(p);
    Launch(grid, block, bytes, stream).run([=](const auto&... values) { kernel<A>(values...); }, p);

    extern __shared__ float floats[];
    auto* const floats = static_cast<float*>(dynamic_shared_memory());

Everything else stays, and lines keep their numbers.
"""

import re
import sys
from pathlib import Path

NAMESPACE = "::multikv::emulation::"
DYNAMIC = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];")


def closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at `start`."""
    pairs, depth = {"(": ")", "[": "]", "{": "}"}, 0
    for i in range(start, len(text)):
        if text[i] in pairs:
            depth += 1
        elif text[i] in pairs.values():
            depth -= 1
            if depth == 0:
                return i
    raise ValueError(f"no bracket closes {text[start : start + 40]!r}")


def beginning_of_kernel(text: str, end: int) -> int:
    """The index at which the kernel's name begins, whose template arguments end before `end`."""
    i, depth = len(text[:end].rstrip()), 0
    while i > 0 and (depth > 0 or re.match(r"[\w:<>]", text[i - 1])):
        i -= 1
        depth += {">": 1, "<": -1}.get(text[i], 0)
    return i


def rewritten(text: str) -> str:
    """The source in C++."""
    text = DYNAMIC.sub(rf"auto* const \2 = static_cast<\1*>({NAMESPACE}dynamic_shared_memory());", text)
    while (begin := text.find("<<<")) >= 0:
        end = text.index(">>>", begin)
        open_arguments = end + 3
        close_arguments = closing(text, open_arguments)
        kernel = beginning_of_kernel(text, begin)
        name, shape = text[kernel:begin].rstrip(), text[begin + 3 : end]
        lines = "\n" * text[kernel:begin].count("\n")
        arguments = text[open_arguments + 1 : close_arguments]
        call = f"[=](const auto&... values) {{ {name}(values...); }}"
        launch = f"{NAMESPACE}Launch({shape}).run({call}, {lines}{arguments})"
        text = text[:kernel] + launch + text[close_arguments + 1 :]
    return text


def main() -> None:
    """Rewrites the files. An output that would not change keeps its time."""
    source, target, *files = map(Path, sys.argv[1:])
    for file in files:
        text, path = rewritten((source / file).read_text()), target / file
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main()
