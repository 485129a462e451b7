"""The code in a message."""

from __future__ import annotations

import pytest

from gptcli.text.messages import code_blocks


@pytest.mark.parametrize(("text", "code"), [
    ("```py\nx = 1\n\n```\nor\n~~~~\n```\n~~~~\n", "x = 1\n\n\n```"),
    ("```x``` is inline\n\nprose\n\n```\ny\n```", "y"),
    ("~~~ a`b\ny\n~~~", "y"),
    ("1. one:\n\n   ```py\n   if x:\n       y\n   ```\n\n2. two", "if x:\n    y"),
    ("- one\n  - two\n    ```\n    x\n\n      y\n    ```\n", "x\n\n  y"),
    ("  ```\n  x\n y\n    z\n  ```", "x\ny\n  z"),
    ("> ```\n> x\n> ```\n", "x"),
    ("<answer>\n```\nx\n```\n</answer>", "x"),
    ("````\n```\nx\n```\n````\n", "```\nx\n```"),
    ("```\nx\n``` y\nz", "x\n``` y\nz"),
    ("no `code` block", ""),
])  # fmt: skip
def test_code_is_what_commonmark_fences_without_their_indent(text: str, code: str) -> None:
    assert code_blocks(text) == code
