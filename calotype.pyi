"""Generates images from prompts with latent diffusion on the local device."""

from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any, TypeAlias

import numpy
import numpy.typing
from PIL import Image

__version__: str

Path: TypeAlias = str | PathLike[str]
Latents: TypeAlias = numpy.typing.NDArray[numpy.float32]
"""`[channels, height_cells, width_cells]`."""
Picture: TypeAlias = Image.Image | Path

class Error(Exception):
    """Whatever calotype refuses or fails at."""

    kind: str
    """`usage`, `input`, and so on, as the classes below are called."""
    place: str | None
    expected: str | None
    got: str | None
    help: str | None
    """The way out, where one is known."""

class UsageError(Error):
    """A request that cannot be fulfilled, or a wrong use of this module."""

class InputError(Error):
    """A recipe, a snapshot or an image file that cannot be used."""

class ModelError(Error):
    """The model's files are missing, damaged or not understood."""

class MemoryError(Error):
    """The memory budget is too small for the request, or memory could not be had."""

class RuntimeError(Error):
    """ONNX Runtime or one of its providers is missing or unfit."""

class CancelledError(Error):
    """It was cancelled."""

class NumericError(Error):
    """A NaN or an infinity appeared while an image was generated."""

class OutputError(Error):
    """A file could not be written."""

class InternalError(Error):
    """An internal error: a bug in calotype."""

class Plan:
    """How much memory a run will take, in bytes."""

    peak_bytes: int
    """The most that the process will have."""
    least_bytes: int
    """The least budget with which the run could be planned; slower."""
    budget_bytes: int
    """The most that it may have: the pipeline's budget, or what was free."""

class Images:
    """Finished images, with their receipts."""

    images: list[Image.Image]
    """Their `info` has the texts `parameters` and `calotype`, as that of a file does."""
    receipts: list[dict[str, Any]]
    """For each image the recipe with nothing left to defaults, and what made the image."""
    warnings: list[str]
    """A line for each thing that was not used or not done as asked."""

    def save(self, path: Path, index: int | None = None) -> None:
        """Writes an image with its receipt: PNG, JPEG or WebP by the extension. The file is there whole or not at all.

        `index` may be left out where there is one image.
        """

class Run(Iterator[int]):
    """A run that was begun or restored. It ends where its pipeline is used otherwise."""

    done: int
    """Steps that are done."""
    steps: int
    """Steps in all."""
    recipe: dict[str, Any]
    """Its recipe, with nothing left to defaults, and its seed."""
    warnings: list[str]

    def step(self) -> int:
        """Takes the next step; how many are done then. A run whose step failed can only be begun again."""

    def __iter__(self) -> Run: ...
    def __next__(self) -> int:
        """Takes the next step, until all are done."""

    def latents(self) -> Latents:
        """The latents after the last step, a copy; noise of the next step's level is in them."""

    def denoised(self) -> Latents:
        """The last estimate of the clean latents, a copy; zeros before the first step."""

    def preview(self) -> Image.Image | None:
        """What the image looks like so far, small; None for a model that cannot say."""

    def snapshot(self) -> bytes:
        """The run as bytes, from which `Pipeline.restore` continues it, in this process or another."""

    def finish(self) -> Images:
        """Decodes the image, and ends the run. Refused while steps are left."""

class Pipeline:
    """An opened model. It takes one call at a time: a second one, from another thread, is refused."""

    warnings: list[str]
    """A line for each thing in the model's files that is not used."""

    def __init__(
        self,
        model: Path | None = None,
        *,
        memory: int | str | None = None,
        threads: int = 0,
        provider: str | None = None,
        cache: Path | None = None,
        onnxruntime: Path | None = None,
        recipe: dict[str, Any] | None = None,
        unet: Path | None = None,
        vae: Path | None = None,
        text_encoder: list[Path] | None = None,
        variant: str | None = None,
        prediction: str | None = None,
        clip_skip: int | None = None,
        lora: list[Any] | None = None,
        embedding: list[Path] | None = None,
        control_model: list[dict[str, Any]] | None = None,
    ) -> None:
        """Opens a model, the built-in one without a path. What computes is opened by the first run.

        `memory` is the most that the process may have, in bytes or as in "300MiB"; without it, what is free.
        """

    def __call__(
        self,
        prompt: str | None = None,
        *,
        num_images_per_prompt: int = 1,
        callback_on_step_end: Callable[[Run], object] | None = None,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image: Picture | None = None,
        mask_image: Picture | None = None,
        strength: float | None = None,
        seed: int | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        recipe: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Images:
        """Generates images; those after the first have the seeds after its seed.

        Any other field of a recipe is given by its name. What is left out gets the model's default; the seed is random then.
        `callback_on_step_end` is called with the run after each step; it cancels by returning False, and its exceptions are raised here.
        """

    def plan(self, prompt: str | None = None, **settings: Any) -> Plan:
        """Predicts the memory of a call with these arguments before anything is loaded.

        Later calls that are no larger run by this plan: plan the largest once.
        """

    def begin(self, prompt: str | None = None, **settings: Any) -> Run:
        """Begins a run with the arguments of a call, to be taken step by step. A run that was begun before ends."""

    def restore(self, snapshot: bytes, prompt: str | None = None, **settings: Any) -> Run:
        """Begins a run where another one was when it gave this snapshot; both go on to the same bytes.

        `recipe=run.recipe` gives the recipe that it was made with, its seed included.
        """

    def encode_image(self, image: Image.Image) -> Latents:
        """The latents of an image of the mode RGB, whose sides are multiples of the latents' cells. Ends the run there is."""

    def decode_latents(self, array: Latents) -> Image.Image:
        """The image of latents as `encode_image` gives them. Ends the run there is."""

    def cancel(self) -> None:
        """Cancels the call that computes, within its step, from any thread; nothing where none does."""
