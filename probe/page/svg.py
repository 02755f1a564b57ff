"""SVG files of figures: saved reproducibly, inlined in the page, or as separate files."""

from __future__ import annotations

import io
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

INK = "#010203"  # placeholder for the text colour: dark on a light page, light on a dark one


def save_svg(figure: Figure, name: str) -> bytes:
    """Save and close a figure; the same figure and name give the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return buffer.getvalue()


def inline_svg(svg: bytes, name: str) -> str:
    """Prepare an SVG for inlining in the page: in the text colour, with ids that no other figure has."""
    text = svg.decode()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    prefixed = rf"\g<1>{name}-"  # only within tags: text may contain such words too
    text = re.sub("<[^>]*>", lambda tag: re.sub(r'(\bid="|url\(#|href="#)', prefixed, tag[0]), text)
    return re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" xmlns="http://www.w3.org/2000/svg" '
                  r'xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true">', text, count=1)  # fmt: skip


def black_svg(svg: bytes) -> bytes:
    """Draw an SVG in black, for use as a separate file on white."""
    return svg.replace(INK.encode(), b"#000000")
