"""Writes tests/golden/infotext.json: A1111 `parameters` of odd prompts and names, read back as others read them.

The reader is `parse_generation_parameters` of AUTOMATIC1111's web UI (modules/infotext_utils.py, v1.10.1) with its regular
expressions as they stand there, and sd-parsers 1.x, which is asked as a second opinion.

    python golden_infotext.py ../tests/golden/infotext.json
"""

import json
import random
import re
import sys

from sd_parsers.parsers import AUTOMATIC1111Parser

SEED = 14

# A1111, modules/infotext_utils.py.
RE_PARAM = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
RE_IMAGESIZE = re.compile(r"^(\d+)x(\d+)$")


def quote(text: str) -> str:
    """A1111's `quote`, and where its `unquote` would not give the text back, quotes nevertheless."""
    plain = not any(c in text for c in ',:\n') and not re.search(r"[\x00-\x1f\x7f-\x9f]", text)
    return text if plain and text[0] != '"' and text == text.strip() else json.dumps(text, ensure_ascii=False)


def unquote(text: str) -> str:
    """A1111's `unquote`."""
    if len(text) == 0 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_generation_parameters(x: str) -> dict[str, str]:
    """A1111's reader, but for styles and for defaults of old versions."""
    res: dict[str, str] = {}
    prompt = negative_prompt = ""
    done_with_prompt = False
    *lines, lastline = x.strip().split("\n")
    if len(RE_PARAM.findall(lastline)) < 3:
        lines.append(lastline)
        lastline = ""
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            done_with_prompt = True
            line = line[16:].strip()
        if done_with_prompt:
            negative_prompt += ("" if negative_prompt == "" else "\n") + line
        else:
            prompt += ("" if prompt == "" else "\n") + line
    for k, v in RE_PARAM.findall(lastline):
        if v[0] == '"' and v[-1] == '"':
            v = unquote(v)
        size = RE_IMAGESIZE.match(v)
        if size is not None:
            res[f"{k}-1"], res[f"{k}-2"] = size.group(1), size.group(2)
        else:
            res[k] = v
    return {**res, "Prompt": prompt, "Negative prompt": negative_prompt}


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
    read = parse_generation_parameters(text)
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
    "", "a cat", "Negative prompt: a dog", "a cat\nNegative prompt: a dog", "a cat, Negative prompt: dog", "Steps: 20",
    "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 2", "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 2\nb",
    "a cat\nSteps: 30, Sampler: Euler a, Seed: 5", "\n\na\n\nb\n", "  a  \n  b  ", "a, b: c, d: e", "\"quoted\"", "'a': \"b\"",
    "{\"json\": [1, 2]}", "(a:1.2), [b], (c)", "a \\(b\\)", "[a:b:2]", "[a|b]", "a AND b :0.5", "a BREAK b", "Ω ≈ ç √ 🚀",
    "a\tb", "a \\ b", "Model: x, Seed: 7", "Negative prompt:", "Negative prompt", "negative prompt: x", "Steps:",
    "(Negative prompt: x:1.3)", "[Negative prompt: a:b:2]", "(Steps: 3:1.2)", "Hashes: {\"a\": 1}", "<lora:x:1>", "a,,,b,", ": : :",
    "Size: 1x1", "a\r\nb", "Template: x", "Steps: Steps: Steps: ",
]
NAMES = [
    "model", "my model", "a,b", "a:b", "a\"b", "\"a\"", "\"", "a\\b", "a\nb", " a", "a ", "Ω", "🚀", "a, Seed: 7", "x: y, z: w",
    "a\\\"b,", "a\tb", "a(b)[c]{d}", "Negative prompt:", "Steps: 20", "a=b;c", "'a'", "a/b\\c", "1.5", "v1-5-pruned.ckpt",
    "{\"a\": 1}", "a\x7fb", "<a>", "a--b", "ends with \\",
]


def main() -> None:
    """Writes the file."""
    draw = random.Random(SEED)
    cases = [case(p, PROMPTS[-1 - i], False, [NAMES[i % len(NAMES)], NAMES[-1 - i % len(NAMES)]]) for i, p in enumerate(PROMPTS)]
    cases += [case(p, "x", True, ["m", NAMES[i % len(NAMES)]]) for i, p in enumerate(PROMPTS)]
    pieces = ["Negative prompt:", "Steps: ", "\n", ",", ": ", "\"", "a", "b c", "é", "🍎", "Seed: 3", " ", "{", "}", "'", ";", "="]
    for _ in range(100):
        prompt, negative, *names = ("".join(draw.choices(pieces, k=draw.randint(1, 9))) for _ in range(4))
        cases.append(case(prompt, negative, draw.random() < 0.5, list(names)))
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump({"generator": "export/golden_infotext.py", "seed": SEED, "cases": cases}, file, ensure_ascii=False, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
