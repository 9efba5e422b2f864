"""Texts of the generated set: sentences that sell something and sentences that only mention it, English and Korean."""

from collections.abc import Sequence

import numpy as np

__all__ = ["write_texts"]

_KOREAN = 0.2  # share of Korean texts
_SENTENCES = (0.55, 0.45)  # one, two
_CAPITALS = 0.15
_TYPO = 0.25


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


_ITEMS = _parts(
    """
    headphones | running shoes | espresso machine | wool coat | desk lamp | camping tent | kitchen knife |
    winter tyres | sofa | mountain bike | sunglasses | yoga mat | wristwatch | backpack | garden chair |
    vacuum cleaner | tablet | leather boots | mattress | coffee beans | face cream | electric kettle | umbrella |
    board game | blender | suitcase | toaster | guitar | office chair | rain jacket | bookshelf | frying pan |
    hair dryer | skateboard | printer | green tea | telescope | teapot | lawn mower | sandals
    """
)
_ITEMS_KO = _parts(
    """
    무선 이어폰 | 운동화 | 커피 머신 | 겨울 코트 | 책상 조명 | 캠핑 텐트 | 주방 칼 | 소파 | 자전거 | 선글라스 |
    요가 매트 | 손목시계 | 배낭 | 청소기 | 태블릿 | 가죽 부츠 | 매트리스 | 수분 크림 | 전기 주전자 | 우산 | 믹서기 |
    여행 가방 | 토스터 | 기타 | 사무용 의자 | 프라이팬 | 드라이기 | 녹차
    """
)
_DAYS = _parts("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
_DAYS_KO = _parts("월요일|화요일|수요일|목요일|금요일|토요일|일요일")

_SELLING = _parts(
    """
    {tens}% off every {item} this week only | Buy one {item}, get the second one free |
    Order your new {item} today and save ${price} | Big {day} sale: {item} for just ${price} |
    Limited offer! {item} now only ${price}, while stocks last | Shop now: {item} with free delivery |
    Don't miss our best deal: {tens}% discount on any {item} |
    Special price for the {item}: ${price} instead of ${more} | Get the {item} you always wanted, only ${price} |
    Grand clearance sale, {item} up to {tens}% off | Hurry! The {item} offer ends {day} |
    New in our store: {item} from ${price}. Buy it now | Use the coupon SAVE{tens} and get your {item} cheaper |
    The number one {item}, now at half price | Exclusive for members: {item} with a {tens}% discount |
    Flash sale until {day}: {item} at ${price} | Treat yourself to a premium {item} for ${price} |
    Order by {day} and get a free gift with your {item} | Our lowest price ever: {item} for ${price} |
    Try our {item} free for {days} days, money back guaranteed |
    Bargain of the month: {item}, was ${more}, now ${price} | Call now and get {tens}% off your {item} |
    Super savings on {item}, shop online today | The {item} everyone loves, on sale from {day}
    """
)
_PLAIN = _parts(
    """
    The {item} was repaired on {day} after {days} years of use |
    Figure {days}: an early {item}, photographed in {year} | Please return the {item} to room {more} by {day} |
    Lost near the library on {day}: one {item} | How to clean a {item} in {days} steps |
    The history of the {item} goes back to {year} | Minutes of the {day} meeting, page {days} |
    A {item} stood in the corner of the room | Chapter {days}: the {item} in everyday life around {year} |
    My grandmother kept her {item} until {year} | The museum shows a {item} from {year}, closed on {day} |
    Warning: keep the {item} away from children | We carried the {item} across the river on {day} |
    Drawing of a {item}, pencil on paper, {year} | The experiment used a {item} and {days} volunteers |
    Rain is expected on {day}, {days} degrees in the north | In {year} nobody in the village owned a {item} |
    Part {more}: how the {item} is put together | She forgot her {item} on the train on {day} |
    The {item} is described on page {more} of the manual | Inventory number {more}: {item}, slightly worn |
    Notes from {day}: the {item} makes a strange noise | The class wrote {days} sentences about a {item} |
    The word for {item} has changed little since {year}
    """
)
_SELLING_KO = _parts(
    """
    {item} 오늘만 {tens}% 할인 | 지금 구매하면 {item} 무료 배송 | {item} 특가 {price}만원, 한정 수량 |
    {day}까지 {item} 최대 {tens}% 세일 | {item} 하나 사면 하나 더 드립니다 | 신규 회원 {item} {tens}% 할인 쿠폰 증정 |
    놓치지 마세요! {item} 최저가 {price}만원 | {item} 구매 고객께 사은품 증정 | 이번 주 {item} 반값 할인 행사 |
    지금 주문하세요, {item} 특별 할인가 {price}만원
    """
)
_PLAIN_KO = _parts(
    """
    {year}년에 찍은 {item} 사진 | {item}의 역사는 {year}년에 시작되었다 | {day} 회의에서 {item} 이야기를 나누었다 |
    할머니는 {item}을 오래 간직하셨다 | {item} 청소 방법 {days}단계 | {day} 도서관 앞에서 {item}을 잃어버렸다 |
    설명서 {more}쪽에 {item} 그림이 있다 | 박물관에 {year}년의 {item}이 있다 |
    {day}에는 비가 오고 기온은 {days}도이다 | {days}장: 생활 속의 {item}
    """
)


def write_texts(rng: np.random.Generator, selling: list[bool]) -> list[str]:
    """One text for each entry, selling or not; no two are alike."""
    seen: set[str] = set()
    texts = []
    for sells in selling:
        text = _text(rng, sells)
        while text.lower() in seen:
            text = _text(rng, sells)
        seen.add(text.lower())
        texts.append(text)
    return texts


def _text(rng: np.random.Generator, sells: bool) -> str:
    korean = rng.random() < _KOREAN
    item = _one_of(rng, _ITEMS_KO if korean else _ITEMS)
    count = 1 + int(rng.choice(2, p=_SENTENCES))
    text = "\n".join(_sentence(rng, item, sells=sells, korean=korean) for _ in range(count))
    if rng.random() < _CAPITALS:
        text = text.upper()
    if rng.random() < _TYPO:  # as text recognition does: a letter is lost
        at = int(rng.integers(len(text)))
        text = text[:at] + text[at + 1 :]
    return text.strip()


def _sentence(rng: np.random.Generator, item: str, *, sells: bool, korean: bool) -> str:
    korean_or_not = (_SELLING_KO, _PLAIN_KO) if korean else (_SELLING, _PLAIN)
    price = int(rng.integers(5, 90))
    return _one_of(rng, korean_or_not[0 if sells else 1]).format(
        item=item,
        day=_one_of(rng, _DAYS_KO if korean else _DAYS),
        tens=10 * int(rng.integers(1, 8)),
        price=price,
        more=price + int(rng.integers(5, 90)),
        days=int(rng.integers(2, 30)),
        year=int(rng.integers(1850, 2020)),
    )


def _one_of(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
