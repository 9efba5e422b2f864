"""Generated pages that are mostly fields, tables and pictures; each function draws one on a sheet."""

from quartet.apps.doc_ensemble.data.generated_drawing import Sheet, number

__all__ = ["advertisement", "budget", "chart", "form", "id_card", "invoice", "questionnaire", "receipt"]


def form(sheet: Sheet) -> None:
    """Boxes and lines to be filled in, some of them filled in by hand."""
    sheet.text((0.06, sheet.between(0.03, 0.06)), sheet.words(3), size=0.028, font="sans bold")
    y, framed = sheet.between(0.11, 0.15), sheet.often(0.5)
    while y < 0.86:
        fields = int(sheet.rng.integers(1, 4))
        width = (sheet.aspect - 0.12) / fields
        tall = sheet.between(0.04, 0.06)
        for field in range(fields):
            left = 0.06 + field * width
            end = sheet.text((left + 0.005, y + 0.004), sheet.words(2)[: 1 if fields > 2 else 2], size=0.013)
            start = left if framed else max(left + 0.08, end + 0.008)
            if framed:
                sheet.box((left, y, left + width, y + tall))
            else:
                sheet.line((start, y + 0.022), (left + width - 0.01, y + 0.022))
            if sheet.often(0.6):
                word = sheet.words(1)[0][: 7 if fields > 2 else 12]
                sheet.text((start + 0.01, y + 0.016 * framed), word, size=0.018, font="hand")
        y += tall + sheet.between(0.0, 0.02)
        if sheet.often(0.2):
            sheet.text((0.06, y + 0.01), sheet.words(3), size=0.018, font="sans bold")
            y += 0.04
        if sheet.often(0.25):
            _choices(sheet, y + 0.005, count=3)
            y += 0.035


def questionnaire(sheet: Sheet) -> None:
    """Numbered questions with boxes or circles to tick, or lines for an answer."""
    y = sheet.between(0.04, 0.08)
    sheet.text((0.06, y), sheet.words(4), size=0.028, font="sans bold")
    if sheet.often(0.5):
        y = sheet.paragraph((0.06, y + 0.05, sheet.aspect - 0.06, y + 0.12), size=0.014)
    y, question = y + sheet.between(0.05, 0.08), 1
    scale = sheet.often(0.4)
    while y < 0.9:
        sheet.text((0.06, y), [f"{question}.", *sheet.words(int(sheet.rng.integers(4, 7)))], size=0.016)
        if sheet.often(0.2):
            for row in range(int(sheet.rng.integers(1, 3))):
                sheet.line((0.09, y + 0.05 + 0.03 * row), (sheet.aspect - 0.08, y + 0.05 + 0.03 * row), width=0.0012)
            y += 0.11
        elif scale:
            _choices(sheet, y + 0.028, count=5)
            y += sheet.between(0.06, 0.08)
        else:
            for _ in range(int(sheet.rng.integers(2, 5))):
                y += 0.027
                _tick(sheet, 0.09, y)
                sheet.text((0.12, y), sheet.words(2), size=0.014)
            y += sheet.between(0.035, 0.05)
        question += 1


def _choices(sheet: Sheet, y: float, *, count: int) -> None:
    """Boxes to tick in a row."""
    for place in range(count):
        x = 0.09 + place * (sheet.aspect - 0.16) / count
        _tick(sheet, x, y)
        sheet.text((x + 0.025, y), sheet.words(1)[0][:8], size=0.013)


def _tick(sheet: Sheet, x: float, y: float) -> None:
    sheet.box((x, y, x + 0.016, y + 0.016))
    if sheet.often(0.3):
        sheet.curve([(x, y + 0.006), (x + 0.007, y + 0.016), (x + 0.022, y - 0.006)], width=0.003)


def invoice(sheet: Sheet) -> None:
    """A sender, a receiver, a table of items with few columns, a total."""
    top = sheet.between(0.04, 0.07)
    sheet.text((0.06, top), sheet.words(2), size=0.026, font="sans bold")
    for row in range(3):
        sheet.text((0.06, top + 0.045 + 0.022 * row), sheet.words(2), size=0.015)
    if sheet.often(0.7):
        title = "INVOICE" if sheet.korean is None else "청구서"
        sheet.text((sheet.aspect - 0.06, top), title, size=0.036, font="sans bold", anchor="ra")
    for row in range(int(sheet.rng.integers(2, 5))):
        y = top + 0.06 + 0.024 * row
        sheet.text((sheet.aspect - 0.2, y), sheet.words(1), size=0.015, anchor="ra")
        sheet.text((sheet.aspect - 0.06, y), number(sheet.rng, digits=6), size=0.015, anchor="ra")
    y = sheet.between(0.24, 0.33)
    rows = int(sheet.rng.integers(4, 14))
    end = y + rows * sheet.between(0.027, 0.035)
    ruled = ("all", "rows", "head")[int(sheet.rng.integers(3))]
    sheet.table((0.06, y, sheet.aspect - 0.06, end), rows=rows, widths=(4, 1, 1.3, 1.3), ruled=ruled)
    for row in range(int(sheet.rng.integers(2, 4))):
        at = end + 0.02 + 0.028 * row
        sheet.text((sheet.aspect - 0.2, at), sheet.words(1), size=0.016, font="sans bold", anchor="ra")
        sheet.text((sheet.aspect - 0.065, at), number(sheet.rng, digits=6), size=0.016, font="sans bold", anchor="ra")
    if sheet.often(0.6):
        sheet.paragraph((0.06, max(end + 0.14, 0.84), sheet.aspect - 0.06, 0.93), size=0.013, font="sans")


def budget(sheet: Sheet) -> None:
    """A page that is one table with many columns, or two."""
    y = sheet.between(0.04, 0.08)
    sheet.text((0.05, y), sheet.words(4), size=0.024, font="sans bold")
    if sheet.often(0.4):
        sheet.text((0.05, y + 0.035), sheet.words(4), size=0.015)
        y += 0.03
    if sheet.often(0.4):  # like the head of an invoice
        sheet.text((sheet.aspect - 0.06, y), number(sheet.rng, digits=6), size=0.015, anchor="ra")
        y += 0.08
    ruled = ("all", "rows", "head", "none")[int(sheet.rng.integers(4))]
    columns = int(sheet.rng.integers(3, 7))
    y += 0.05
    for _ in range(1 if sheet.often(0.6) else 2):
        rows = int(sheet.rng.integers(8, 24))
        end = min(0.95, y + rows * sheet.between(0.026, 0.034))
        rows = max(3, min(rows, int((end - y) / 0.024)))
        if end - y > 0.1:
            sheet.table((0.05, y, sheet.aspect - 0.05, end), rows=rows, widths=(2.4, *[1] * columns), ruled=ruled,
                        size=0.0135)  # fmt: skip
        y = end + 0.05
    if y < 0.85 and sheet.often(0.5):
        sheet.paragraph((0.05, y, sheet.aspect - 0.05, y + 0.06), size=0.014, font="sans")


def receipt(sheet: Sheet) -> None:
    """A narrow strip: shop, items with prices, total, perhaps a bar code."""
    font, size, y = ("mono", "sans")[int(sheet.rng.integers(2))], sheet.between(0.022, 0.028), 0.04
    middle, right = sheet.aspect / 2, sheet.aspect - 0.03
    sheet.text((middle, y), sheet.words(2), size=0.036, font=f"{font} bold", anchor="ma")
    for row in range(2):
        sheet.text((middle, y + 0.055 + row * 1.4 * size), sheet.words(2), size=size, font=font, anchor="ma")
    y += 0.08 + 3 * size
    rows = int(sheet.rng.integers(4, 15))
    for row in range(rows):
        if y > 0.68:
            break
        if row in (0, rows - 1):
            sheet.text((middle, y), "- " * 14, size=size, font=font, anchor="ma")
        else:
            sheet.text((0.03, y), sheet.words(1)[0][:10], size=size, font=font)
            sheet.text((right, y), number(sheet.rng, digits=int(sheet.rng.integers(3, 5))), size=size, font=font,
                       anchor="ra")  # fmt: skip
        y += 1.45 * size
    sheet.text((0.03, y + 0.01), "TOTAL" if sheet.korean is None else "합계", size=1.3 * size, font=f"{font} bold")
    sheet.text((right, y + 0.01), number(sheet.rng), size=1.3 * size, font=f"{font} bold", anchor="ra")
    if sheet.often(0.6):
        sheet.bars((0.06, y + 0.09, sheet.aspect - 0.06, y + 0.15))
    sheet.text((middle, min(0.95, y + 0.18)), sheet.words(3), size=size, font=font, anchor="ma")


def id_card(sheet: Sheet) -> None:
    """A landscape card: portrait, name, number, perhaps a bar code; sometimes on a larger page."""
    tall, left, top = sheet.between(0.75, 0.92), 0.06, 0.05
    right = sheet.aspect - 0.06
    sheet.box((left, top, right, top + tall), fill=int(sheet.rng.integers(215, 250)), width=0.008)
    sheet.box((left, top, right, top + 0.15), fill=int(sheet.rng.integers(120, 210)))
    sheet.text((left + 0.04, top + 0.04), sheet.words(3), size=0.065, font="sans bold")
    on_right = sheet.often(0.3)
    x = right - 0.42 if on_right else left + 0.05
    sheet.photo((x, top + 0.22, x + 0.36, top + 0.66))
    start = left + 0.05 if on_right else left + 0.47
    for row in range(int(sheet.rng.integers(3, 6))):
        y = top + 0.22 + 0.09 * row
        end = sheet.text((start, y), sheet.words(1), size=0.035)
        sheet.text((max(start + 0.2, end + 0.03), y), sheet.words(2)[:1], size=0.045, font="sans bold")
    if sheet.often(0.5):
        sheet.bars((start, top + tall - 0.12, min(right - 0.05, start + 0.5), top + tall - 0.03))


def advertisement(sheet: Sheet) -> None:
    """Large words, one or two pictures, little small print; sometimes white on black."""
    dark = sheet.often(0.35)
    if dark:
        sheet.box((0, 0, sheet.aspect, 1), fill=int(sheet.rng.integers(20, 90)), outline=False)
        sheet.ink = 245
    y = sheet.between(0.05, 0.15)
    for _ in range(int(sheet.rng.integers(1, 4))):
        size = sheet.between(0.05, 0.09)
        sheet.text((sheet.aspect / 2, y), sheet.words(2)[: 1 if size > 0.065 else 2], size=size, font="sans bold",
                   anchor="ma")  # fmt: skip
        y += 1.5 * size
    if sheet.often(0.85):
        width = sheet.between(0.3, 0.66)
        left = sheet.between(0.02, max(0.02, sheet.aspect - 0.02 - width))
        sheet.photo((left, y, left + width, min(0.9, y + sheet.between(0.2, 0.45))))
    if sheet.often(0.5):
        sheet.disc((sheet.between(0.15, 0.55), sheet.between(0.6, 0.85)), 0.08, fill=255 - 2 * sheet.ink // 3)
    sheet.paragraph((0.08, sheet.between(0.84, 0.9), sheet.aspect - 0.08, 0.97), size=0.016, font="sans")


def chart(sheet: Sheet) -> None:
    """One or two diagrams over the page, with a title and a legend."""
    y = sheet.between(0.04, 0.09)
    sheet.text((sheet.aspect / 2, y), sheet.words(4), size=0.03, font="sans bold", anchor="ma")
    if sheet.often(0.3):
        y = sheet.paragraph((0.08, y + 0.06, sheet.aspect - 0.08, y + 0.13), size=0.015)
    count = 1 if sheet.often(0.6) else 2
    tall = (0.88 - y - 0.08 * count) / count
    for place in range(count):
        top = y + 0.08 + place * (tall + 0.08)
        right = sheet.aspect - sheet.between(0.06, 0.14)
        sheet.plot(
            (sheet.between(0.08, 0.14), top, right, top + tall - 0.02), kind=("bars", "lines")[int(sheet.often(0.5))]
        )
    for row in range(int(sheet.rng.integers(0, 4))):
        sheet.box((sheet.aspect - 0.2, y + 0.09 + 0.025 * row, sheet.aspect - 0.18, y + 0.105 + 0.025 * row),
                  fill=60 + 45 * row)  # fmt: skip
        sheet.text((sheet.aspect - 0.17, y + 0.088 + 0.025 * row), sheet.words(1), size=0.014)
