"""Writes tests/golden/infotext.json: A1111 `parameters` of odd prompts and names, read back as others read them.

The reader follows the format of AUTOMATIC1111's web UI 1.10.1, and sd-parsers is asked as a second opinion.

    python golden_infotext.py ../tests/golden/infotext.json
"""

import json
import random
import re
import sys

from sd_parsers.parsers import AUTOMATIC1111Parser

SEED = 14

# The format: `name: value` pairs separated by commas; a value with a comma stands in quotes, as JSON.
NAME = r"\w[\w /-]+"
QUOTED = r'"(?:[^"\\]|\\.)+"'
SETTING = re.compile(rf"\s*(?P<name>{NAME}):\s*(?P<value>{QUOTED}|[^,]*)(?:,|$)")
SIZE = re.compile(r"(\d+)x(\d+)")
NEGATIVE = "Negative prompt:"
LEAST_SETTINGS = 3
"""A last line with fewer belongs to the prompt."""


def quote(text: str) -> str:
    """In quotes where a reader would otherwise not give the text back."""
    plain = not any(c in text for c in ",:\n") and not re.search(r"[\x00-\x1f\x7f-\x9f]", text)
    return text if plain and text[0] != '"' and text == text.strip() else json.dumps(text, ensure_ascii=False)


def unquote(value: str) -> str:
    """What stands in quotes, if it is JSON."""
    if value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            pass
    return value


def read_parameters(text: str) -> dict[str, str]:
    """The settings of a `parameters` text, with the prompts; a size becomes two numbers, named `-1` and `-2`."""
    lines = text.strip().split("\n")
    settings = list(SETTING.finditer(lines[-1]))
    if len(settings) >= LEAST_SETTINGS:
        lines.pop()
    else:
        settings = []
    prompts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    current = "Prompt"
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            current, line = "Negative prompt", line.removeprefix(NEGATIVE).strip()
        # An empty line at the start of a prompt is dropped.
        if line or prompts[current]:
            prompts[current].append(line)
    found: dict[str, str] = {}
    for setting in settings:
        name, value = setting["name"], unquote(setting["value"])
        if size := SIZE.fullmatch(value):
            found |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            found[name] = value
    return found | {name: "\n".join(lines) for name, lines in prompts.items()}


def within(prompt: str, literal: bool) -> str:
    """A prompt as calotype writes it."""
    if literal:
        prompt = re.sub(r"[\\()\[\]]", r"\\\g<0>", prompt).replace("<", "<\\")
        prompt = prompt.replace("AND", "A\\ND").replace("BREAK", "B\\REAK")
    return prompt.replace("Negative prompt:", "Negative\\ prompt:").replace("Steps: ", "St\\eps: ")


def case(prompt: str, negative: str, literal: bool, names: list[str]) -> dict:
    """A text, after it has been read back."""
    model, lora = names
    values = [
        ["Steps", "20"],
        ["Sampler", "DPM++ 2M"],
        ["Schedule type", "Karras"],
        ["CFG scale", "7.5"],
        ["Seed", "1"],
        ["Size", "512x768"],
        ["Model", model],
        ["Lora hashes", f"{lora}: 0123456789ab"],
        ["RNG", "CPU"],
        ["Version", "calotype"],
    ]
    end = f"Negative prompt: {within(negative, literal)}\n" if negative else ""
    text = f"{within(prompt, literal)}\n{end}" + ", ".join(f"{k}: {quote(v)}" for k, v in values if v)
    read = read_parameters(text)
    for name, value in values:
        if name == "Size":
            assert (read["Size-1"], read["Size-2"]) == ("512", "768")
        elif value:
            assert read[name] == value, (name, value, read[name], text)
    lines = lambda text: "\n".join(line.strip() for line in text.strip().split("\n"))  # noqa: E731
    assert read["Prompt"].strip() == lines(within(prompt, literal)), text
    assert read["Negative prompt"].strip() == lines(within(negative, literal)), text
    info = AUTOMATIC1111Parser().parse({"parameters": text})
    sampler = info.samplers[0]
    # It knows no quotes: a comma in a name is the next setting to it, whoever wrote the text.
    assert sampler.name == "DPM++ 2M" and ("," in model + lora or sampler.parameters["seed"] == "1"), sampler
    assert sampler.parameters["scheduler"] == "Karras", sampler
    read_by_other = [p[0].value if p else "" for p in (sampler.prompts, sampler.negative_prompts)]
    assert read_by_other == [within(p, literal).strip() for p in (prompt, negative)], text
    return {
        "prompt": prompt,
        "negative": negative,
        "literal": literal,
        "values": values,
        "text": text,
        "read_prompt": read["Prompt"],
        "read_negative": read["Negative prompt"],
    }


PROMPTS = [
    "",
    "a cat",
    "Negative prompt: a dog",
    "a cat\nNegative prompt: a dog",
    "a cat, Negative prompt: dog",
    "Steps: 20",
    "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 2",
    "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 2\nb",
    "a cat\nSteps: 30, Sampler: Euler a, Seed: 5",
    "\n\na\n\nb\n",
    "  a  \n  b  ",
    "a, b: c, d: e",
    '"quoted"',
    "'a': \"b\"",
    '{"json": [1, 2]}',
    "(a:1.2), [b], (c)",
    "a \\(b\\)",
    "[a:b:2]",
    "[a|b]",
    "a AND b :0.5",
    "a BREAK b",
    "Ω ≈ ç √ 🚀",
    "a\tb",
    "a \\ b",
    "Model: x, Seed: 7",
    "Negative prompt:",
    "Negative prompt",
    "negative prompt: x",
    "Steps:",
    "(Negative prompt: x:1.3)",
    "[Negative prompt: a:b:2]",
    "(Steps: 3:1.2)",
    'Hashes: {"a": 1}',
    "<lora:x:1>",
    "a,,,b,",
    ": : :",
    "Size: 1x1",
    "a\r\nb",
    "Template: x",
    "Steps: Steps: Steps: ",
]
NAMES = [
    "model",
    "my model",
    "a,b",
    "a:b",
    'a"b',
    '"a"',
    '"',
    "a\\b",
    "a\nb",
    " a",
    "a ",
    "Ω",
    "🚀",
    "a, Seed: 7",
    "x: y, z: w",
    'a\\"b,',
    "a\tb",
    "a(b)[c]{d}",
    "Negative prompt:",
    "Steps: 20",
    "a=b;c",
    "'a'",
    "a/b\\c",
    "1.5",
    "v1-5-pruned.ckpt",
    '{"a": 1}',
    "a\x7fb",
    "<a>",
    "a--b",
    "ends with \\",
]


def main() -> None:
    """Writes the file."""
    draw = random.Random(SEED)
    cases = [
        case(p, PROMPTS[-1 - i], False, [NAMES[i % len(NAMES)], NAMES[-1 - i % len(NAMES)]])
        for i, p in enumerate(PROMPTS)
    ]
    cases += [case(p, "x", True, ["m", NAMES[i % len(NAMES)]]) for i, p in enumerate(PROMPTS)]
    pieces = [
        "Negative prompt:",
        "Steps: ",
        "\n",
        ",",
        ": ",
        '"',
        "a",
        "b c",
        "é",
        "🍎",
        "Seed: 3",
        " ",
        "{",
        "}",
        "'",
        ";",
        "=",
    ]
    for _ in range(100):
        prompt, negative, *names = ("".join(draw.choices(pieces, k=draw.randint(1, 9))) for _ in range(4))
        cases.append(case(prompt, negative, draw.random() < 0.5, list(names)))
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(
            {"generator": "export/golden_infotext.py", "seed": SEED, "cases": cases}, file, ensure_ascii=False, indent=1
        )
        file.write("\n")


if __name__ == "__main__":
    main()
