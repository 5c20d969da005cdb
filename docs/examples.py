"""Show examples and command lines in docstrings as code, in the API reference."""

import re

import griffe

PARAGRAPH = re.compile(r"^(?:>>>|python -m ).*(?:\n(?!\s*$).+)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Put a fence around every doctest and command line that has none."""

    def on_object(self, *, obj: griffe.Object, **_):
        if obj.docstring:
            text = obj.docstring.value.replace("] [", r"\] \[")  # no link: optional arguments
            obj.docstring.value = PARAGRAPH.sub(r"```pycon\n\g<0>\n```", text)
