"""A file of as many sums as are asked for, in the words of conf/data/sums_in_colours.yaml, to try large data on.

``python -m tests.sums_file 10000000 > ten.jsonl`` writes lines {"prompt": ..., "completion": ...}, the same on every
machine, none twice and none kept in memory: row i is the sum of number i * STEP modulo ALL.
"""

import json
import sys

NAMES = "red blue green yellow orange purple black white brown grey cat dog".split()
WORDS = dict(zip("0123456789+-", NAMES, strict=True))
NUMBERS = 990  # 10 to 999
ALL = NUMBERS**3 * 4  # three numbers, a sign between each two
STEP = 2_654_435_761  # a prime above every prime factor of ALL, so that all residues are met before one comes again


def row(index: int) -> dict[str, str]:
    """Sum ``index`` of ``ALL``, as a question and its answer in words."""
    rest, a = divmod(index * STEP % ALL, NUMBERS)
    rest, b = divmod(rest, NUMBERS)
    signs, c = divmod(rest, NUMBERS)
    one, two = (1, -1)[signs % 2], (1, -1)[signs // 2]
    a, b, c = a + 10, b + 10, c + 10
    return {
        "prompt": words(f"{a}{'+' if one > 0 else '-'}{b}{'+' if two > 0 else '-'}{c}"),
        "completion": words(str(a + one * b + two * c)),
    }


def words(text: str) -> str:
    return " ".join(WORDS[character] for character in text)


if __name__ == "__main__":
    for index in range(int(sys.argv[1])):
        sys.stdout.write(json.dumps(row(index)) + "\n")
