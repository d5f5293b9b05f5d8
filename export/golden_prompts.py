"""Writes tests/golden/prompts.*: what AUTOMATIC1111's web UI reads in prompts, for tests/prompt.rs and tests/families.

    git clone https://github.com/lllyasviel/stable-diffusion-webui-forge FORGE     (AGPL: nothing of it is kept)
    git -C FORGE checkout dfdcbab685e57677014f05a3309b48cc87383167
    python export/golden_prompts.py FORGE WHEEL models/builtin tests/golden        (WHEEL: see clip_tokenizer.py)

Forge is the web UI's fork whose text processing runs without the rest: modules/prompt_parser.py (parts, schedules,
weights) and backend/text_processing (chunks, states). Both are imported and run here, with stand-ins for the settings.

prompts.json:
    cases     [{prompt, steps, answers: [answer, ..]}, ..]; an answer is {parts: [part, ..], negative: the one part
              of it as a negative prompt} or {raises}; and a part {weight, texts: [[[text, weight], ..], ..],
              of_step: [index of a text]}. Where a grammar of brackets that may mean themselves allows several
              readings, Python's hash seed picks one: these have several answers.
    tokens    [{prompt, ids: [[77], ..], weights: [[77], ..]}, ..] of CLIP's tokenizer
    states    {model: [{prompt, chunks, states, plain, pooled}, ..]}: names of arrays in prompts.safetensors: of the
              `rows` of every chunk the states, those of the same tokens without weights, and the vector or null
prompts.safetensors: these arrays, f32.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lark
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerFast

import model
from bundle import NAME
from checkpoints import values
from checkpoints.families import families
from clip_tokenizer import END, tokenizer
from golden_checkpoints import module_of, published_name

Json = dict[str, Any]

COMMIT = "dfdcbab685e57677014f05a3309b48cc87383167"
SEED = 5
FUZZED = 260
HASH_SEEDS = 6
# Of a chunk: attention is causal, so a few tell about all.
ROWS = {77: [0, 1, 2, 3, 7, 20, 76], 24: [0, 1, 2, 3, 7, 20, 23]}
PIECES = ["a", "b ", "(", ")", "[", "]", "[", "]", ":", ":", "|", "\\", " ", "0.5", "2", ".25", "AND", " BREAK ", ","]
TYPED = [
    "",
    " ",
    "normal text",
    "an (important) word",
    "(unbalanced",
    "unbalanced)",
    "[unbalanced",
    "((a)",
    "a] b) c",
    "\\(literal\\] \\[ \\) \\\\ \\x",
    "trailing \\",
    "a\\\nb [c:2]",
    "(unnecessary)(parens)",
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
    "(a:1.2)",
    "(a:-0.5) (b:+2) (c:.5) (d:1.) (e:0)",
    "(a: 1.2 ) (b:1.2x) (c:) (d::2)",
    "a:1.2) b",
    "(a:1.1) (b:1.1)",
    "([a])",
    "[(a])b",
    "[[[a]]]",
    "(a (b (c (d))))",
    "a BREAK b",
    "a\n BREAK \n b",
    "BREAK",
    "a BREAK BREAK b BREAK",
    "aBREAK BREAKb BREAK_ éBREAK (BREAK) break",
    "(a BREAK b:1.2)",
    "(a BREAK b:-1)",
    "[a BREAK b]",
    "(:1)",
    "()",
    "(())",
    "[]",
    ":",
    "a:b",
    "a [b:3]",
    "a [b: 3 ]",
    "a [b:c:3]",
    "a [b::3] c",
    "a [:b:3] c",
    "a [::3] c",
    "a [:3] c",
    "a [b:0.3]",
    "a [b:.5] c",
    "a [b:c:1.0] d",
    "a [b:c:1.5] d",
    "a [b:c:1] d",
    "a [b:c:0] d",
    "a [b:c:-2] d",
    "a [b:c:+2] d",
    "a [b:c:99] d",
    "a [b:c:3.] d",
    "a [b:c:1e0] d",
    "a [b:c:2e-1] d",
    "a [b:c:2.e-1] d",
    "a [b:c:e] d",
    "a [b:c:d:3] e",
    "[a:b]",
    "a [[[b]]:2]",
    "[(a:2):3]",
    "a[b:[c:d:2]:1]e",
    "[a:b:[c:d:2]]",
    "a [unbalanced",
    "((a][:b:c [d:3]",
    "(a [b:c:2] d:1.3)",
    "[a|b]",
    "[a|b|c|a] d",
    "[fe|]male",
    "[fe|||]male",
    "[|]",
    "[a|(b:1.1)]",
    "[a:[b|c]:3]",
    "[[a:b:2]|c]",
    "[a|b:3]",
    "[a:b|c]",
    "(a|b)",
    "a | b [c:2]",
    "a [b:2] | c",
    "[a\\|b|c\\]]",
    "[\\[a:b\\::2]",
    "[a:(b:c:d):3]",
    "[a:(b:c):3]",
    "[a:[b]:3]",
    "[a (b] c:2]",
    "[a:b:2] [b:a:2]",
    "[a|a]",
    "a AND b",
    "a AND b:0.7",
    "a:2 AND b :-0.5 AND  c : 1.",
    "AND",
    "a AND",
    "sand ANDy _AND AND_ a,AND,b",
    "(a AND b:1.2) c",
    "a AND a:0.5",
    "[a AND b:2]",
    "widescreen 16:9",
    "widescreen 16:9,",
    "(a:1.2):0.5",
    "a:1:2",
    "a: .5\n",
    "a:+3. ",
    "a:1e2",
    "a:..5",
    "[a:b:2] AND [c|d]:0.5 BREAK e",
    "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
    "[: in background:0.25] [shoddy:masterful:0.5]",
    "masterpiece, (best quality:1.4), 1girl, [blurry:sharp:0.3], <lora:name:0.8>, ((detailed eyes)), :) :( XD",
    "富士山 (桜:1.3)、[浮世絵:写真:0.5] (é\u0301:0.8)",
    "(a:1.2.3)",
    "a (b:.) c",
]
WORDS = ["red", "fox", "stone", "river", "old", "castle", "morning"]
WORDS += ["light", "ancient", "forest", "glass", "city", "neon", "rain"]


def references(forge: Path) -> tuple[Any, Any]:
    """The parser and the engine. What they ask of the rest of the program are two settings and a device."""
    sys.path.insert(0, str(forge))
    shared, memory = types.ModuleType("modules.shared"), types.ModuleType("backend.memory_management")
    vars(shared)["opts"] = types.SimpleNamespace(emphasis="Original")
    vars(memory)["text_encoder_device"] = lambda: torch.device("cpu")
    backend = types.ModuleType("backend")
    backend.__path__ = [str(forge / "backend")]
    vars(backend)["memory_management"] = memory
    sys.modules |= {"modules.shared": shared, "backend": backend, "backend.memory_management": memory}
    engine = importlib.import_module("backend.text_processing.classic_engine")
    return importlib.import_module("modules.prompt_parser"), engine


def part_of(parser: Any, text: str, weight: float, steps: int) -> Json:
    [schedule] = parser.get_learned_conditioning_prompt_schedules([text], steps)
    spans = [parser.ScheduledPromptConditioning(end, torch.tensor(float(i))) for i, (end, _) in enumerate(schedule)]
    texts: list[str] = []
    of_step = []
    for step in range(steps):
        # As the denoiser asks for it in its step, counted from 0.
        read = schedule[int(parser.reconstruct_cond_batch([spans], step))][1]
        if read not in texts:
            texts.append(read)
        of_step.append(texts.index(read))
    return {"weight": weight, "texts": [parser.parse_prompt_attention(text) for text in texts], "of_step": of_step}


def answer_of(parser: Any, prompt: str, steps: int) -> Json:
    [indexes], texts, _ = parser.get_multicond_prompt_list(parser.SdConditioning([prompt]))
    try:
        parts = [part_of(parser, texts[index], weight, steps) for index, weight in indexes]
        return {"parts": parts, "negative": part_of(parser, prompt, 1.0, steps)}
    except ValueError as error:
        return {"raises": str(error)}


def cases_of(forge: Path) -> list[Json]:
    """Each prompt with its different answers, from processes of different hash seeds."""
    asked = list(zip(prompts(), itertools.cycle([10, 7, 20, 1])))
    runs = []
    for seed in range(HASH_SEEDS):
        command = [sys.executable, __file__, str(forge)]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        run = subprocess.run(
            command, env=environment, input=json.dumps(asked), stdout=subprocess.PIPE, check=True, text=True
        )
        runs.append(json.loads(run.stdout))
    cases: list[Json] = []
    for (prompt, steps), *answers in zip(asked, *runs, strict=True):
        unique = [answer for index, answer in enumerate(answers) if answer not in answers[:index]]
        cases.append({"prompt": prompt, "steps": steps, "answers": unique})
    return cases


def prompts() -> list[str]:
    generator = random.Random(SEED)
    made = [nested(generator, 3) for _ in range(FUZZED // 2)]
    made += ["".join(generator.choices(PIECES, k=generator.randint(3, 16))) for _ in range(FUZZED // 2)]
    return list(dict.fromkeys(TYPED + made))


def nested(generator: random.Random, depth: int) -> str:
    """Brackets that are closed, of all kinds within one another."""
    if depth == 0:
        return generator.choice(["a", "b c", " d ", "", ", ", "\\[", "BREAK"])
    forms = [
        "{}",
        "{} {}",
        "({})",
        "({}:0.5)",
        "[{}]",
        "[{}:{}:3]",
        "[{}:.5]",
        "[{}::0.7]",
        "[{}|{}]",
        "[{}|{}|{}]",
        "{}{}",
    ]
    form = generator.choice(forms)
    return form.format(*(nested(generator, depth - 1) for _ in range(form.count("{}"))))


def long_prompts() -> list[str]:
    """Around the ends of chunks: commas near and far, BREAK, weights, words of several tokens."""
    generator = random.Random(SEED)

    def words(count: int) -> str:
        return " ".join(generator.choice(WORDS) for _ in range(count))

    made = [words(count) for count in (74, 75, 76, 150, 151)]
    made += [f"{words(count)}, {words(40)}" for count in (53, 54, 55, 56, 73, 74, 75)]
    made += [f"{words(60)} ({words(5)}, {words(20)}:1.3), [{words(70)}] BREAK {words(3)}"]
    made += [f"{words(10)} BREAK {words(5)}, BREAK BREAK ({words(90)}:0.6) BREAK"]
    made += [", ".join(words(generator.randint(1, 12)) for _ in range(30)) for _ in range(3)]
    made += [f"{words(74)} antidisestablishmentarianism, {words(4)}", f"(({words(80)}, {words(100)}:1.2))"]
    return made


def state_prompts(words: int) -> list[str]:
    """Those whose states are kept, for chunks of so many words."""
    clause = ", ".join(WORDS)
    long = ", ".join([clause] * (1 + words // 15))
    return [
        "a red apple on a blue background",
        "a (red:1.4) apple on a [blue] background",
        "(a red apple:0) on a (((blue))) background",
        f"({clause}:1.2), [{long}], a (castle:1.5)",
        "a (red:1.3) apple BREAK a blue (background:0.7)",
        "",
    ]


class Encoder(nn.Module):
    """A text encoder as the reference wants it: with the prefix that transformers 5 dropped, and all outputs."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.text_model = getattr(wrapped, "text_model", wrapped)
        if hasattr(wrapped, "text_projection"):
            self.text_projection = wrapped.text_projection

    def forward(self, tokens: Tensor, output_hidden_states: bool) -> Any:
        outputs = self.wrapped(tokens, output_hidden_states=output_hidden_states)
        pooled = self.text_model(tokens).pooler_output
        return types.SimpleNamespace(hidden_states=outputs.hidden_states, pooler_output=pooled)


def engine_of(reference: Any, encoder: nn.Module, words: Any, context: int, pad: int, **settings: Any) -> Any:
    wrapped = types.SimpleNamespace(transformer=Encoder(encoder.eval()))
    engine = reference.ClassicTextProcessingEngine(wrapped, words, chunk_length=context - 2, **settings)
    engine.id_pad = pad
    # It knows a comma in CLIP's vocabulary only.
    engine.comma_token = words.get_vocab().get(",</w>", words.get_vocab().get(","))
    assert engine.comma_token is not None
    return engine


def narrow(component: str, config: Json) -> nn.Module:
    """A family's text encoder with the weights of checkpoints/values.py."""
    module = module_of(component, config).to_empty(device="cpu")
    names = {published_name(module, name): name for name in module.state_dict()}
    state = values.state(component, [(p, list(module.state_dict()[name].shape)) for p, name in names.items()])
    module.load_state_dict({names[name]: value for name, value in state.items()})
    for name, buffer in module.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1])[None])
    return module


def builtin(folder: Path) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    manifest = json.loads((folder / "calotype.json").read_text())
    assert manifest["name"] == NAME
    [file] = [name for name in manifest["files"] if name.startswith("weights/") and "text_encoder" in name]
    [words] = [name for name in manifest["files"] if name.endswith("tokenizer.json")]
    stored = {name.removeprefix("text_model."): value.float() for name, value in load_file(folder / file).items()}
    module = model.text_encoder(len(stored["embeddings.token_embedding.weight"]))
    module.load_state_dict(stored)
    marks = {"bos_token": "<|startoftext|>", "eos_token": END, "pad_token": END, "unk_token": "[UNK]"}
    read = PreTrainedTokenizerFast(tokenizer_file=str(folder / words), **marks)
    read.backend_tokenizer.no_padding()
    read.backend_tokenizer.no_truncation()
    return module, read


@torch.no_grad()
def states_of(engines: list[Any], context: int, name: str, arrays: dict[str, Tensor]) -> list[Json]:
    cases = []
    for number, prompt in enumerate(state_prompts(context - 2)):
        states: list[Tensor] = []
        plain: list[Tensor] = []
        pooled = None
        for engine in engines:
            for weighted, into in ((True, states), (False, plain)):
                with unweighted(engine, weighted):
                    result = engine([prompt])
                if engine.return_pooled:
                    result, pooled = result
                # Where the mean is next to nothing, its restoration is made of rounding errors.
                assert all(abs(z.mean()) > 5e-4 * z.std() for z in result[0].split(context)), prompt
                into.append(result[0])
        case: Json = {"prompt": prompt, "chunks": len(states[0]) // context}
        rows = [chunk * context + row for chunk in range(case["chunks"]) for row in ROWS[context]]
        for kind, value in (("states", states), ("plain", plain)):
            kept = torch.cat(value, dim=1)[rows]
            assert kept.dtype == torch.float32 and bool(kept.isfinite().all())
            case[kind] = f"{name}.{number}.{kind}"
            arrays[case[kind]] = kept.contiguous()
        case["pooled"] = None
        if pooled is not None:
            case["pooled"] = f"{name}.{number}.pooled"
            arrays[case["pooled"]] = pooled[0].contiguous()
        cases.append(case)
    return cases


class unweighted:
    """Has the engine weigh nothing meanwhile."""

    def __init__(self, engine: Any, weighted: bool) -> None:
        self.engine, self.weighted = engine, weighted
        self.encode: Callable[..., Any] = engine.process_tokens

    def __enter__(self) -> None:
        if not self.weighted:
            self.engine.process_tokens = lambda tokens, weights: self.encode(tokens, [[1.0] * len(w) for w in weights])

    def __exit__(self, *_: object) -> None:
        self.engine.process_tokens = self.encode


def tokens_of(engine: Any, prompt: str) -> Json:
    chunks, _ = engine.tokenize_line(prompt)
    return {"prompt": prompt, "ids": [c.tokens for c in chunks], "weights": [c.multipliers for c in chunks]}


def main() -> None:
    if len(sys.argv) == 2:
        parser, _ = references(Path(sys.argv[1]))
        print(json.dumps([answer_of(parser, prompt, steps) for prompt, steps in json.load(sys.stdin)]))
        return
    forge, wheel, bundle, out = (Path(argument) for argument in sys.argv[1:5])
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    _, reference = references(forge)
    clip = tokenizer(wheel, pad=END)
    end = clip.convert_tokens_to_ids(END)
    known = {family.name: family for family in families()}
    sd15, sd21, sdxl = (known[name].text for name in ("sd15", "sd21", "sdxl"))
    hidden = {"minimal_clip_skip": 2, "clip_skip": 2, "final_layer_norm": False}
    vector = {"return_pooled": True, "text_projection": True, "embedding_key": "clip_g"}
    first = engine_of(reference, narrow("text_encoder", sd15["text_encoder"]), clip, 77, end)
    padded = engine_of(reference, narrow("text_encoder", sd21["text_encoder"]), clip, 77, 0)
    xl = [
        engine_of(reference, narrow("text_encoder", sdxl["text_encoder"]), clip, 77, end, **hidden),
        engine_of(reference, narrow("text_encoder_2", sdxl["text_encoder_2"]), clip, 77, 0, **hidden, **vector),
    ]
    own, words = builtin(bundle)
    assert isinstance(own, CLIPTextModel)
    arrays: dict[str, Tensor] = {}
    contents = {
        "provenance": {
            "command": "python export/golden_prompts.py FORGE WHEEL models/builtin tests/golden",
            "stable-diffusion-webui-forge": COMMIT,
            "lark": lark.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "rows": ROWS,
        "states": {
            "sd15": states_of([first], 77, "sd15", arrays),
            "sd21": states_of([padded], 77, "sd21", arrays),
            "sdxl": states_of(xl, 77, "sdxl", arrays),
            "builtin": states_of([engine_of(reference, own, words, 24, words.eos_token_id)], 24, "builtin", arrays),
        },
    }
    cases = cases_of(forge)
    tokens = [tokens_of(first, prompt) for prompt in long_prompts()]
    lists = {"cases": cases, "tokens": tokens}
    text = json.dumps(contents, indent=1, ensure_ascii=False).removesuffix("\n}")
    for name, entries in lists.items():
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries)
        text += f',\n "{name}": [\n{lines}\n ]'
    (out / "prompts.json").write_text(text + "\n}\n")
    save_file(arrays, out / "prompts.safetensors")
    print(f"{len(cases)} prompts, {len(tokens)} of several chunks, {len(arrays)} arrays")


if __name__ == "__main__":
    main()
