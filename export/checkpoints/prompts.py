"""Prompts that a tokenizer can get wrong."""

from __future__ import annotations

import unicodedata

# As people write them.
USUAL = """\
a photo of a cat
a red apple on a blue background
a photograph of an astronaut riding a horse
portrait of a young woman, detailed face, soft light, 85mm lens, f/1.8, bokeh
masterpiece, best quality, ultra-detailed, 8k, HDR, (sharp focus:1.2), [blurry:0.5]
An oil painting of the Eiffel Tower at night, in the style of Vincent van Gogh
cyberpunk city, neon lights, rain, trending on artstation, by greg rutkowski
<lora:detail:0.8> forest
a (very) [strange] {prompt} with <brackets>
1girl, solo, long_hair, blue_eyes
Mona Lisa wearing sunglasses --ar 16:9 --v 5
3d render of a chair; octane, unreal-engine 5.2
"a quoted sign that says 'OPEN 24/7'"
low quality, worst quality, bad anatomy, bad hands, extra digits, jpeg artifacts, watermark
an avocado armchair!!!
what is this???
wow... just... wow
photo of the number 1234567890
2024-01-31 12:45:59
$19.99 or 20% off #sale @home
C++ and C# and F#
https://example.com/path?query=value&other=1#fragment
first.last+tag@example.com
AT&T, R&D, Q&A
50/50 1/2 3/4
rock'n'roll
a/b/c\\d\\e
tree~house | cat ^ dog * bird = plane
under_score and __dunder__
...leading dots
trailing dots...
x=y+z-w
#hashtag #Two
100%
-5 degrees
(((nested)))
!
,
.
a
I
0
9
""".splitlines()

SPACES = [
    "",
    " ",
    "   ",
    "\t",
    "\n",
    " leading",
    "trailing ",
    "two  spaces",
    "many      spaces      here",
    "tab\tbetween",
    "line\nbreak",
    "carriage\r\nreturn",
    "no\u00a0break\u00a0space",
    "thin\u2009space",
    "ideographic\u3000space",
    "line\u2028separator",
    "paragraph\u2029separator",
    "vertical\u000btab and form\u000cfeed",
    "next\u0085line",
    "ogham\u1680space",
    "zero\u200bwidth",
    "joiner\u200dhere",
    "byte\ufefforder mark",
    "soft\u00adhyphen",
    "\n\n  mixed \t white \r\n space  \n",
]

CONTROL = [
    "bell\u0007here",
    "null\u0000here",
    "escape\u001b[31mred",
    "delete\u007fhere",
    "\u0001\u0002\u0003",
    "unit\u001fseparator",
    "c1\u009bcontrol",
    "right\u202eto left",
    "private\ue000use",
    "not a character \ufffe",
    "replacement \ufffd character",
    "tag \U000e0041",
]

CONTRACTIONS = [
    "it's",
    "don't",
    "we're",
    "they've",
    "i'm",
    "she'll",
    "he'd",
    "IT'S",
    "DON'T",
    "WE'RE",
    "dogs' tails",
    "'tis the season",
    "'s",
    "'",
    "''",
    "'''s",
    "y'all'd've",
    "o'clock",
    "rock 'n' roll's",
    "it\u2019s curly",
    "don\u2019t",
    "x'sy",
    "'re 've 'll",
    "can't've",
    "'dog",
    "5's",
]

ACCENTS = [
    "café",
    "naïve façade, jalapeño, Ångström, smörgåsbord",
    "Crème brûlée",
    "São Paulo",
    "Łódź",
    "Dvořák",
    "İstanbul",
    "ISPARTA ıspanak",
    "STRASSE Straße ẞ",
    "ŒUVRE œuvre Æther",
    "ﬁne ﬂow ligatures",
    "Ǆ ǅ ǆ",
    "ὈΔΥΣΣΕΎΣ ὀδυσσεύς",
    "ΣΊΣΥΦΟΣ",
    "Ünïcödé",
    "ñ",
    "Việt Nam phở",
    "K Å",
    "ＦＵＬＬ ｗｉｄｔｈ １２３",
    "x² + y³ = z⁴",
    "½ cup, ¾ full, Ⅷ, ①②③",
    "٣ قطط",
    "१२३",
    "µ and μ",
]

SCRIPTS = [
    "猫",
    "一只可爱的猫坐在窗台上",
    "東京の夜景、雨",
    "かわいいネコ",
    "ガギグゲゴ",
    "고양이 사진",
    "красная площадь зимой",
    "КРАСНАЯ ПЛОЩАДЬ",
    "مدينة في الليل",
    "חתול על הגג",
    "แมวน่ารัก",
    "बिल्ली का फोटो",
    "தமிழ்",
    "ქართული",
    "հայերեն",
    "Ελληνικά",
    "አማርኛ",
    "𝔤𝔬𝔱𝔥𝔦𝔠 𝕕𝕠𝕦𝕓𝕝𝕖",
    "𐐀𐐨 deseret",
    "cat猫cat",
    "全角！句読点。、「」",
    "한글 자모 ㄱㄴㄷ",
]

EMOJI = [
    "🐱",
    "a 🐱 and a 🐶",
    "👍🏽",
    "👩‍👩‍👧‍👦 family",
    "🇫🇷🇩🇪",
    "❤️ vs ❤",
    "☕️☀️",
    "1️⃣2️⃣",
    "🏳️‍🌈",
    "🎉🎉🎉party🎉",
    "😀!😀?",
    "™ © ® ℠",
    "→ ← ↑ ↓ ⇒",
    "★☆ ♥ ♫",
    "€ £ ¥ ₹ ₿",
    "≤ ≥ ≠ ≈ ∞ √ ∑",
    "“quotes” ‘single’ «guillemets» „low“",
    "en–dash em—dash hy‐phen minus−",
    "bullet • middle · dot … ellipsis",
    "§ ¶ † ‡ °",
    "█▓▒░ ┌─┐",
]

# Not in capitals: transformers 4 and 5 disagree whether that is the token.
SPECIAL = [
    "<|startoftext|>",
    "<|endoftext|>",
    "a <|endoftext|> b",
    "a<|startoftext|>b",
    "<|endoftext",
    "endoftext|>",
    "<| endoftext |>",
    "<|endoftext|><|endoftext|>",
    "</w>",
    "cat</w> dog",
    "Ġcat",
    "ġ Ċ",
]

CASES = ["UPPER CASE PROMPT", "CamelCaseWords", "iPhone", "eBay NASA McDonald", "aBcDeFgH", "SHOUTING!!! QUIETLY..."]

LONG = [
    "supercalifragilisticexpialidocious",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 100,
    "ha" * 60,
    "z" * 333,
    "word " * 75,
    "word " * 76,
    "word " * 200,
    "very " * 74 + "it's",
    "very " * 74 + "supercalifragilistic",
    "1" * 80,
    "!" * 200,
    "!?" * 100,
    "=" * 64,
    "🐱" * 40,
    "猫" * 60,
    "é" * 120,
    "a-b_c.d,e;f:g!h?i/j\\k|l" * 5,
    " ".join(str(n * n) for n in range(60)),
]


def prompts() -> list[str]:
    decomposed = [unicodedata.normalize("NFD", text) for text in ACCENTS]
    odd = [*SPACES, *CONTROL, *CONTRACTIONS, *ACCENTS, *decomposed, *SCRIPTS, *EMOJI, *SPECIAL, *CASES, *LONG]
    # Marks of their own, and in an order that normalisation changes.
    odd += ["e\u0301\u0323", "e\u0323\u0301", "\u0301 alone", "q\u0307\u0323", "ᄀ\u1161\u11a8", "\u1e9b\u0323"]
    return list(dict.fromkeys([*USUAL, *odd]))
