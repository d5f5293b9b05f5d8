"""A program as a user writes it, for the type checker and to be run: it draws beside its own arithmetic."""

import calotype
from PIL import Image


def look(run: calotype.Run) -> bool:
    print(f"{run.done} of {run.steps}")
    return True


def main() -> None:
    pipeline = calotype.Pipeline(memory="2GiB")
    peak_bytes: int = pipeline.plan("a red apple", num_inference_steps=2).peak_bytes
    made = pipeline("a red apple", num_inference_steps=2, seed=1, callback_on_step_end=look)
    image: Image.Image = made.images[0]
    latents = pipeline.encode_image(image)
    decoded: Image.Image = pipeline.decode_latents(0.9 * latents)
    try:
        pipeline("a red apple", num_inference_steps=0)
    except calotype.Error as error:
        print(f"{error.kind}: {error}, {peak_bytes} bytes, {decoded.size}")


if __name__ == "__main__":
    main()
