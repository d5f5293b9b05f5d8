"""The Python module, as a user of its wheel has it: against the command line, and with whatever else it may be given.

    tests/python/run.sh target/debug/calotype

The variable CALOTYPE names the program that makes the same images.
"""

import importlib.metadata
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any

import calotype
import numpy
from PIL import Image

SMALL: dict[str, Any] = {"prompt": "a red apple", "seed": 7, "steps": 3, "size": "64x64"}


def command_line(output: pathlib.Path, *arguments: str) -> Image.Image:
    command = [os.environ["CALOTYPE"], "generate", *arguments, "-o", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    image = Image.open(output)
    image.load()
    return image


def photo(mode: str = "RGB") -> Image.Image:
    """Steep gradients, in which no two pixels of a row are alike."""
    rows, columns = numpy.mgrid[0:64, 0:64].astype("uint8")
    planes = [columns * 4, rows * 4, columns + rows, 255 - columns * 2]
    return Image.fromarray(numpy.dstack(planes), "RGBA").convert(mode)


class Tests(unittest.TestCase):
    pipeline: calotype.Pipeline
    folder: pathlib.Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.pipeline = calotype.Pipeline()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)

    def refused(self, kind: str, call: Callable[..., object], *arguments: Any, **settings: Any) -> calotype.Error:
        with self.assertRaises(calotype.Error) as caught:
            call(*arguments, **settings)
        error = caught.exception
        self.assertEqual(error.kind, kind, str(error))
        self.assertEqual(type(error).__name__.lower(), f"{kind}error")
        return error

    def draw(self) -> Image.Image:
        return self.pipeline(**SMALL).images[0]

    def test_images_and_receipts_are_those_of_the_command_line(self) -> None:
        made = self.pipeline(
            "a red apple",
            negative_prompt="a pear",
            num_inference_steps=3,
            guidance_scale=3.5,
            width=64,
            height=128,
            seed=7,
        )
        arguments = ["a red apple", "--negative", "a pear", "--steps", "3", "--guidance", "3.5", "--size", "64x128"]
        expected = command_line(self.folder / "cli.png", *arguments, "--seed", "7")
        [image] = made.images
        self.assertEqual(image.size, (64, 128))
        self.assertEqual(image.tobytes(), expected.tobytes())
        self.assertEqual(made.receipts[0], json.loads(expected.info["calotype"]))
        # In memory as in files.
        self.assertEqual(image.info, expected.info)
        made.save(self.folder / "own.png")
        self.assertEqual((self.folder / "own.png").read_bytes(), (self.folder / "cli.png").read_bytes())
        made.save(str(self.folder / "own.webp"))
        with Image.open(self.folder / "own.webp") as webp:
            self.assertEqual(webp.convert("RGB").tobytes(), expected.tobytes())
        # A receipt is a recipe, whose fields others replace.
        again = self.pipeline(recipe=made.receipts[0])
        self.assertEqual(again.images[0].tobytes(), image.tobytes())
        other = self.pipeline(recipe=made.receipts[0], seed=8)
        self.assertNotEqual(other.images[0].tobytes(), image.tobytes())
        self.assertEqual(other.receipts[0]["seed"], 8)

    def test_images_in_memory_are_read_as_files_are(self) -> None:
        arguments = ["a red apple", "--seed", "7", "--steps", "4", "--strength", "0.5"]
        for mode in ["RGB", "RGBA", "L", "P"]:
            photo(mode).save(self.folder / "init.png")
            expected = command_line(self.folder / "cli.png", *arguments, "--init", str(self.folder / "init.png"))
            for image in (photo(mode), self.folder / "init.png"):
                made = self.pipeline("a red apple", seed=7, num_inference_steps=4, strength=0.5, image=image)
                self.assertEqual(made.images[0].tobytes(), expected.tobytes(), mode)
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 32, 64))
        mask.save(self.folder / "mask.png")
        files = ["--init", str(self.folder / "init.png"), "--mask", str(self.folder / "mask.png")]
        expected = command_line(self.folder / "cli.png", *arguments, *files)
        settings: dict[str, Any] = {"seed": 7, "num_inference_steps": 4, "strength": 0.5}
        made = self.pipeline("a red apple", image=photo("P"), mask_image=mask, **settings)
        self.assertEqual(made.images[0].tobytes(), expected.tobytes())

    def test_several_images_have_consecutive_seeds(self) -> None:
        made = self.pipeline(**SMALL, num_images_per_prompt=2)
        self.assertEqual([receipt["seed"] for receipt in made.receipts], [7, 8])
        alone = self.pipeline(**{**SMALL, "seed": 8})
        self.assertEqual(made.images[1].tobytes(), alone.images[0].tobytes())
        self.refused("usage", made.save, self.folder / "first.png")
        self.refused("usage", made.save, self.folder / "first.png", 2)
        made.save(self.folder / "second.png", 1)
        with Image.open(self.folder / "second.png") as second:
            self.assertEqual(second.tobytes(), alone.images[0].tobytes())
        for count in (0, 65536):
            self.refused("usage", self.pipeline, **SMALL, num_images_per_prompt=count)
        self.refused("usage", self.pipeline, **{**SMALL, "seed": 2**64 - 1}, num_images_per_prompt=2)

    def test_files_are_written_whole_or_not_at_all(self) -> None:
        made = self.pipeline(**SMALL)
        self.refused("output", made.save, self.folder)
        self.refused("output", made.save, self.folder / "missing" / "a.png")
        self.refused("usage", made.save, self.folder / "a.gif")
        self.refused("output", made.save, "/dev/null")
        self.assertFalse((self.folder / "a.gif").exists())

    def test_what_is_not_done_as_asked_is_told(self) -> None:
        self.assertEqual(self.pipeline(**SMALL).warnings, [])
        made = self.pipeline(**{**SMALL, "prompt": "a red apple " * 200}, num_images_per_prompt=2)
        self.assertEqual(len(set(made.warnings)), len(made.warnings))
        expected = subprocess.run(
            [os.environ["CALOTYPE"], "generate", "a red apple " * 200, "--steps", "3", "--size", "64x64", "--seed", "7"]
            + ["-o", str(self.folder / "long.png")],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
        for line in made.warnings:
            self.assertIn(line.replace("`", ""), expected.replace("--", "").replace("`", ""))

    def test_a_callback_cancels_and_its_exceptions_arrive(self) -> None:
        seen: list[tuple[int, int]] = []

        def stop(run: calotype.Run) -> bool:
            seen.append((run.done, run.steps))
            return run.done < 2

        error = self.refused("cancelled", self.pipeline, **SMALL, callback_on_step_end=stop)
        self.assertEqual((seen, str(error)), ([(1, 3), (2, 3)], "stopped after step 2 of 3"))
        raised = KeyError("mine")

        def fail(run: calotype.Run) -> None:
            raise raised

        with self.assertRaises(KeyError) as caught:
            self.pipeline(**SMALL, callback_on_step_end=fail)
        self.assertIs(caught.exception, raised)
        # Neither changes what is drawn next, and a callback that looks on changes nothing.
        previews: list[Any] = []

        def look(run: calotype.Run) -> dict[str, Any]:
            previews.append((run.preview(), run.latents(), run.snapshot()))
            return {}

        looked = self.pipeline(**SMALL, callback_on_step_end=look)
        self.assertEqual(looked.images[0].tobytes(), self.draw().tobytes())
        self.assertEqual([latents.shape for _, latents, _ in previews], [(16, 4, 4)] * 3)
        with self.assertRaises(TypeError):
            self.pipeline(**SMALL, callback_on_step_end=1)  # type: ignore[arg-type]

    def test_a_callback_cannot_use_the_pipeline(self) -> None:
        uses: list[Callable[[], object]] = [
            self.draw,
            lambda: self.pipeline.plan("a"),
            lambda: self.pipeline.begin("a"),
            lambda: self.pipeline.encode_image(photo()),
        ]
        for use in uses:

            def call_back(_: calotype.Run, use: Callable[[], object] = use) -> None:
                use()

            error = self.refused("usage", self.pipeline, **SMALL, callback_on_step_end=call_back)
            self.assertIn("one call at a time", str(error))
        self.draw()

    def stopped_within_a_step(self, stop: Callable[[], object], expected: type[BaseException]) -> None:
        """A step of seconds, which would be counted if it were taken to its end."""
        run = self.pipeline.begin("a red apple", seed=1, steps=2, size="1024x1024")
        thread = threading.Timer(0.1, stop)
        thread.start()
        with self.assertRaises(expected):
            run.step()
        thread.join()
        self.assertEqual(run.done, 0)
        self.refused("usage", run.step)
        self.draw()

    def test_an_interrupt_ends_a_step(self) -> None:
        # A background process of a shell has the signal ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.stopped_within_a_step(lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt)

    def test_another_thread_cancels_a_step(self) -> None:
        # Of what does not compute nothing is left.
        self.pipeline.cancel()
        self.stopped_within_a_step(self.pipeline.cancel, calotype.CancelledError)

    def test_other_threads_run_and_are_refused_while_it_computes(self) -> None:
        run = self.pipeline.begin("a red apple", seed=1, steps=1, size="1024x1024")
        errors: list[BaseException] = []
        is_done, count = threading.Event(), 0

        def other() -> None:
            nonlocal count
            while not is_done.is_set():
                count += 1
                try:
                    self.pipeline.plan("a")
                except calotype.Error as error:
                    errors.append(error)
                time.sleep(0.01)

        # Nothing but a call that gives Python's lock back lets the other thread run.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        thread = threading.Thread(target=other)
        try:
            # In the step; before it a plan would be made, and end the run.
            timer = threading.Timer(0.05, thread.start)
            timer.start()
            self.assertEqual(run.step(), 1)
            self.assertGreater(count, 1)
        finally:
            sys.setswitchinterval(interval)
            is_done.set()
            timer.join()
            thread.join()
        self.assertTrue(any("one call at a time" in str(error) for error in errors))

    def test_a_run_is_taken_step_by_step(self) -> None:
        expected = self.draw()
        run = self.pipeline.begin(**SMALL)
        self.assertEqual((run.done, run.steps, run.recipe["seed"], run.warnings), (0, 3, 7, []))
        self.refused("usage", run.finish)
        latents = run.latents()
        self.assertEqual((latents.shape, latents.dtype), ((16, 4, 4), numpy.dtype("float32")))
        self.assertFalse(run.denoised().any())
        self.assertEqual(run.step(), 1)
        self.assertFalse(numpy.array_equal(run.latents(), latents))
        preview = run.preview()
        assert preview is not None
        self.assertEqual((preview.size, preview.mode), ((4, 4), "RGB"))
        self.assertEqual(list(run), [2, 3])
        self.assertEqual(list(run), [])
        self.refused("usage", run.step)
        last = run.latents()
        self.assertEqual(run.finish().images[0].tobytes(), expected.tobytes())
        self.refused("usage", run.finish)
        self.assertEqual(self.pipeline.decode_latents(last).tobytes(), expected.tobytes())
        earlier = self.pipeline.begin(**SMALL)
        self.pipeline.begin(**SMALL)
        self.assertIn("begun last", str(self.refused("usage", earlier.step)))

    def test_a_snapshot_goes_on_to_the_same_bytes(self) -> None:
        run = self.pipeline.begin(**{**SMALL, "seed": None, "sampler": "euler_a"})
        run.step()
        snapshot, recipe = run.snapshot(), run.recipe
        list(run)
        expected = run.finish().images[0].tobytes()
        restored = calotype.Pipeline().restore(snapshot, recipe=recipe)
        self.assertEqual(restored.done, 1)
        list(restored)
        self.assertEqual(restored.finish().images[0].tobytes(), expected)
        for damaged in (snapshot[:-1], b"", bytes([snapshot[0] ^ 1]) + snapshot[1:]):
            self.refused("input", self.pipeline.restore, damaged, recipe=recipe)
        self.refused("input", self.pipeline.restore, snapshot, recipe=recipe, seed=recipe["seed"] + 1)
        with self.assertRaises(TypeError):
            self.pipeline.restore("text", recipe=recipe)  # type: ignore[arg-type]

    def test_latents_are_arrays(self) -> None:
        latents = self.pipeline.encode_image(photo())
        self.assertEqual((latents.shape, latents.dtype), ((16, 4, 4), numpy.dtype("float32")))
        decoded = self.pipeline.decode_latents(latents)
        difference = numpy.asarray(decoded, float) - numpy.asarray(photo(), float)
        # The gradients are steep for so small an autoencoder; those of a flat image are twice as far off.
        self.assertLess(numpy.sqrt((difference**2).mean()), 40)
        # However it lies in memory, and writable.
        turned = numpy.asfortranarray(latents)
        self.assertEqual(self.pipeline.decode_latents(turned).tobytes(), decoded.tobytes())
        latents[:] = 0
        self.assertNotEqual(self.pipeline.decode_latents(latents).tobytes(), decoded.tobytes())

    def test_latents_that_are_none_are_refused(self) -> None:
        latents = numpy.zeros((16, 4, 4), "float32")
        for value in (numpy.nan, numpy.inf, -numpy.inf):
            bad = latents.copy()
            bad[3, 2, 1] = value
            self.assertIn("latents: expected finite", str(self.refused("numeric", self.pipeline.decode_latents, bad)))
        huge = numpy.broadcast_to(numpy.float32(0), (16, 2**20, 2**20))
        for wrong in (
            latents[0],
            latents[None],
            latents[:15],
            latents[:, :0],
            latents.astype("float64"),
            latents.astype("int32"),
            latents.astype(">f4"),
            latents.astype(complex),
            huge,
            latents.tolist(),
            None,
            b"",
            "",
        ):
            self.refused("usage", self.pipeline.decode_latents, wrong)
        for image in (
            photo("RGBA"),
            photo("L"),
            Image.new("RGB", (60, 64)),
            Image.new("RGB", (0, 0)),
            latents,
            None,
            "a",
        ):
            self.refused("usage", self.pipeline.encode_image, image)

    def test_a_budget_refuses_before_anything_is_loaded(self) -> None:
        small = calotype.Pipeline(memory="64MiB")
        for call in (small.plan, small, small.begin):
            error = self.refused("memory", call, "a red apple")
            self.assertEqual((error.place, error.got), ("memory", "64 MiB"))
            self.assertIn("at least", error.expected or "")
        self.refused("memory", small.encode_image, photo())
        plan = self.pipeline.plan(**SMALL)
        self.assertLess(plan.least_bytes, plan.peak_bytes + 1)
        self.assertLessEqual(plan.peak_bytes, plan.budget_bytes)
        roomy = calotype.Pipeline(memory=2 << 30)
        self.assertEqual(roomy.plan(**SMALL).budget_bytes, 2 << 30)
        self.assertEqual(roomy(**SMALL).images[0].tobytes(), self.draw().tobytes())
        # A larger one is planned for itself.
        self.assertEqual(roomy("a red apple", steps=1, size="128x64").images[0].size, (128, 64))

    def test_names_that_nothing_has_are_refused(self) -> None:
        for name, near in [
            ("promt", "did you mean prompt?"),
            ("num_inference_step", "did you mean num_inference_steps?"),
            ("generator", "give seed"),
            ("scheduler", "give sampler"),
        ]:
            for call in (self.pipeline, self.pipeline.plan, self.pipeline.begin, calotype.Pipeline):
                settings: dict[str, Any] = {name: 1}
                with self.assertRaisesRegex(TypeError, near):
                    call(**settings)
        with self.assertRaisesRegex(TypeError, "got both"):
            self.pipeline("a", steps=1, num_inference_steps=1)
        with self.assertRaisesRegex(TypeError, "got all"):
            self.pipeline("a", size="64x64", width=64, height=64)
        with self.assertRaisesRegex(TypeError, "got one of them"):
            self.pipeline("a", width=64)

    def test_values_that_are_none_are_refused(self) -> None:
        refused: list[dict[str, Any]] = [
            {"prompt": 5},
            {"prompt": ["a", "b"]},
            {"prompt": "\udc80"},
            {"steps": "three"},
            {"steps": -1},
            {"steps": 1.5},
            {"steps": 2**70},
            {"seed": -1},
            {"seed": 2**64},
            {"size": "64"},
            {"width": 2**31, "height": 64},
            {"width": 0, "height": 64},
            {"image": "/missing.png"},
            {"sampler": "sharp"},
            {"control": [{"kind": "canny"}]},
            {"control": 5},
            {"recipe": {"version": 2}},
            {"recipe": {"promt": "a"}},
            {"lora": ["/missing.safetensors"]},
        ]
        for settings in refused:
            with self.assertRaises(calotype.Error, msg=str(settings)):
                self.pipeline(**{"steps": 1, **settings})
        of_python: list[tuple[type[Exception], dict[str, Any]]] = [
            (ValueError, {"guidance": float("nan")}),
            (TypeError, {"image": numpy.zeros((64, 64, 3), "uint8")}),
            (TypeError, {"width": "wide", "height": 64}),
            (TypeError, {"steps": object()}),
            (TypeError, {"recipe": "a"}),
            (TypeError, {"num_images_per_prompt": "two"}),
        ]
        for error, values in of_python:
            with self.assertRaises(error, msg=str(values)):
                self.pipeline("a", **values)
        endless: list[Any] = []
        endless.append(endless)
        with self.assertRaises(ValueError):
            self.pipeline("a", steps=endless)
        self.draw()

    def test_models_that_cannot_be_opened_are_refused(self) -> None:
        self.refused("model", calotype.Pipeline, "/missing")
        self.refused("model", calotype.Pipeline, pathlib.Path("/missing"))
        self.refused("model", calotype.Pipeline, lora=["/missing.safetensors"])
        self.refused("usage", calotype.Pipeline, prompt="a")
        self.refused("usage", calotype.Pipeline, threads=5000)
        self.refused("usage", calotype.Pipeline, memory="64M")
        self.refused("runtime", calotype.Pipeline, onnxruntime="/missing.so")
        self.refused("usage", calotype.Pipeline, provider="abacus")
        of_python: list[tuple[type[Exception], dict[str, Any]]] = [
            (OverflowError, {"threads": -1}),
            (TypeError, {"memory": 1.5}),
            (TypeError, {"model": 5.5j}),
            (TypeError, {"memory": -1}),
        ]
        for error, values in of_python:
            with self.assertRaises(error, msg=str(values)):
                calotype.Pipeline(**values)

    def test_the_module_knows_what_it_is(self) -> None:
        self.assertEqual(calotype.__version__, importlib.metadata.version("calotype"))
        classes = [value for value in vars(calotype).values() if isinstance(value, type)]
        errors = {value for value in classes if issubclass(value, calotype.Error)} - {calotype.Error}
        self.assertEqual(len(errors), 9)
        self.assertTrue(all(issubclass(value, Exception) for value in errors))
        text = io.StringIO()
        print(self.pipeline, self.pipeline.plan("a"), self.pipeline(**SMALL), file=text)
        self.assertIn("<calotype.Pipeline> <calotype.Plan: peak", text.getvalue())


if __name__ == "__main__":
    unittest.main()
