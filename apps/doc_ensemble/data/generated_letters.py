"""Generated pages that are mostly running text; each function draws one on a sheet."""

from quartet.apps.doc_ensemble.data.generated_drawing import Sheet, number

__all__ = ["certificate", "email", "letter", "memo", "news", "paper", "report", "resume", "slide"]

ASPECT = 0.72  # of a portrait page


def _logo(sheet: Sheet, x: float, y: float) -> None:
    side = sheet.between(0.03, 0.06)
    if sheet.often(0.5):
        sheet.disc((x + side / 2, y + side / 2), side / 2, fill=int(sheet.rng.integers(40, 200)))
    else:
        sheet.box((x, y, x + side * sheet.between(1, 2), y + side), fill=int(sheet.rng.integers(40, 200)))


def _body(sheet: Sheet, top: float, bottom: float, *, font: str) -> float:
    """Paragraphs between two heights; returns where they end."""
    left, right = sheet.between(0.06, 0.1), sheet.aspect - sheet.between(0.06, 0.1)
    size = sheet.between(0.014, 0.019)
    y = top
    while y + 0.05 < bottom:
        y = sheet.paragraph((left, y, right, min(bottom, y + sheet.between(0.06, 0.2))), size=size, font=font) + size
    return y


def _head_lines(sheet: Sheet, top: float, keys: list[str], *, font: str) -> float:
    """Lines such as "To: ..."; returns the y below them."""
    left, size = sheet.between(0.06, 0.1), sheet.between(0.016, 0.021)
    y = top
    for key in keys:
        end = sheet.text((left, y), f"{key}:", size=size, font=f"{font} bold")
        sheet.text((max(end + 0.01, left + 0.09), y), sheet.words(int(sheet.rng.integers(2, 6))), size=size, font=font)
        y += 1.6 * size
    return y


def letter(sheet: Sheet) -> None:
    """Letterhead, address, date, salutation, body, signature."""
    font = "serif" if sheet.often(0.7) else "sans"
    y = sheet.between(0.04, 0.08)
    if sheet.often(0.7):
        _logo(sheet, sheet.between(0.06, 0.5), y)
        y += 0.07
    if sheet.often(0.6):
        sheet.text((sheet.aspect / 2, y), sheet.words(3), size=0.024, font="serif bold", anchor="ma")
        y += 0.04
    for _ in range(int(sheet.rng.integers(2, 5))):
        sheet.text((0.08, y), sheet.words(3), size=0.016, font=font)
        y += 0.024
    sheet.text((sheet.aspect - 0.08, y), sheet.words(2), size=0.016, font=font, anchor="ra")
    if sheet.often(0.2):
        y = _head_lines(sheet, y + 0.03, ["Subject"], font=font)
    sheet.text((0.08, y + 0.035), ["Dear", *sheet.words(2)], size=0.016, font=font)
    y = _body(sheet, y + 0.07, sheet.between(0.55, 0.84), font=font)
    where = 0.08 if sheet.often(0.6) else 0.4
    sheet.text((where, y), sheet.words(2), size=0.016, font=font)
    if sheet.often(0.85):
        sheet.signature((where, y + 0.05), length=sheet.between(0.1, 0.2))
    sheet.text((where, y + 0.08), sheet.words(2), size=0.016, font=font)


def memo(sheet: Sheet) -> None:
    """A large title, four lines of head, a rule, body."""
    font = "sans" if sheet.often(0.5) else "serif"
    y = sheet.between(0.04, 0.1)
    if sheet.often(0.3):
        _logo(sheet, 0.08, y)
        y += 0.06
    if sheet.often(0.65):
        title = ["MEMORANDUM", "MEMO", "INTERNAL NOTE"][int(sheet.rng.integers(3))]
        x, anchor = (sheet.aspect / 2, "ma") if sheet.often(0.4) else (0.08, "la")
        sheet.text((x, y), title, size=0.032, font=f"{font} bold", anchor=anchor)
        y += 0.06
    y = _head_lines(sheet, y, ["To", "From", "Date", "Subject"][: int(sheet.rng.integers(3, 5))], font=font)
    if sheet.often(0.6):
        sheet.line((0.06, y + 0.005), (sheet.aspect - 0.06, y + 0.005), width=sheet.between(0.001, 0.005))
    y = _body(sheet, y + 0.03, sheet.between(0.35, 0.85), font=font)
    if sheet.often(0.25):
        sheet.signature((0.08, y + 0.03), length=0.15)


def email(sheet: Sheet) -> None:
    """A printed e-mail: head lines in a sans or mono font, short body, sometimes a quoted mail."""
    font = ("mono", "sans", "sans", "serif")[int(sheet.rng.integers(4))]
    y = sheet.between(0.03, 0.09)
    if sheet.often(0.4):
        sheet.text((0.07, y), sheet.words(2), size=0.022, font=f"{font} bold")
        sheet.line((0.07, y + 0.032), (sheet.aspect - 0.07, y + 0.032), width=0.004)
        y += 0.045
    keys = ["From", "Sent", "To", "Cc", "Subject"]
    y = _head_lines(sheet, y, keys[: int(sheet.rng.integers(4, 6))], font=font)
    if sheet.often(0.25):
        sheet.line((0.06, y + 0.005), (sheet.aspect - 0.06, y + 0.005))
    y = _body(sheet, y + 0.03, y + sheet.between(0.12, 0.4), font=font)
    for _ in range(int(sheet.rng.integers(2, 5))):
        sheet.text((0.08, y), sheet.words(int(sheet.rng.integers(1, 4))), size=0.016, font=font)
        y += 0.024
    if sheet.often(0.35) and y < 0.65:
        sheet.line((0.07, y + 0.01), (0.45, y + 0.01))
        y = _head_lines(sheet, y + 0.03, keys[:4], font=font)
        _body(sheet, y + 0.02, min(0.93, y + 0.25), font=font)


def report(sheet: Sheet) -> None:
    """Numbered headings, text over the whole width, sometimes a diagram or a table."""
    y = sheet.between(0.05, 0.08)
    if sheet.often(0.45):
        sheet.text((0.07, y), sheet.words(4), size=0.03, font="sans bold")
        y += 0.07
    section = int(sheet.rng.integers(1, 6))
    while y < 0.82:
        sheet.text((0.07, y), [f"{section}.{int(sheet.rng.integers(1, 9))}", *sheet.words(3)], size=0.022,
                   font="sans bold")  # fmt: skip
        end = y + sheet.between(0.12, 0.3)
        y = sheet.paragraph((0.07, y + 0.04, sheet.aspect - 0.07, min(0.9, end)), font="serif", size=0.016) + 0.02
        if sheet.often(0.3) and y < 0.6:
            if sheet.often(0.5):
                sheet.plot((0.14, y, sheet.aspect - 0.14, y + 0.16), kind="bars" if sheet.often(0.5) else "lines")
                y += 0.21
            else:
                sheet.table((0.1, y, sheet.aspect - 0.1, y + 0.15), rows=6, widths=(2, 1, 1), ruled="rows")
                y += 0.17
    sheet.text((sheet.aspect / 2, 0.95), str(int(sheet.rng.integers(2, 80))), size=0.014, anchor="ma")


def paper(sheet: Sheet) -> None:
    """A scientific paper: title, authors, abstract, two columns (now and then one) with a figure."""
    y = sheet.between(0.04, 0.08)
    if sheet.often(0.75):
        for _ in range(int(sheet.rng.integers(1, 3))):
            sheet.text((sheet.aspect / 2, y), sheet.words(5), size=0.026, font="serif bold", anchor="ma")
            y += 0.038
        sheet.text((sheet.aspect / 2, y), sheet.words(5), size=0.015, font="hand", anchor="ma")
        y = sheet.paragraph((0.12, y + 0.04, sheet.aspect - 0.12, y + sheet.between(0.1, 0.18)), size=0.013) + 0.02
    columns = 2 if sheet.often(0.75) else 1
    width = (sheet.aspect - 0.11 - 0.02 * (columns - 1)) / columns
    for column in range(columns):
        left, at = 0.055 + column * (width + 0.02), y
        while at < 0.9:
            if sheet.often(0.25) and at < 0.7:
                sheet.plot((left + 0.03, at, left + width - 0.01, at + 0.13), kind="lines")
                sheet.text((left, at + 0.16), ["Fig.", *sheet.words(3)], size=0.012, font="serif")
                at += 0.19
            elif sheet.often(0.3):
                sheet.text((left, at), sheet.words(2), size=0.016, font="serif bold")
                at += 0.028
            at = sheet.paragraph(
                (left, at, left + width, min(0.94, at + sheet.between(0.1, 0.4))), size=0.0135, leading=1.3, indent=0.02
            )


def news(sheet: Sheet) -> None:
    """A newspaper: a masthead, headlines, three to five narrow columns, photographs."""
    y = sheet.between(0.02, 0.05)
    if sheet.often(0.6):
        sheet.text((sheet.aspect / 2, y), ["The", *sheet.words(2)], size=0.05, font="serif bold", anchor="ma")
        sheet.line((0.03, y + 0.075), (sheet.aspect - 0.03, y + 0.075), width=0.003)
        y += 0.085
    sheet.text((0.035, y), sheet.words(4), size=sheet.between(0.028, 0.042), font="serif bold")
    y += 0.06
    columns = int(sheet.rng.integers(3, 6))
    width = (sheet.aspect - 0.06) / columns
    photo = int(sheet.rng.integers(0, columns)) if sheet.often(0.7) else -1
    for column in range(columns):
        left, at = 0.03 + column * width, y
        if column == photo:
            at = y + sheet.between(0.0, 0.3)
            sheet.paragraph((left, y, left + width - 0.012, at), size=0.013, leading=1.25)
            sheet.photo((left, at + 0.01, left + width - 0.012, at + 0.17))
            at += 0.18
        while at < 0.93:
            at = sheet.paragraph(
                (left, at, left + width - 0.012, min(0.97, at + sheet.between(0.2, 0.6))), size=0.013, leading=1.25
            )
            if at < 0.85 and sheet.often(0.6):
                sheet.text((left, at + 0.01), sheet.words(1), size=0.024, font="serif bold")
                at += 0.045


def resume(sheet: Sheet) -> None:
    """A name, contact lines, sections with bullets and years; sometimes a portrait."""
    y = sheet.between(0.04, 0.08)
    centred = sheet.often(0.5)
    x, anchor = (sheet.aspect / 2, "ma") if centred else (0.07, "la")
    sheet.text((x, y), sheet.words(2), size=0.034, font="sans bold", anchor=anchor)
    sheet.text((x, y + 0.048), sheet.words(5), size=0.014, anchor=anchor)
    if sheet.often(0.4):
        sheet.photo((sheet.aspect - 0.2, y, sheet.aspect - 0.08, y + 0.15))
    y += sheet.between(0.08, 0.16)
    ruled = sheet.often(0.6)
    while y < 0.86:
        sheet.text((0.07, y), sheet.words(1)[0].upper(), size=0.02, font="sans bold")
        if ruled:
            sheet.line((0.07, y + 0.028), (sheet.aspect - 0.07, y + 0.028))
        y += 0.04
        for _ in range(int(sheet.rng.integers(2, 6))):
            if y > 0.92:
                break
            if sheet.often(0.4):
                sheet.text((0.07, y), sheet.words(3), size=0.016, font="sans bold")
                sheet.text((sheet.aspect - 0.07, y), f"20{int(sheet.rng.integers(10, 26))}", size=0.016, anchor="ra")
            else:
                sheet.text((0.085, y), ["-", *sheet.words(int(sheet.rng.integers(3, 7)))], size=0.015)
            y += 0.025
        y += 0.02


def certificate(sheet: Sheet) -> None:
    """A frame, centred lines of different sizes, a seal, signatures."""
    margin, middle = sheet.between(0.02, 0.06), sheet.aspect / 2
    sheet.box((margin, margin, sheet.aspect - margin, 1 - margin), width=sheet.between(0.004, 0.015))
    if sheet.often(0.6):
        inner = margin + sheet.between(0.015, 0.03)
        sheet.box((inner, inner, sheet.aspect - inner, 1 - inner))
    y = sheet.between(0.13, 0.25)
    title = "CERTIFICATE" if sheet.korean is None else "증명서"
    sheet.text((middle, y), title, size=0.05 * min(1.0, sheet.aspect / 0.9), font="serif bold", anchor="mm")
    y += sheet.between(0.08, 0.14)
    for size in (0.02, 0.036, 0.02, 0.02):
        words = sheet.words(2 if size > 0.03 else int(sheet.rng.integers(3, 6)))
        sheet.text((middle, y), words, size=size, font="hand" if size > 0.03 else "serif", anchor="mm")
        y += sheet.between(0.05, 0.09)
    if sheet.often(0.7):
        sheet.disc((sheet.between(0.25, 0.75) * sheet.aspect, 0.78), 0.06, fill=int(sheet.rng.integers(90, 210)))
    for x in (0.22, 0.78):
        if sheet.often(0.7):
            sheet.signature((x * sheet.aspect - 0.07, 0.83), length=0.14)
            sheet.line((x * sheet.aspect - 0.1, 0.86), (x * sheet.aspect + 0.1, 0.86))


def slide(sheet: Sheet) -> None:
    """A landscape page with a title, a few large bullets, sometimes a picture or a diagram; perhaps a dark bar."""
    if sheet.often(0.4):
        sheet.box((0, 0, sheet.aspect, 0.16), fill=int(sheet.rng.integers(170, 225)), outline=False)
    sheet.text((0.06, 0.05), sheet.words(4), size=0.065, font="sans bold")
    split = sheet.aspect * (0.55 if sheet.often(0.5) else 0.95)
    y = sheet.between(0.24, 0.3)
    while y < 0.8 and not sheet.often(0.08):
        sheet.text((0.08, y), ["-", *sheet.words(4 if split > sheet.aspect * 0.6 else 2)], size=0.042)
        y += sheet.between(0.08, 0.13)
    if split < sheet.aspect * 0.6:
        box = (split + 0.05, 0.28, sheet.aspect - 0.08, 0.78)
        if sheet.often(0.4):
            sheet.photo(box)
        else:
            sheet.plot(box, kind="bars" if sheet.often(0.5) else "lines")
    sheet.text((sheet.aspect - 0.05, 0.93), number(sheet.rng, digits=3)[:1], size=0.03, anchor="ra")
