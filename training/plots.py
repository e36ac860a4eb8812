"""Plots as inline SVG: lines and bars with axes, readable in print and without colours, needing no script and no network.

Invariant: the same numbers give the same text; every plot carries its numbers in a title that a screen reader speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

CHAMPION, CHALLENGER, QUIET = "#1f6f8b", "#d1603d", "#8a9299"
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44

Point = tuple[float, float]


class Axes:
    """A plotting area whose values run from `x[0]` to `x[1]` and `y[0]` to `y[1]`."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], height: int = HEIGHT) -> None:
        self._x, self._y, self._height = x, y, height
        self._parts: list[str] = []

    def across(self, value: float) -> float:
        low, high = self._x
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(self, value: float) -> float:
        low, high = self._y
        return self._height - BOTTOM - (value - low) / (high - low) * (self._height - TOP - BOTTOM)

    def grid(self, x: Sequence[float], y: Sequence[float], labels: tuple[str, str], form: tuple[str, str]) -> None:
        """Draw the axes with ticks at `x` and `y`, written in the formats `form`, and their labels."""
        for value in y:
            at = self.up(value)
            self._parts.append(f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            self._text(LEFT - 6, at + 4, format(value, form[1]), "end")
        for value in x:
            self._text(self.across(value), self._height - BOTTOM + 18, format(value, form[0]), "middle")
        base = self._height - BOTTOM
        self._parts.append(f'<line class="a" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
        self._text((LEFT + WIDTH - RIGHT) / 2, self._height - 6, labels[0], "middle")
        middle = (TOP + self._height - BOTTOM) / 2
        self._parts.append(
            f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(labels[1])}</text>'
        )

    def line(self, points: Sequence[Point], colour: str, *, dashed: bool = False, radii: Sequence[float] = ()) -> None:
        """Draw a line through the points, with a dot of each radius."""
        path = " ".join(f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="{path}"/>')
        for (x, y), radius in zip(points, radii, strict=False):
            self._parts.append(f'<circle cx="{self.across(x):.1f}" cy="{self.up(y):.1f}" r="{radius:.1f}" fill="{colour}"/>')

    def bar(self, left: float, right: float, value: float, colour: str, note: str = "") -> None:
        """Draw a bar from the axis to `value`, with a note above it."""
        x, top = self.across(left), self.up(value)
        size = f'width="{self.across(right) - x:.1f}" height="{max(self._height - BOTTOM - top, 0):.1f}"'
        self._parts.append(f'<rect x="{x:.1f}" y="{top:.1f}" {size} fill="{colour}"/>')
        if note:
            self._text((x + self.across(right)) / 2, top - 4, note, "middle")

    def svg(self, title: str) -> str:
        """Return the plot."""
        size = f'viewBox="0 0 {WIDTH} {self._height}" role="img"'
        return f"<svg {size}><title>{escape(title)}</title>{''.join(self._parts)}</svg>"

    def _text(self, x: float, y: float, text: str, anchor: str) -> None:
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')


def reliability(bins: Sequence[tuple[int, float, float]], colour: str) -> str:
    """Return a reliability curve: bins of (customers, mean predicted, share seen); a dot's area shows the customers."""
    values = [value for _, predicted, seen in bins for value in (predicted, seen)]
    low, high = max(0.0, min(values) - 0.05), min(1.0, max(values) + 0.05)
    ticks = [tick / 10 for tick in range(11) if low <= tick / 10 <= high]
    axes = Axes((low, high), (low, high))
    axes.grid(ticks, ticks, ("mean predicted probability", "share seen"), (".0%", ".0%"))
    axes.line([(low, low), (high, high)], QUIET, dashed=True)
    most = max(count for count, _, _ in bins)
    axes.line([(p, s) for _, p, s in bins], colour, radii=[2 + 7 * (count / most) ** 0.5 for count, _, _ in bins])
    told = "; ".join(f"{count} at {predicted:.1%} predicted, {seen:.1%} seen" for count, predicted, seen in bins)
    return axes.svg(f"Reliability curve: {told}")


def lift(deciles: Sequence[tuple[int, int, float, float]], colour: str) -> str:
    """Return bars of the lift by decile, of rows (decile, customers, share of positives, lift)."""
    top = max(1.1, *(row[3] for row in deciles)) * 1.1
    axes = Axes((0.4, 10.6), (0.0, top))
    ticks = [tick / 2 for tick in range(int(top * 2) + 1)]
    axes.grid(list(range(1, 11)), ticks, ("score decile, 1 is the highest", "lift"), (".0f", ".1f"))
    for decile, _, _, value in deciles:
        axes.bar(decile - 0.38, decile + 0.38, value, colour, f"{value:.2f}")
    axes.line([(0.4, 1.0), (10.6, 1.0)], QUIET, dashed=True)
    return axes.svg("Lift by decile: " + ", ".join(f"{decile}: {value:.2f}" for decile, _, _, value in deciles))
