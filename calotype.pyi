"""Generates images from prompts with latent diffusion on the local device."""

from collections.abc import Callable
from os import PathLike
from typing import Any, Self, TypeAlias, final

import numpy
import numpy.typing
from PIL import Image

__all__ = [
    "CancelledError",
    "Error",
    "Images",
    "InputError",
    "InternalError",
    "MemoryError",
    "ModelError",
    "NumericError",
    "OutputError",
    "Pipeline",
    "Plan",
    "Run",
    "RuntimeError",
    "UsageError",
    "__version__",
]

__version__: str

_Path: TypeAlias = str | PathLike[str]
_Latents: TypeAlias = numpy.typing.NDArray[numpy.float32]
"""`[channels, height_cells, width_cells]`."""
_Image: TypeAlias = Image.Image | _Path

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

@final
class Plan:
    """How much memory a run will take, in bytes."""

    @property
    def peak_bytes(self) -> int:
        """The most that the process will have."""

    @property
    def least_bytes(self) -> int:
        """The least budget with which the run could be planned; slower."""

    @property
    def budget_bytes(self) -> int:
        """The most that it may have: the pipeline's budget, or what was free."""

@final
class Images:
    """Finished images, with their receipts."""

    @property
    def images(self) -> list[Image.Image]:
        """Their `info` has the texts `parameters` and `calotype`, as that of a file does."""

    @property
    def receipts(self) -> list[dict[str, Any]]:
        """For each image the recipe with nothing left to defaults, and what made the image."""

    @property
    def warnings(self) -> list[str]:
        """A line for each thing that was not used or not done as asked."""

    def save(self, path: _Path, index: int | None = None) -> None:
        """Writes an image with its receipt: PNG, JPEG or WebP by the extension. The file is there whole or not at all.

        `index` may be left out where there is one image.
        """

@final
class Run:
    """A run that was begun or restored. It ends where its pipeline is used otherwise."""

    @property
    def done(self) -> int:
        """Steps that are done."""

    @property
    def steps(self) -> int:
        """Steps in all."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Its recipe, with nothing left to defaults, and its seed."""

    @property
    def warnings(self) -> list[str]: ...
    def step(self) -> int:
        """Takes the next step; how many are done then. A run whose step failed can only be begun again."""

    def __iter__(self) -> Run: ...
    def __next__(self) -> int:
        """Takes the next step, until all are done."""

    def latents(self) -> _Latents:
        """The latents after the last step, a copy; noise of the next step's level is in them."""

    def denoised(self) -> _Latents:
        """The last estimate of the clean latents, a copy; zeros before the first step."""

    def preview(self) -> Image.Image | None:
        """What the image looks like so far, small; None for a model that cannot say."""

    def snapshot(self) -> bytes:
        """The run as bytes, from which `Pipeline.restore` continues it, in this process or another."""

    def finish(self) -> Images:
        """Decodes the image, and ends the run. Refused while steps are left."""

@final
class Pipeline:
    """An opened model. It takes one call at a time: a second one, from another thread, is refused."""

    @property
    def warnings(self) -> list[str]:
        """A line for each thing in the model's files that is not used."""

    def __new__(
        cls,
        model: _Path | None = None,
        *,
        memory: int | str | None = None,
        threads: int = 0,
        provider: str | None = None,
        cache: _Path | None = None,
        onnxruntime: _Path | None = None,
        recipe: dict[str, Any] | None = None,
        unet: _Path | None = None,
        vae: _Path | None = None,
        text_encoder: list[_Path] | None = None,
        variant: str | None = None,
        prediction: str | None = None,
        clip_skip: int | None = None,
        lora: list[Any] | None = None,
        embedding: list[_Path] | None = None,
        control_model: list[dict[str, Any]] | None = None,
    ) -> Self:
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
        image: _Image | None = None,
        mask_image: _Image | None = None,
        strength: float | None = None,
        seed: int | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        recipe: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Images:
        """Generates images; those after the first have the seeds after its seed.

        Any other field of a recipe is given by its name. What is left out gets the model's default; the seed is
        random then. `callback_on_step_end` is called with the run after each step; it cancels by returning False,
        and its exceptions are raised here.
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

    def encode_image(self, image: Image.Image) -> _Latents:
        """The latents of an image of the mode RGB, whose sides are multiples of the latents' cells.

        Ends the run there is.
        """

    def decode_latents(self, array: _Latents) -> Image.Image:
        """The image of latents as `encode_image` gives them. Ends the run there is."""

    def cancel(self) -> None:
        """Cancels the call that computes, within its step, from any thread; nothing where none does."""
