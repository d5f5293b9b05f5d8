"""Writes tests/golden/tokens.json: what transformers' CLIPTokenizer makes of prompts of all kinds, for tests/tokens.rs.

Run: python export/golden_tokens.py WHEEL > tests/golden/tokens.json        (WHEEL: see clip_tokenizer.py)
Each case is a prompt with all its ids, both ends included, and what a context of 77 tokens cuts off it. `padded` are
prompts as text encoders get them, with the two paddings that models were trained with.
"""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from pathlib import Path

import tokenizers
import transformers

from clip_tokenizer import END, START, tokenizer

CONTEXT = 77
SEED = 20
TYPED = [
    "",
    " ",
    "a",
    "  a photo of a   cat\t\n",
    "A Photograph of an Astronaut riding a horse",
    "masterpiece, best quality, 1girl, (detailed eyes:1.2), [blurry], <lora:name:0.8>",
    "it's, they're, I've, I'm, we'll, he'd, don't, rock 'n' roll, 's 't 're, o''clock, dogs' 'strong'",
    "IT'S DON'T WE'LL",
    "it’s a curly apostrophe",
    "1984 2001: a space odyssey, 3.14159, 1,000,000, ½ ⅷ ² ٣ 四 Ⅻ 10k 4k8k",
    "highlyunlikelycompoundwordwithoutanyspaces antidisestablishmentarianism",
    "café naïve Zürich Ångström señor",
    unicodedata.normalize("NFD", "café naïve Zürich Ångström señor e\u0301\u0323"),
    "ﬁne ﬂow ﬀ",
    "İstanbul ISTANBUL ıi ß ẞ ΣΑΣ σας Ǆ",
    "富士山の上の桜、浮世絵",
    "한국의 전통 가옥 한옥",
    "кот в сапогах, ЁЖИК",
    "قطة على السجادة",
    "กระต่ายบนดวงจันทร์",
    "एक बिल्ली की तस्वीर",
    "🐱 🐶",
    "👩‍🚀 on the 🌕, 👍🏽, 🇩🇪, ❤️, 1️⃣",
    "x\u200by\u00a0z\u3000w\u2028v\u0085u\ufeff",
    "\u0001\u0002 bell\u0007 escape\u001b[31m delete\u007f",
    "\u00ad soft\u00adhyphen",
    "!!!! ???? ... --- ___ ~~~ ((( ))) @#$%^&*",
    "hello!world?yes.no,maybe;so:what",
    "quotes \"double\" 'single' `back` «guillemets» „low“",
    "a\\b/c|d http://example.com/a?b=c&d=e#f user@example.com",
    f"a {END} b {START} c",
    f"{START}{END}{END}",
    "a <|ENDOFTEXT|>'s b <|StartOfText|>x <|endoftext",
    "C++ C# .NET f(x)=x²+√2≈3 €5 £6 ¥7 ™ ©",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ℵ ∀x∈ℝ 𓀀 𐍈 \U0010fffd \ue000",
    "aaa" * 60,
    "!" * 200,
    "🎉" * 40,
    "7" * 90,
]
STYLES = ["oil painting", "3d render", "trending on artstation", "8k", "bokeh", "f/1.8", "85mm", "volumetric light"]
SUBJECTS = ["a red fox", "two old men", "the Eiffel Tower", "an astronaut's helmet", "Frida Kahlo", "a cup of tea"]
PLACES = ["in the snow", "on Mars", "at night", "under the sea", "in São Paulo", "by the river"]
BLOCKS = [(0x20, 0x7E), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x3041, 0x30FF), (0x4E00, 0x9FA5)]
BLOCKS += [(0x1, 0x20), (0x2000, 0x206F), (0x300, 0x36F), (0x1F300, 0x1F5FF), (0xAC00, 0xD7A3), (0x5D0, 0x5EA)]


def prompts() -> list[str]:
    generator = random.Random(SEED)
    made = []
    for count in [*range(1, 9)] * 6:
        parts = [generator.choice(SUBJECTS), generator.choice(PLACES), *generator.choices(STYLES, k=count)]
        made.append(generator.choice([", ", " ", "; ", ",", " BREAK "]).join(parts))
    for _ in range(60):
        low, high = generator.choice(BLOCKS)
        made.append("".join(chr(generator.randint(low, high)) for _ in range(generator.randint(1, 30))))
    for _ in range(45):
        blocks = generator.choices(BLOCKS, k=generator.randint(2, 40))
        made.append("".join(chr(generator.randint(low, high)) for low, high in blocks))
    for length in (20, 40, 60):
        words = " ".join(generator.choice(SUBJECTS + PLACES + STYLES) for _ in range(length))
        made += [words, words.upper(), words.replace("a", "a\u0301")]
    # Unassigned characters differ between versions of Unicode.
    return [p for p in TYPED + made if all(unicodedata.category(c) != "Cn" for c in p)]


def main() -> None:
    wheel = Path(sys.argv[1])
    clip = tokenizer(wheel, pad=END)
    cases = []
    for prompt in prompts():
        encoded = clip(prompt, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"][1:-1]
        cut = prompt[offsets[CONTEXT - 2][0] :].strip() if len(offsets) > CONTEXT - 2 else None
        cases.append({"prompt": prompt, "ids": encoded["input_ids"], "cut": cut})
    settings = {"padding": "max_length", "max_length": CONTEXT, "truncation": True}
    zero = tokenizer(wheel, pad="!")
    padded = [
        {"prompt": prompt, "eos": clip(prompt, **settings)["input_ids"], "zero": zero(prompt, **settings)["input_ids"]}
        for prompt in ("", "a cat in a hat", ", ".join(STYLES * 5))
    ]
    provenance = {
        "command": f"python export/golden_tokens.py {wheel.name} > tests/golden/tokens.json",
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    print('{"provenance": ' + json.dumps(provenance) + ', "cases": [')
    print(",\n".join(json.dumps(case) for case in cases))
    print('], "padded": [')
    print(",\n".join(json.dumps(case) for case in padded))
    print("]}")


if __name__ == "__main__":
    main()
