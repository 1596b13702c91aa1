"""Files with one thing wrong, drawn at random."""

import random

__all__ = ["mutate", "mutate_config"]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """``content`` with one thing wrong; never the same bytes."""
    changed = bytearray(content)
    at = rng.randrange(len(changed)) if rng.random() < 0.5 else rng.randrange(min(256, len(changed)))
    kind = rng.randrange(6)
    if kind == 0:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        changed[at : at + 8] = rng.randbytes(8)
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        changed[at : at + 64] = bytes(64)
    elif kind == 4:
        changed += rng.randbytes(rng.randrange(1, 64))
    else:
        other = rng.randrange(len(changed))
        changed[at : at + 16], changed[other : other + 16] = changed[other : other + 16], changed[at : at + 16]
    return bytes(changed) if bytes(changed) != content else mutate(content, rng)


_ODD = (
    "-1",
    "0",
    ".nan",
    ".inf",
    "1e400",
    "''",
    "null",
    "[]",
    "{}",
    "[1, 2]",
    "true",
    "text",
    "0x10",
    "1e-9",
    "!!binary x",
)


def mutate_config(text: str, rng: random.Random) -> str:
    """A YAML file with one thing wrong."""
    kind = rng.randrange(5)
    rows = text.splitlines()
    at = rng.choice([number for number, row in enumerate(rows) if ":" in row])
    if kind <= 1:
        rows[at] = f"{rows[at].split(':')[0]}: {rng.choice(_ODD)}"
    elif kind == 2:
        key, _, value = rows[at].partition(":")
        place = rng.randrange(len(key))
        rows[at] = f"{key[:place]}{rng.choice('xyz_ ')}{key[place + 1 :]}:{value}"
    elif kind == 3:
        rows[at] = rows[at].strip() if rng.random() < 0.5 else "   " + rows[at]
    else:
        content = mutate(text.encode(), rng)
        return content.decode("latin-1")
    return "\n".join(rows) + "\n"
